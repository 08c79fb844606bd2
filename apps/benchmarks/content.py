"""Tokens a second of content extraction.

- `over_one_by_one`: speed of batches by token budget, relative to one item at a time as
  in the authors' code, with the same model and dtype.
- `gemm_share`: share of the time that the model's matrix products alone take on this
  machine. Both are measured in the dtype that `auto` chooses here, and in float32.
- `over_sentence_transformers`: speed relative to that package's `encode` with its own
  settings and the same model (MiniLM), in float32.
"""

import importlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from learn_torchrec.content.backbone import find_model
from learn_torchrec.content.encoder import ContentEncoder, EncoderConfig
from learn_torchrec.content.minilm import MINILM
from learn_torchrec.content.prompt import PromptConfig, render
from learn_torchrec.datasets import open_dataset

from ..common.hardware import describe_machine
from ..common.program import run
from . import measure
from .measure import bare_products, interleaved_medians

_REPEATS = 3


def sample_texts(data: str, count: int) -> list[str]:
    """Return the prompts of `count` items spread over a catalogue."""
    items = open_dataset(data).items
    rows = np.linspace(0, items.num_rows - 1, count).astype(np.int64)
    return render(items.take(rows), PromptConfig())


def linear_shapes(
    encoder: ContentEncoder, texts: list[str]
) -> list[tuple[int, int, int, int]]:
    """Return (m, k, n, count) of every matrix product of encoding `texts`."""
    shapes: dict[tuple[int, int, int], int] = {}

    def record(module: Any, inputs: tuple[torch.Tensor, ...], _: Any) -> None:
        rows = inputs[0].numel() // module.in_features
        shape = rows, module.in_features, module.out_features
        shapes[shape] = shapes.get(shape, 0) + 1

    hooks = [
        module.register_forward_hook(record)
        for module in encoder.model.modules()
        if isinstance(module, torch.nn.Linear)
    ]
    encoder.encode(texts)
    for hook in hooks:
        hook.remove()
    return [(*shape, count) for shape, count in shapes.items()]


def sentence_transformer(model: str, texts: list[str]) -> Callable[[], object]:
    """Return the other library's encoding of `texts`, with its own settings."""
    module = importlib.import_module("sentence_transformers")
    encoder = module.SentenceTransformer(find_model(model).name, device="cpu")
    return lambda: encoder.encode(texts, show_progress_bar=False)


def measure_encoder(config: EncoderConfig, texts: list[str]) -> dict[str, Any]:
    """Return the figures of one model."""
    encoder = ContentEncoder(config)
    tokens = sum(map(len, encoder.tokenizer(texts)["input_ids"]))
    products = bare_products(linear_shapes(encoder, texts), encoder.dtype)
    seconds = interleaved_medians(
        {
            "batches": lambda: encoder.encode(texts),
            "one_by_one": lambda: [encoder.encode([text]) for text in texts],
            "products": products,
        },
        repeats=_REPEATS,
    )
    return {
        "model": config.model,
        "dtype": str(encoder.dtype).removeprefix("torch."),
        "items": len(texts),
        "tokens_per_s": round(tokens / seconds["batches"], 1),
        "over_one_by_one": round(seconds["one_by_one"] / seconds["batches"], 2),
        "gemm_share": round(seconds["products"] / seconds["batches"], 2),
    }


def over_sentence_transformers(model: str, texts: list[str]) -> float:
    """Return our speed relative to the other library's: same model, float32."""
    ours = ContentEncoder(EncoderConfig(model=model, dtype="float32", device="cpu"))
    seconds = interleaved_medians(
        {
            "ours": lambda: ours.encode(texts),
            "theirs": sentence_transformer(model, texts),
        },
        repeats=_REPEATS,
    )
    return round(seconds["theirs"] / seconds["ours"], 2)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print; with --json also write the results."""
    parser = measure.parser("content", __doc__)
    parser.add_argument(
        "--data", default="movielens:auto", metavar="ADAPTER:PATH", help="whose texts"
    )
    parser.add_argument("--model", default="smollm2", metavar="MODEL", help="to time")
    parser.add_argument(
        "--items", type=int, default=128, metavar="N", help="texts to encode"
    )
    parser.add_argument(
        "--sentence-model",
        default=MINILM,
        metavar="MODEL",
        help="a model that both libraries can load",
    )
    args = parser.parse_args(argv)
    measure.require(sentence_transformers="sentence-transformers")
    for model in (args.model, args.sentence_model):
        find_model(model)
    texts = sample_texts(args.data, args.items)
    results: dict[str, Any] = {
        "machine": describe_machine(),
        **measure_encoder(EncoderConfig(model=args.model), texts),
        "float32": measure_encoder(
            EncoderConfig(model=args.model, dtype="float32"), texts
        ),
        "over_sentence_transformers": over_sentence_transformers(
            args.sentence_model, texts
        ),
    }
    measure.publish(results, args.json)


if __name__ == "__main__":
    run(main)
