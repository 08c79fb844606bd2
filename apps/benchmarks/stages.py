"""The stages on a small generated market, as commands for fault injection."""

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from learn_torchrec.datasets.generated.market import MarketConfig, write_market

from ..stages import Step, input_options

LIMIT = 900.0  # seconds of one stage
MARKET = MarketConfig(users=400, items=200, days=12, impressions=36_000)
_SETTINGS = (
    "content.encoder.layers=4",
    "content.encoder.tokens_per_batch=512",
    "split.actions=click,buy",
    "split.min_events=4",
    "towers.training.epochs=6",
    "towers.training.batch_size=20",
    'ranker.features.sparse=[{"column": "user_id"}, {"column": "item_id"}]',
    "ranker.features.dense=log_price,item_age_days",
    "ranker.training.batch_size=64",
    "ranker.training.epochs=2",
    "checkpoint.every_steps=7",
)
# Files that record how an artefact was made and so differ between equal ones. The last
# is the index of a saved model, to which every save gives a new identity.
_RECORDS = ("config.json", "manifest.json", "log.jsonl", ".metadata")


@dataclass(frozen=True, kw_only=True)
class FaultStep(Step):
    """A step under fault injection.

    Attributes:
        ranks: number of ranks.
        settings: in addition to those of all steps.
        share: of the kills.
    """

    ranks: int = 1
    settings: tuple[str, ...] = ()
    share: float = 0.0

    def run_command(self, folder: Path, out: Path) -> list[str]:
        """Return the command that makes `out` from the artefacts in `folder`."""
        module = ["-m", f"learn_torchrec.apps.{self.stage.app}"]
        if self.ranks > 1:
            launcher = ["-m", "torch.distributed.run", "--standalone"]
            module = [*launcher, f"--nproc_per_node={self.ranks}", *module]
        data = f"parquet:{folder / 'market'}"
        options = ["--data", data, "--out", str(out), "--set", *_SETTINGS]
        options += [*self.settings, *input_options(self, STEPS, folder)]
        return [sys.executable, *module, *options]


STEPS = (
    FaultStep("content", "encode-content", share=0.1),
    FaultStep("towers", "train-towers", ("content",), share=0.22),
    FaultStep(
        "towers2",
        "train-towers",
        ("content",),
        ranks=2,
        settings=("towers.model.inputs=content+id",),
        share=0.1,
    ),
    FaultStep("vectors", "export-vectors", ("content", "towers"), share=0.12),
    FaultStep("ranker", "train-ranker", ("vectors",), share=0.22),
    FaultStep("ranker2", "train-ranker", ("vectors",), ranks=2, share=0.12),
    FaultStep("predictions", "predict", ("vectors", "ranker"), share=0.12),
)


def start(command: list[str], log: Path) -> subprocess.Popen[bytes]:
    """Start a stage in a process group of its own."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=log.open("ab"),
        start_new_session=True,
    )


def complete(step: FaultStep, folder: Path, out: Path) -> float:
    """Run a stage to its end; return the seconds it took.

    Raises:
        RuntimeError: it failed; with the end of its log.
    """
    log = out.with_suffix(".stderr")
    began = time.monotonic()
    status = start(step.run_command(folder, out), log).wait(LIMIT)
    if status:
        raise RuntimeError(f"{step.name} failed: {log.read_text()[-2000:]}")
    return time.monotonic() - began


def content_of(directory: Path) -> dict[str, str]:
    """Return the checksums of an artefact's files, but those in `_RECORDS`."""
    files = json.loads((directory / "manifest.json").read_text())["files"]
    return {
        name: described["sha256"]
        for name, described in files.items()
        if Path(name).name not in _RECORDS
    }


def make_all(folder: Path) -> dict[str, float]:
    """Write the market and every stage's artefact; return each stage's seconds."""
    (folder / "market").mkdir()
    for _ in write_market(MARKET, folder / "market"):
        pass
    return {step.name: complete(step, folder, folder / step.name) for step in STEPS}
