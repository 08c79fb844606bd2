"""The stages on a tiny market, for injected system errors: see `errno_faults`."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaModel, PreTrainedTokenizerFast

from learn_torchrec.artifact import MANIFEST, file_digest, verify
from learn_torchrec.datasets.generated.market import MarketConfig, write_market

from .stages import content_of as files_of

MARKET = MarketConfig(users=60, items=40, days=12, impressions=3000)
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


@dataclass(frozen=True, kw_only=True)
class ErrnoStep:
    """A command under fault injection.

    Attributes:
        name: of its output.
        command: words of the command line, with `{market}` and, for the outputs of
            earlier steps, `{content}` and the like.
        settings: of `--set`.
        other: settings of an older output that the command replaces; none for none.
        suffix: of the output; "" for an artefact's directory.
    """

    name: str
    command: str
    settings: tuple[str, ...] = ()
    other: tuple[str, ...] = ()
    suffix: str = ""

    def arguments(self, inputs: Path, out: Path, other: bool = False) -> list[str]:
        """Return the arguments of `learn-torchrec` that make `out`."""
        places = {"market": f"parquet:{inputs / 'market'}"}
        places |= {"model": str(inputs / "model")}
        places |= {step.name: str(step.output(inputs)) for step in STEPS}
        settings = [*self.settings, *(self.other if other else ())]
        settings = [text.replace("{model}", places["model"]) for text in settings]
        return [
            *(word.format(**places) for word in self.command.split()),
            *("--out", str(out)),
            *(["--set", *settings] if settings else []),
            *([] if self.suffix else ["--overwrite"]),
        ]

    def output(self, folder: Path) -> Path:
        """Return where the output lies in a folder."""
        return folder / f"{self.name}{self.suffix}"


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
)


def make_inputs(folder: Path, run: Callable[[list[str]], None]) -> None:
    """Make every step's output in `folder`, and its older one in `folder/old`."""
    (folder / "market").mkdir(parents=True)
    for _ in write_market(MARKET, folder / "market"):
        pass
    write_model(folder / "model")
    for step in STEPS:
        run(step.arguments(folder, step.output(folder)))
        if step.other:
            run(step.arguments(folder, step.output(folder / "old"), other=True))


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


def content_of(output: Path) -> str | None:
    """Return a digest of an output that is whole; None if there is none.

    Of an artefact it is the listed files', each compared with its record.
    """
    if not output.exists():
        return None
    if output.is_dir():
        if not (output / MANIFEST).exists():
            return "no manifest"
        kind = json.loads((output / MANIFEST).read_text())["kind"]
        verify(output, kind)
        return json.dumps(files_of(output))
    return file_digest(output)
