"""The stages of a small generated.market, as commands that faults are tried on."""

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
SHOP = MarketConfig(users=400, items=200, days=12, impressions=36_000)
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
# Of every artefact: how it came about, not what it is. The last is the index of a saved
# model, to which every save gives an identity of its own.
_RECORDS = ("config.json", "manifest.json", "log.jsonl", ".metadata")


@dataclass(frozen=True, kw_only=True)
class TriedStep(Step):
    """A step that faults are tried on.

    Attributes:
        ranks: how many train or compute.
        settings: beside those of all steps.
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
        data = f"parquet:{folder / 'shop'}"
        options = ["--data", data, "--out", str(out), "--set", *_SETTINGS]
        options += [*self.settings, *input_options(self, STEPS, folder)]
        return [sys.executable, *module, *options]


STEPS = (
    TriedStep(name="content", command="encode-content", share=0.1),
    TriedStep(name="towers", command="train-towers", inputs=("content",), share=0.22),
    TriedStep(
        name="towers2",
        command="train-towers",
        inputs=("content",),
        ranks=2,
        settings=("towers.model.inputs=content+id",),
        share=0.1,
    ),
    TriedStep(
        name="vectors",
        command="export-vectors",
        inputs=("content", "towers"),
        share=0.12,
    ),
    TriedStep(name="ranker", command="train-ranker", inputs=("vectors",), share=0.22),
    TriedStep(
        name="ranker2",
        command="train-ranker",
        inputs=("vectors",),
        ranks=2,
        share=0.12,
    ),
    TriedStep(
        name="predictions",
        command="predict",
        inputs=("vectors", "ranker"),
        share=0.12,
    ),
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


def complete(step: TriedStep, folder: Path, out: Path) -> float:
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
    """Return the checksum of every file that is what the artefact is."""
    files = json.loads((directory / "manifest.json").read_text())["files"]
    return {
        name: described["sha256"]
        for name, described in files.items()
        if Path(name).name not in _RECORDS
    }


def make_all(folder: Path) -> dict[str, float]:
    """Write the shop and every stage's artefact; return each stage's seconds."""
    (folder / "shop").mkdir()
    for _ in write_market(SHOP, folder / "shop"):
        pass
    return {step.name: complete(step, folder, folder / step.name) for step in STEPS}
