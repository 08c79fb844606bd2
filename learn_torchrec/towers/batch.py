"""Batches of the towers: jagged events, and the vectors of their distinct items.

Dimension letters: B users, U distinct items of the batch, S history tokens of all
users together, R target tokens, C content dim.
"""

import dataclasses
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torchrec import KeyedJaggedTensor

from learn_torchrec.arrays import Int64Array
from learn_torchrec.content.store import ContentStore
from learn_torchrec.datasets.sequences import SequenceSet
from learn_torchrec.errors import UserError
from learn_torchrec.jagged import offsets_of
from learn_torchrec.towers.ids import keyed
from learn_torchrec.towers.sampling import UserSample
from learn_torchrec.training.batch import PipelineableBatch
from learn_torchrec.training.distributed import rank_share

PADDING = -1


@dataclass
class TowerBatch(PipelineableBatch):
    """One rank's share of a global batch.

    Attributes:
        item_rows: int64 [U], the distinct items' rows in the content store.
        history: int64 [S], indices into `item_rows`, user after user.
        history_lengths: int64 [B].
        history_times: int64 [S], unix seconds.
        history_actions: int16 [S], codes of the sequence set.
        target: int64 [R].
        target_lengths: int64 [B].
        target_times: int64 [R].
        target_actions: int16 [R].
        anchors: int64 [B, N_h], token indices into `history`; PADDING where a user
            has fewer.
        positives: int64 [B, N_t], token indices into `target`; PADDING likewise.
        users: int64 [B], numbers in the sequence set.
        candidates: int64 [K], indices into `item_rows` of the items that stand for
            the catalogue; None where the positives of the batch do.
        content: float16 [U, C], the distinct items' content vectors; None until
            `attach_content`.
        item_ids: the distinct items' rows again, in the form that TorchRec's tables
            read; None until `attach_content`, and where the towers have no table.
    """

    item_rows: Tensor
    history: Tensor
    history_lengths: Tensor
    history_times: Tensor
    history_actions: Tensor
    target: Tensor
    target_lengths: Tensor
    target_times: Tensor
    target_actions: Tensor
    anchors: Tensor
    positives: Tensor
    users: Tensor
    candidates: Tensor | None = None
    content: Tensor | None = None
    item_ids: KeyedJaggedTensor | None = None


def attach_content(
    batches: Iterable[TowerBatch], store: ContentStore, with_ids: bool = False
) -> Iterator[TowerBatch]:
    """Gather each batch's vectors, once for each distinct item, in half precision.

    Args:
        batches: of ids.
        store: of the content vectors.
        with_ids: give the rows to a table of item ids as well.
    """
    for batch in batches:
        rows = batch.item_rows
        yield dataclasses.replace(
            batch,
            content=torch.from_numpy(store.gather(rows.numpy())),
            item_ids=keyed(rows) if with_ids else None,
        )


def collate(
    sequences: SequenceSet,
    users: Int64Array,
    samples: list[UserSample],
    num_anchors: int,
    num_positives: int,
    candidates: Int64Array | None = None,
) -> TowerBatch:
    """Pack users' samples into a batch.

    Args:
        sequences: of the users.
        users: int64 [B], numbers in it.
        samples: of these users.
        num_anchors: N_h, most anchors of a user.
        num_positives: N_t, most positives of a user.
        candidates: int64 [K], store rows of the items that stand for the catalogue.
    """
    first = sequences.offsets[users]
    history, history_lengths = _events(first, [s.history for s in samples])
    target, target_lengths = _events(first, [s.target for s in samples])
    others = np.zeros(0, np.int64) if candidates is None else candidates
    rows, index = np.unique(
        np.r_[sequences.items[history], sequences.items[target], others],
        return_inverse=True,
    )
    in_history, in_target, in_candidates = np.split(
        index, np.cumsum([len(history), len(target)])
    )
    anchors = _token_index([s.anchors for s in samples], history_lengths, num_anchors)
    positives = _token_index(
        [s.positives for s in samples], target_lengths, num_positives
    )
    return TowerBatch(
        item_rows=torch.from_numpy(rows),
        history=torch.from_numpy(in_history),
        history_lengths=torch.from_numpy(history_lengths),
        history_times=torch.from_numpy(sequences.times[history]),
        history_actions=torch.from_numpy(sequences.actions[history]),
        target=torch.from_numpy(in_target),
        target_lengths=torch.from_numpy(target_lengths),
        target_times=torch.from_numpy(sequences.times[target]),
        target_actions=torch.from_numpy(sequences.actions[target]),
        anchors=anchors,
        positives=positives,
        users=torch.from_numpy(np.asarray(users, np.int64)),
        candidates=None if candidates is None else torch.from_numpy(in_candidates),
    )


def epoch_users(
    sequences: SequenceSet, *, batch_size: int, seed: int, epoch: int, start: int
) -> Iterator[tuple[int, Int64Array]]:
    """Yield the steps of one pass over the users, with this rank's users of each.

    The order of the users follows from (seed, epoch) alone. The last, incomplete
    global batch is left out, so every rank takes the same number of steps.

    Args:
        sequences: the training users.
        batch_size: users in a global batch; a multiple of the number of ranks.
        seed: of the run.
        epoch: number of the pass.
        start: steps that are left out, an earlier run having taken them.

    Yields:
        The step and int64 [batch_size / ranks].

    Raises:
        UserError: the batch size fits neither the ranks nor the users.
    """
    _refuse_batch_size(batch_size, len(sequences))
    share = rank_share(batch_size)
    order = np.random.default_rng([seed, epoch]).permutation(len(sequences))
    for step in range(start, len(sequences) // batch_size):
        yield step, order[step * batch_size : (step + 1) * batch_size][share]


def _events(
    first: Int64Array, chosen: list[Int64Array]
) -> tuple[Int64Array, Int64Array]:
    """Turn numbers of users' events into those of the set; also return lengths [B]."""
    lengths = np.array([len(part) for part in chosen])
    return np.concatenate(chosen) + np.repeat(first, lengths), lengths


def _token_index(chosen: list[Int64Array], lengths: Int64Array, width: int) -> Tensor:
    """Turn positions within each user's sequence into token indices, padded."""
    padded = np.full((len(chosen), width), PADDING, np.int64)
    starts = offsets_of(lengths)
    for row, positions in enumerate(chosen):
        padded[row, : len(positions)] = positions + starts[row]
    return torch.from_numpy(padded)


def _refuse_batch_size(batch_size: int, num_users: int) -> None:
    if batch_size % dist.get_world_size():
        raise UserError(
            f"towers.training.batch_size={batch_size} must be a multiple of the "
            f"number of ranks, {dist.get_world_size()}"
        )
    if num_users < batch_size:
        raise UserError(
            f"towers.training.batch_size={batch_size} is more than the {num_users} "
            "training users; make it smaller"
        )
