"""The towers beside the reference execution: the same work, timed in turns.

The reference executes as the authors' public code does: `transformers`' BERT encoder,
histories and targets padded to H and T, float32 content vectors [B, L, C] collated
sample by sample. It gets our weights and our batch, and its loss must equal ours before
anything is timed.
"""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import BertConfig
from transformers.models.bert.modeling_bert import BertEncoder

from learn_torchrec.content.encoder import cpu_has_bfloat16
from learn_torchrec.content.store import KIND, ContentStore, write_content_store
from learn_torchrec.datasets.sequences import SequenceSet
from learn_torchrec.jagged import offsets_of
from learn_torchrec.publish import write_artifact
from learn_torchrec.towers.batch import TowerBatch, attach_content, collate
from learn_torchrec.towers.encoder import PreferenceEncoder
from learn_torchrec.towers.encoders.architecture import EncoderShape
from learn_torchrec.towers.encoders.transformer import TransformerLayer
from learn_torchrec.towers.model import TwinTower
from learn_torchrec.towers.objectives.config import LossConfig
from learn_torchrec.towers.objectives.dense_all_action import (
    DenseAllAction,
    dense_all_action_loss,
)
from learn_torchrec.towers.sampling import SamplingConfig, UserSample
from learn_torchrec.towers.task import TwinTowerTrain
from learn_torchrec.training.optim import OptimizerConfig, dense_optimizer

from ..common import options
from ..common.hardware import describe_machine
from . import measure

TOLERANCE = 1e-5
USERS = 30
SAMPLING = SamplingConfig()
CONTENT_DIM = 4096
CATALOGUE = 10_000
TEMPERATURE = 0.05


@dataclass(frozen=True)
class Work:
    """The users of one batch, their samples and the store of their content vectors."""

    sequences: SequenceSet
    samples: list[UserSample]
    store: ContentStore


def make_work(directory: Path) -> Work:
    """Draw users whose lengths are uniform from 1 to H and to T: half full."""
    random = np.random.default_rng(0)
    vectors = random.standard_normal((CATALOGUE, CONTENT_DIM), np.float32)
    with write_artifact(directory, kind=KIND, config={}, inputs={}) as working:
        write_content_store(working, pa.array(range(CATALOGUE)), vectors)
    samples, rows = [], []
    lengths = [
        random.permutation(np.linspace(1, longest, USERS).astype(int))
        for longest in (SAMPLING.history_length, SAMPLING.target_length)
    ]
    for both in zip(*lengths, strict=True):
        rows += [random.choice(CATALOGUE, length) for length in both]
        anchors, positives = (
            np.sort(random.permutation(length)[:10]) for length in both
        )
        history, target = np.split(np.arange(sum(both)), both[:1])
        samples.append(
            UserSample(
                history=history, target=target, anchors=anchors, positives=positives
            )
        )
    items = np.concatenate(rows)
    sequences = SequenceSet.of_offsets(
        user_ids=pa.array(range(USERS)),
        offsets=offsets_of(np.sum(lengths, axis=0)),
        items=items,
        times=np.arange(len(items)),
        actions=np.zeros(len(items), np.int16),
        action_names=("buy",),
    )
    return Work(sequences, samples, ContentStore.open(directory))


class Reference(nn.Module):
    """Padded BERT with the weights of a `PreferenceEncoder`."""

    def __init__(self, ours: PreferenceEncoder, dropout: float) -> None:
        super().__init__()
        paper = EncoderShape()
        shape = BertConfig(
            hidden_size=paper.width,
            num_hidden_layers=paper.num_layers,
            num_attention_heads=paper.num_heads,
            intermediate_size=paper.feed_forward_dim,
            hidden_dropout_prob=dropout,
            attention_probs_dropout_prob=dropout,
        )
        self.encoder = BertEncoder(shape)
        self.adaptor = nn.Linear(CONTENT_DIM, shape.hidden_size)
        self.head = nn.Linear(shape.hidden_size, paper.vector_dim)
        self._copy(ours)

    @torch.no_grad()
    def _copy(self, ours: PreferenceEncoder) -> None:
        self.adaptor.weight.copy_(ours.get_parameter("content_projection.weight"))
        self.adaptor.bias.copy_(ours.get_parameter("content_projection.bias"))
        self.head.load_state_dict(ours.vector_projection.state_dict())
        layers = [m for m in ours.modules() if isinstance(m, TransformerLayer)]
        for theirs, layer in zip(self.encoder.layer, layers, strict=True):
            attention = theirs.attention.self
            for kind in ("weight", "bias"):
                parts = getattr(layer.query_key_value, kind).chunk(3)
                for name, part in zip(("query", "key", "value"), parts, strict=True):
                    getattr(getattr(attention, name), kind).copy_(part)
            pairs: list[tuple[Any, Any]] = [
                (theirs.attention.output.dense, layer.attention_output),
                (theirs.attention.output.LayerNorm, layer.attention_norm),
                (theirs.intermediate.dense, layer.feed_forward_in),
                (theirs.output.dense, layer.feed_forward_out),
                (theirs.output.LayerNorm, layer.feed_forward_norm),
            ]
            for module, source in pairs:
                module.load_state_dict(source.state_dict())

    def encode(self, content: Tensor, mask: Tensor) -> Tensor:
        """Encode float32 [B, L, C] with mask [B, L] into unit vectors [B, L, D]."""
        length = mask.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool).tril()
        allowed = causal[None] & mask[:, None, :]
        additive = (~allowed)[:, None].float() * -10_000.0
        tokens = self.encoder(
            self.adaptor(content), attention_mask=additive
        ).last_hidden_state
        return F.normalize(self.head(tokens).float(), dim=-1)

    def forward(
        self, batch: dict[str, Tensor], dtype: torch.dtype = torch.float32
    ) -> Tensor:
        """Return the dense all-action loss from one matrix of all logits.

        As in ours, matrix products are in `dtype`, vectors and loss in float32.
        """
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            users = self.encode(batch["history"], batch["history_mask"])
            items = self.encode(batch["target"], batch["target_mask"])
        rows = torch.arange(USERS)[:, None]
        anchors = users[rows, batch["anchors"].clamp(min=0)]
        positives = items[rows, batch["positives"].clamp(min=0)]
        real = batch["positives"] >= 0
        ids = batch["ids"].masked_fill(~real, -1)
        own = torch.einsum("ajd,akd->ajk", anchors, positives) / TEMPERATURE
        logits = torch.einsum("ajd,bkd->ajbk", anchors, positives) / TEMPERATURE
        wanted = batch["target_ids"]  # [B, T]: all targets, sampled or not
        hit = (wanted[:, :, None, None] == ids[None, None]).any(1)  # [B, B, N_t]
        hit |= torch.eye(USERS, dtype=torch.bool)[:, :, None] | ~real[None]
        logits = logits.masked_fill(hit[:, None], -torch.inf)
        negatives = logits.flatten(2).logsumexp(-1)
        losses = F.softplus(negatives[:, :, None] - own)
        pairs = (batch["anchors"] >= 0)[:, :, None] & real[:, None]
        return losses[pairs].mean()


def reference_batch(work: Work) -> dict[str, Tensor]:
    """Build the padded batch sample by sample, as a `Dataset` would."""
    parts = [_padded_sample(work, user) for user in range(USERS)]
    return {name: torch.stack([part[name] for part in parts]) for name in parts[0]}


def _padded_sample(work: Work, user: int) -> dict[str, Tensor]:
    result = {}
    sample, events = work.samples[user], work.sequences.of(user)
    history, target = events[sample.history], events[sample.target]
    for name, rows, longest in (
        ("history", history, SAMPLING.history_length),
        ("target", target, SAMPLING.target_length),
    ):
        content = np.zeros((longest, CONTENT_DIM), np.float32)
        for position, row in enumerate(rows):
            content[position] = work.store.vectors[row]
        result[name] = torch.from_numpy(content)
        result[f"{name}_mask"] = torch.arange(longest) < len(rows)
    for name, positions in (
        ("anchors", sample.anchors),
        ("positives", sample.positives),
    ):
        padded = np.full(10, -1, np.int64)
        padded[: len(positions)] = positions
        result[name] = torch.from_numpy(padded)
    items = target[np.maximum(result["positives"].numpy(), 0)]
    result["ids"] = torch.from_numpy(items)
    wanted = np.full(SAMPLING.target_length, -2, np.int64)  # equals no candidate
    wanted[: len(target)] = target
    result["target_ids"] = torch.from_numpy(wanted)
    return result


def our_ids(work: Work) -> TowerBatch:
    """Build what our loader yields: jagged ids."""
    return collate(
        work.sequences,
        np.arange(USERS),
        work.samples,
        SAMPLING.num_history_samples,
        SAMPLING.num_target_samples,
    )


def our_batch(work: Work) -> TowerBatch:
    """Build our whole batch: ids, and each distinct vector once in half precision."""
    return next(attach_content([our_ids(work)], work.store))


def paper_encoder(dropout: float) -> PreferenceEncoder:
    """Return the paper's encoder, without positions and input norm as the reference."""
    torch.manual_seed(0)
    shape = EncoderShape(max_positions=0, dropout=dropout)
    return PreferenceEncoder(torch.zeros(CONTENT_DIM), torch.ones(CONTENT_DIM), shape)


def training_steps(
    work: Work, dtype: torch.dtype
) -> tuple[dict[str, Callable[[], object]], float]:
    """Return one training step of each contender, and the difference of their losses.

    Raises:
        AssertionError: the losses differ by more than the tolerance.
    """
    ours, theirs = our_batch(work), reference_batch(work)
    encoder = paper_encoder(dropout=0.0)
    config = LossConfig()
    objective = DenseAllAction(config, SAMPLING, torch.ones(CATALOGUE))
    task = TwinTowerTrain(TwinTower(encoder, "causal"), objective, config)
    with torch.no_grad():
        loss = task(ours)[0].item()
        reference_loss = Reference(encoder, dropout=0.0)(theirs).item()
    difference = float(abs(loss - reference_loss) / reference_loss)
    if difference > TOLERANCE:
        raise AssertionError(f"losses differ: {loss} and {reference_loss}")
    encoder = paper_encoder(dropout=0.1)
    encoder.precision = dtype
    task = TwinTowerTrain(TwinTower(encoder, "causal"), objective, config)
    reference = Reference(encoder, dropout=0.1)
    optimizer = dense_optimizer(
        task.named_parameters(), OptimizerConfig(max_grad_norm=0.0)
    )
    reference_optimizer = torch.optim.AdamW(
        reference.parameters(), lr=5e-5, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.0
    )
    steps: dict[str, Callable[[], object]] = {
        "ours": _step(lambda: task(ours)[0], optimizer),
        "reference": _step(lambda: reference(theirs, dtype), reference_optimizer),
    }
    return steps, difference


def _step(
    loss: Callable[[], Tensor], optimizer: torch.optim.Optimizer
) -> Callable[[], None]:
    def run() -> None:
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()

    return run


def linear_products(work: Work) -> list[tuple[int, int, int, int]]:
    """Return the matrix products that a step needs at least: (m, k, n, count).

    Each linear layer's forward [m, k] x [k, n], and the gradients of its input
    [m, n] x [n, k] and of its weight [n, m] x [m, k], on real tokens only.
    """
    shape = EncoderShape()
    result = []
    for rows in (
        sum(len(sample.history) for sample in work.samples),
        sum(len(sample.target) for sample in work.samples),
    ):
        width, inner = shape.width, shape.feed_forward_dim
        for k, n in (
            (width, 3 * width),
            (width, width),
            (width, inner),
            (inner, width),
        ):
            layers = shape.num_layers
            result += [(rows, k, n, layers), (rows, n, k, layers), (n, rows, k, layers)]
    batch = our_batch(work)
    # Content needs no gradient: only the forward and the weight's gradient.
    items = len(batch.item_rows)
    result.append((items, CONTENT_DIM, shape.width, 1))
    result.append((shape.width, items, CONTENT_DIM, 1))
    return result


def measure_training(work: Work, dtype: torch.dtype, repeats: int) -> dict[str, Any]:
    """Time training steps; see the module's docstring."""
    steps, difference = training_steps(work, dtype)
    steps["products"] = measure.bare_products(linear_products(work), dtype)
    seconds = measure.interleaved_medians(steps, repeats)
    return {
        "users_per_s": USERS / seconds["ours"],
        "reference_users_per_s": USERS / seconds["reference"],
        "users_per_s_ratio": seconds["reference"] / seconds["ours"],
        "gemm_share": seconds["products"] / seconds["ours"],
        "reference_gemm_share": seconds["products"] / seconds["reference"],
        "loss_difference": difference,
    }


def mean_fill(work: Work) -> float:
    """Return the share of the padded H + T positions that hold an event."""
    real = sum(len(sample.history) + len(sample.target) for sample in work.samples)
    return real / (USERS * (SAMPLING.history_length + SAMPLING.target_length))


def measure_loader(work: Work, repeats: int) -> dict[str, float]:
    """Time the data path alone, and count the bytes that leave the loader.

    Ours yields ids; `loader_with_vectors_ratio` includes gathering the vectors, which
    the training process does.
    """
    seconds = measure.interleaved_medians(
        {
            "ids": lambda: our_ids(work),
            "batch": lambda: our_batch(work),
            "reference": lambda: reference_batch(work),
        },
        repeats,
    )
    ours = sum(x.nbytes for x in vars(our_ids(work)).values() if x is not None)
    theirs = sum(x.nbytes for x in reference_batch(work).values())
    return {
        "loader_samples_per_s_ratio": seconds["reference"] / seconds["ids"],
        "loader_with_vectors_ratio": seconds["reference"] / seconds["batch"],
        "content_bytes_ratio": ours / theirs,
    }


def loss_problem(num_users: int, naive: bool) -> Callable[[], None]:
    """Return one loss and its gradient for users x 10 anchors x 10 positives."""
    random = torch.Generator().manual_seed(0)
    anchors, positives = (
        F.normalize(torch.randn(num_users, 10, 64, generator=random), dim=-1)
        for _ in range(2)
    )
    items = torch.randint(0, 1_000_000, (num_users, 10), generator=random)
    mask = torch.ones(num_users, 10, dtype=torch.bool)
    anchors.requires_grad_()
    positives.requires_grad_()

    def run() -> None:
        if naive:
            loss = naive_loss(anchors, positives, items)
        else:
            loss = dense_all_action_loss(
                anchors, positives, mask, items, temperature=TEMPERATURE
            )
        loss.backward()

    return run


def loss_memory_mb(num_users: int, naive: bool) -> float:
    """Return the memory that a loss and its gradient take."""
    return measure.memory_increase_mb(loss_problem(num_users, naive))


def naive_loss(anchors: Tensor, positives: Tensor, items: Tensor) -> Tensor:
    """Return the loss from one matrix of all anchors and all candidates."""
    users, count = items.shape
    logits = anchors.flatten(0, 1) @ positives.flatten(0, 1).T / TEMPERATURE
    hit = (items[:, :, None] == items.flatten()).any(1)  # [B, B * N_t]
    hit |= (
        torch.arange(users)[:, None]
        == torch.arange(users).repeat_interleave(count)[None]
    )
    logits = logits.masked_fill(
        hit.repeat_interleave(anchors.shape[1], dim=0), -torch.inf
    )
    negatives = logits.logsumexp(-1).unflatten(0, anchors.shape[:2])
    own = torch.einsum("ajd,akd->ajk", anchors, positives) / TEMPERATURE
    return F.softplus(negatives[:, :, None] - own).mean()


def measure_loss_memory() -> dict[str, float]:
    """Return the peak memory of both losses at 4,096 users.

    The naive loss is measured at 1,024 users, where it fits: all its matrices are
    anchors x candidates, so four times the users take sixteen times the memory.
    """
    ours, naive = (
        measure.in_fresh_process("towers", "loss_memory_mb", *arguments)
        for arguments in ((4096, False), (1024, True))
    )
    naive *= 16
    return {
        "loss_peak_mb": ours,
        "naive_loss_peak_mb": naive,
        "loss_memory_ratio": ours / naive,
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print; write JSON where asked."""
    parser = measure.parser("towers", __doc__)
    parser.add_argument(
        "--repeats", type=int, default=3, metavar="N", help="timed rounds"
    )
    args = parser.parse_args(argv)
    result: dict[str, Any] = {"machine": describe_machine()}
    result |= measure_loss_memory()
    with tempfile.TemporaryDirectory() as directory:
        work = make_work(Path(directory) / "content")
        result["mean_fill"] = mean_fill(work)
        result |= measure_loader(work, repeats=5)
        result["float32"] = measure_training(work, torch.float32, args.repeats)
        result["bfloat16"] = (
            measure_training(work, torch.bfloat16, args.repeats)
            if cpu_has_bfloat16()
            else {"skipped": "this processor has no bfloat16 arithmetic"}
        )
    result["loss_difference"] = result["float32"]["loss_difference"]
    rates = [result[name].get("users_per_s", 0.0) for name in ("float32", "bfloat16")]
    reference = result["float32"]["reference_users_per_s"]
    result["best_over_reference_default"] = max(rates) / reference
    measure.publish(result, args.json)


if __name__ == "__main__":
    options.run(main)
