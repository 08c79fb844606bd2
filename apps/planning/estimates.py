"""Rough estimates of a pipeline's time, memory and disk, from counts and a probe."""

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from learn_torchrec.content import backbone
from learn_torchrec.content.encoder import cpu_has_bfloat16
from learn_torchrec.content.minilm import MINILM
from learn_torchrec.presets import Run

LAUNCH_SECONDS = 12.0  # torchx, imports, process group
_STEP_SECONDS = 0.05  # of a training step, besides its products
_EFFICIENCY = 0.5  # of a stage's products, beside the probe's
_LETTERS_PER_TOKEN = 4.0
_DIMS = {backbone.SMOLLM2: 576, MINILM: 384}
_PAPER_DIM = 4096  # where the model is not known
_PARAMETERS = {backbone.SMOLLM2: 135e6, MINILM: 22e6}


@dataclass(frozen=True)
class Estimate:
    """What a step takes; orders of magnitude, not promises.

    Attributes:
        step: of the pipeline.
        work: what it works on.
        seconds: of time.
        memory: bytes of all ranks at the peak, besides the processes themselves.
        disk: bytes that it leaves.
    """

    step: str
    work: str
    seconds: float
    memory: float
    disk: float


def estimate(run: Run, counts: Mapping[str, int], ranks: int) -> list[Estimate]:
    """Estimate the steps of the quickstart whose counts are known."""
    rate = _EFFICIENCY * products_per_second()
    if "text_letters" not in counts:  # the items or the model are a problem
        return []
    content = _content(run, counts, rate)
    result = [content]
    if "training_users" in counts:
        result += [
            _towers(run, counts, rate, content.disk),
            _vectors(run, counts, rate),
        ]
    if "training_rows" in counts:
        result += [_ranker(run, counts, ranks), _predictions(counts)]
    return result


def _content(run: Run, counts: Mapping[str, int], rate: float) -> Estimate:
    model = run.content.encoder.model
    tokens = counts["text_letters"] / _LETTERS_PER_TOKEN + 12 * counts["texts"]
    parameters = _parameters(model)
    dim = _DIMS.get(model, _PAPER_DIM) * len(run.content.encoder.layers)
    vectors = 2.0 * counts["items"] * dim
    return Estimate(
        "content",
        f"{counts['items']:,} items, {tokens:,.0f} tokens",
        15 + parameters * tokens / rate,  # large products, near the probe's rate
        4 * parameters + vectors,
        vectors,
    )


def _parameters(model: str) -> float:
    """Return about how many weights a language model has."""
    if model in _PARAMETERS:
        return _PARAMETERS[model]
    files = backbone.find_model(model)
    if files.gguf_path is not None:
        return 2.0 * files.gguf_path.stat().st_size  # four bits each
    if files.is_local:
        parts = (p for p in Path(model).expanduser().iterdir() if p.is_file())
        return sum(part.stat().st_size for part in parts) / 2
    size = re.search(r"(\d+(?:\.\d+)?)\s?([bm])\b", model.lower())
    if size is None:
        return 1e9
    return float(size[1]) * (1e9 if size[2] == "b" else 1e6)


def _towers(
    run: Run, counts: Mapping[str, int], rate: float, content: float
) -> Estimate:
    training, sampling = run.towers.training, run.towers.sampling
    users, events = counts["training_users"], counts["training_events"]
    history = min(events / max(users, 1), sampling.history_length)
    tokens = users * (history + sampling.num_target_samples)
    steps = max(1, users // training.batch_size)
    one_epoch = _STEP_SECONDS * steps + 6 * _weights(run) * tokens / rate
    return Estimate(
        "towers",
        f"{users:,} users, up to {training.epochs} epochs of {steps:,} steps",
        LAUNCH_SECONDS + training.epochs * one_epoch,
        60.0 * counts["events"] + content,
        4.0 * _weights(run),
    )


def _vectors(run: Run, counts: Mapping[str, int], rate: float) -> Estimate:
    dim = run.towers.model.encoder.vector_dim
    snapshots = counts["snapshots"]
    tokens = snapshots * run.towers.sampling.history_length / 2
    rows = snapshots + counts["items"]
    return Estimate(
        "vectors",
        f"{snapshots:,} user vectors of {dim} numbers",
        LAUNCH_SECONDS + 2 * _weights(run) * tokens / rate,
        60.0 * counts["events"],
        rows * dim * (6.0 if run.export.parquet else 2.0),
    )


def _ranker(run: Run, counts: Mapping[str, int], ranks: int) -> Estimate:
    ranker, rows = run.ranker, counts["training_rows"]
    dim = ranker.model.embedding_dim
    # With validation one training stops somewhere, and another takes as many passes.
    validates = ranker.validation.share > 0
    trainings = 2 if validates and ranker.validation.refit else 1
    passes = ranker.training.epochs * trainings
    steps = max(1, rows // ranker.training.batch_size) * passes
    tables = sum(
        feature.table_rows * (4.0 * (feature.embedding_dim or dim) + 4)
        for feature in ranker.features.sparse
        if feature.table is None
    )
    columns = len(ranker.features.sparse) + len(ranker.features.dense) + 4
    held = 0 if ranker.training.stream.enabled else 24.0 * rows * columns * ranks
    seconds = LAUNCH_SECONDS + _STEP_SECONDS * steps
    seconds += rows * passes / 40_000
    return Estimate(
        "rankers",
        f"{rows:,} rows, {'up to ' * validates}{steps:,} steps, without and with LEARN",
        2 * seconds,
        held + 3 * tables,
        2 * tables,
    )


def _predictions(counts: Mapping[str, int]) -> Estimate:
    rows = counts["test_rows"]
    work = f"{rows:,} rows, without and with LEARN"
    seconds = 2 * (LAUNCH_SECONDS + rows / 40_000)
    return Estimate(
        "predictions", work, seconds, 200.0 * min(rows, 1 << 19), 120.0 * rows
    )


def _weights(run: Run) -> float:
    shape = run.towers.model.encoder
    layer = 4 * shape.width**2 + 2 * shape.width * shape.feed_forward_dim
    dim = _DIMS.get(run.content.encoder.model, _PAPER_DIM)
    return float(shape.num_layers * layer + dim * shape.width)


def products_per_second(rounds: int = 20) -> float:
    """Return the FLOP/s of matrix products on this machine's device, at their best."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    is_half = device.type == "cuda" or cpu_has_bfloat16()
    left = torch.randn(1024, 1024, device=device)
    left = left.bfloat16() if is_half else left
    took = []
    for _ in range(rounds):
        start = time.monotonic()
        (left @ left)[0, 0].item()  # waits for the device
        took.append(time.monotonic() - start)
    return float(2 * 1024**3 / min(took))
