"""The stages on a tiny market, for injected system errors: see `errno_faults`."""

import json
import shutil
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from string import Formatter

import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from transformers import LlamaConfig, LlamaModel, PreTrainedTokenizerFast

from learn_torchrec.datasets.generated.market import MarketConfig, write_market
from learn_torchrec.schema import (
    IMPRESSIONS_FILE,
    INTERACTIONS_FILE,
    ITEMS_FILE,
    TIMESTAMP,
)

MARKET = MarketConfig(users=60, items=60, days=12, impressions=3000)
_CONTENT = (
    *("content.encoder.model={model}", "content.encoder.layers=1"),
    *("content.encoder.tokens_per_batch=512", "content.encoder.dtype=float32"),
)
_SPLIT = ("split.actions=click,buy", "split.min_events=4")
_SAVES = ("checkpoint.every_steps=2", "checkpoint.keep=1")
_TOWERS = (
    *_SPLIT,
    *("towers.training.epochs=2", "towers.training.batch_size=10"),
    *("towers.model.encoder.width=16", "towers.model.encoder.num_heads=2"),
    *("towers.model.encoder.num_layers=1", "towers.model.encoder.vector_dim=16"),
    "towers.model.encoder.feed_forward_dim=16",
)
_RANKER = (
    *_SPLIT,
    'ranker.features.sparse=[{"column": "user_id"}, {"column": "item_id"}]',
    *("ranker.features.dense=log_price", "ranker.training.batch_size=256"),
)


_EVERY_STAGE = (*_CONTENT, *_TOWERS, *_RANKER[len(_SPLIT) :])
_STUDIED = (*_RANKER, "ranker.training.epochs=1")
_QUICKSTART = "quickstart --data {market} --ranks 1 --out {out}"
_EXPERIMENT = (
    "experiment table4 --data {market} --seeds 1 --encoder "
    "llm:content.encoder.model={model};content.encoder.layers=1 --out {out}"
)
# What a refresh and a quickstart write themselves, beside the artefacts of their
# stages, each of which is a step of its own.
_OWN = r"(?!.*/\.?(content|towers|vectors|ranker|predictions)\w*(/|\.|$))"


@dataclass(frozen=True, kw_only=True)
class ErrnoStep:
    """A command under fault injection.

    Attributes:
        name: of its output.
        command: words of the command line, with `{market}` and, for the outputs of
            earlier steps, `{content}` and the like; `{out}` if it is not `--out`.
        settings: of `--set`.
        other: settings of an older output that the command replaces; none for none.
        suffix: of the output; "" for a directory.
        start: an earlier step, whose output the command continues.
        removed: what is missing in it, as patterns.
        own: what calls to try match, with their paths.
        ranks: that share the work.
        is_tried: whether calls are to fail, or the output only serves later steps.
    """

    name: str
    command: str
    settings: tuple[str, ...] = ()
    other: tuple[str, ...] = ()
    suffix: str = ""
    start: str = ""
    removed: tuple[str, ...] = ()
    own: str = ""
    ranks: int = 1
    is_tried: bool = True

    def arguments(self, inputs: Path, out: Path, other: bool = False) -> list[str]:
        """Return the arguments of `learn-torchrec` that make `out`."""
        places = {
            "inputs": str(inputs),
            "out": str(out),
            "model": str(inputs / "model"),
        }
        for name in ("market", "early"):
            places[name] = f"parquet:{inputs / name}"
        for step in STEPS:
            places[step.name] = str(step.output(inputs))
            places[f"old_{step.name}"] = str(step.output(inputs / "old"))
        settings = [*self.settings, *(self.other if other else ())]
        settings = [text.replace("{model}", places["model"]) for text in settings]
        is_artefact = not self.suffix and "{out}" not in self.command
        return [
            *(word.format(**places) for word in self.command.split()),
            *([] if "{out}" in self.command else ["--out", str(out)]),
            *(["--set", *settings] if settings else []),
            *(["--overwrite"] if is_artefact else []),
        ]

    def output(self, folder: Path) -> Path:
        """Return where the output lies in a folder."""
        return folder / f"{self.name}{self.suffix}"

    def lay_out(self, inputs: Path, out: Path, other: bool = False) -> None:
        """Put what is there before the command where it writes."""
        if other:
            old = self.output(inputs / "old")
            (shutil.copyfile if old.is_file() else shutil.copytree)(old, out)
        if self.start:
            shutil.copytree(inputs / self.start, out, symlinks=True)
        for pattern in self.removed:
            for path in [*out.glob(pattern)]:
                shutil.rmtree(path) if path.is_dir() else path.unlink()


STEPS = (
    ErrnoStep(
        name="prepared",
        command="prepare --data {market}",
        other=("prepare.min_events=2",),
    ),
    ErrnoStep(
        name="content",
        command="encode-content --data {market}",
        settings=_CONTENT,
        other=("content.encoder.max_tokens=8",),
    ),
    ErrnoStep(
        name="codes",
        command="encode-codes --content {content}",
        settings=("codes.levels=2", "codes.codes_per_level=4"),
        other=("codes.codes_per_level=3",),
    ),
    ErrnoStep(
        name="towers",
        command="train-towers --data {market} --content {content}",
        settings=(*_TOWERS, *_SAVES),
        other=("towers.training.seed=5",),
    ),
    ErrnoStep(
        name="vectors",
        command="export-vectors --data {market} --content {content} --towers {towers}",
        other=("export.neighbours=5",),
    ),
    ErrnoStep(
        name="ranker",
        command="train-ranker --data {market} --vectors {vectors}",
        settings=(*_RANKER, *_SAVES),
        other=("ranker.training.seed=5",),
    ),
    ErrnoStep(
        name="predictions",
        command="predict --data {market} --ranker {ranker} --vectors {vectors}",
    ),
    ErrnoStep(
        name="ranking",
        command="evaluate-auc --predictions learn={predictions}",
        other=("convention.user_weight=positives",),
        suffix=".json",
    ),
    ErrnoStep(
        name="retrieval",
        command="evaluate-retrieval --data {market} --content {content} "
        "--towers {towers}",
        suffix=".json",
    ),
    ErrnoStep(
        name="recommended",
        command="recommend --data {market} --vectors {vectors}",
        suffix=".parquet",
    ),
    ErrnoStep(
        name="streamed",
        command="evaluate-auc --stream --predictions learn={predictions}",
        suffix=".json",
    ),
    ErrnoStep(
        name="joint_towers",
        command="train-towers --data {market} --content {content}",
        settings=(*_TOWERS, *_SAVES),
        ranks=2,
    ),
    ErrnoStep(
        name="joint_ranker",
        command="train-ranker --data {market} --vectors {vectors}",
        settings=(*_RANKER, *_SAVES),
        ranks=2,
    ),
    ErrnoStep(
        name="joint_content",
        command="encode-content --data {market}",
        settings=_CONTENT,
        ranks=2,
    ),
    ErrnoStep(
        name="joint_vectors",
        command="export-vectors --data {market} --content {content} --towers {towers}",
        ranks=2,
    ),
    ErrnoStep(
        name="joint_predictions",
        command="predict --data {market} --ranker {ranker} --vectors {vectors}",
        ranks=2,
    ),
    ErrnoStep(name="generated", command="data market --users=60 --items=40 --days=3"),
    ErrnoStep(name="drawn", command="data impressions --data {market}"),
    ErrnoStep(name="aligned", command="align-space {content} {old_content}"),
    ErrnoStep(name="index", command="build-index --data {market} --vectors {vectors}"),
    ErrnoStep(
        name="bundle",
        command="export-bundle --data {market} --ranker {ranker} --vectors {vectors}",
    ),
    ErrnoStep(
        name="embedded",
        command="embed-items --towers {towers} --content {content} --text mug",
        suffix=".parquet",
    ),
    ErrnoStep(
        name="tested",
        command="evaluate-ab --simulate --outcomes {out}/outcomes.parquet "
        "--out {out}/ab.json",
        settings=("replay.users=500",),
    ),
    ErrnoStep(name="reported", command="report --run {inputs} --out {out}/report.html"),
    ErrnoStep(
        name="studied",
        command="study --data {market} --vectors {vectors} --trials 1 --seeds 1 "
        "--out {out}",
        settings=_STUDIED,
    ),
    ErrnoStep(
        name="found",
        command="study-retrieval --data {market} --content {content} --seeds 1 "
        "--out {out}",
        settings=_TOWERS,
    ),
    ErrnoStep(name="asked", command=_EXPERIMENT, settings=_EVERY_STAGE, is_tried=False),
    ErrnoStep(
        name="tabled",
        command=_EXPERIMENT,
        settings=_EVERY_STAGE,
        start="asked",
        removed=("*.json", "report*"),
        own=_OWN,
    ),
    ErrnoStep(
        name="first",
        command="refresh --data {early} --run {out}",
        settings=_EVERY_STAGE,
        own=_OWN,
    ),
    ErrnoStep(
        name="refreshed",
        command="refresh --data {market} --run {out}",
        start="first",
        own=_OWN,
    ),
    ErrnoStep(
        name="rolled_back", command="rollback --to 1 --run {out}", start="refreshed"
    ),
    ErrnoStep(
        name="judged",
        command="refresh --data {market} --run {out}",
        start="rolled_back",
        removed=("runs/002/verdict.json", "runs/002/gate.json"),
    ),
    ErrnoStep(
        name="started",
        command=_QUICKSTART,
        settings=_EVERY_STAGE,
        is_tried=False,
    ),
    ErrnoStep(
        name="ended",
        command=_QUICKSTART,
        settings=_EVERY_STAGE,
        start="started",
        removed=("*.json", "report.*"),
    ),
    ErrnoStep(
        name="launched",
        command=_QUICKSTART,
        settings=_EVERY_STAGE,
        start="started",
        removed=("predictions_learn", "logs/predictions_learn.log"),
        own=r".*/logs/",
    ),
)


def make_inputs(
    folder: Path, run: Callable[[list[str], int], object], names: Collection[str] = ()
) -> None:
    """Make every step's output in `folder`, and its older one in `folder/old`.

    Args:
        folder: of all outputs.
        run: runs `learn-torchrec` with some arguments, on some ranks.
        names: of the steps, made with those that they read; none for all.
    """
    _write_markets(folder)
    write_model(folder / "model")
    for step in _with_read(names) if names else STEPS:
        step.lay_out(folder, step.output(folder))
        run(step.arguments(folder, step.output(folder)), step.ranks)
        if step.other:
            old = step.output(folder / "old")
            run(step.arguments(folder, old, other=True), step.ranks)


def _with_read(names: Collection[str]) -> list[ErrnoStep]:
    """Return steps, and before each the earlier ones whose outputs it reads."""
    wanted = set(names)
    for step in reversed(STEPS):
        if step.name in wanted:
            read = {name or "" for _, name, *_ in Formatter().parse(step.command)}
            wanted |= {name.removeprefix("old_") for name in read} | {step.start}
    if "inputs" in wanted:  # whatever there is
        return [*STEPS]
    return [step for step in STEPS if step.name in wanted]


def _write_markets(folder: Path) -> None:
    """Write a market, and what it was on an earlier day."""
    whole, early = folder / "market", folder / "early"
    for place in (whole, early):
        place.mkdir(parents=True)
    for _ in write_market(MARKET, whole):
        pass
    shutil.copyfile(whole / ITEMS_FILE, early / ITEMS_FILE)
    last = pc.max(pq.read_table(whole / IMPRESSIONS_FILE)[TIMESTAMP]).as_py()
    for name in (INTERACTIONS_FILE, IMPRESSIONS_FILE):
        table = pq.read_table(whole / name)
        known = table.filter(pc.less(table[TIMESTAMP], last - 86_400))
        pq.write_table(known, early / name)


def write_model(folder: Path) -> None:
    """Write a language model of a few thousand random weights that knows letters."""
    folder.mkdir()
    letters = {chr(code): code - 32 for code in range(32, 127)}
    vocabulary = letters | {"<unk>": 95, "<eos>": 96}
    model = {"type": "BPE", "merges": [], "vocab": vocabulary, "unk_token": "<unk>"}
    whole = {"version": "1.0", "added_tokens": [], "model": model}
    (folder / "tokenizer.json").write_text(json.dumps(whole))
    PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"),
        unk_token="<unk>",
        eos_token="<eos>",
    ).save_pretrained(folder)
    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=97,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=512,
    )
    LlamaModel(shape).save_pretrained(folder)
