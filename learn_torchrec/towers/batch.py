"""Tower batches: jagged events, and the content vectors of their distinct items.

Dimension letters: B users, U distinct items of the batch, S history tokens of all
users together, R target tokens, C content dim.
"""

import dataclasses
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

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
from learn_torchrec.movable import Movable
from learn_torchrec.towers.ids import as_kjt
from learn_torchrec.towers.sampling import UserSample
from learn_torchrec.training.batch import PipelineableBatch
from learn_torchrec.training.distributed import rank_share

PADDING = -1


@dataclass
class Past(Movable):
    """What users took up to their anchors, also before the history that is encoded.

    P past tokens of all users together; their content is not read.

    Attributes:
        items: int64 [P], catalogue rows, user after user.
        times: int64 [P], unix seconds.
        lengths: int64 [B].
        anchors: int64 [B, N_h], the batch's anchors as token indices into `items`.
    """

    items: Tensor
    times: Tensor
    lengths: Tensor
    anchors: Tensor


@dataclass
class TowerBatch(PipelineableBatch):
    """One rank's share of a global batch.

    Attributes:
        item_rows: int64 [U], rows of the distinct items in the content store.
        history: int64 [S], indices into `item_rows`, user after user.
        history_lengths: int64 [B].
        history_times: int64 [S], unix seconds.
        history_actions: int16 [S], action codes, see `SequenceSet.actions`.
        target: int64 [R], like `history`; so are its lengths, times and actions.
        target_lengths: int64 [B].
        target_times: int64 [R].
        target_actions: int16 [R].
        anchors: int64 [B, N_h], token indices into `history`, padded with PADDING.
        positives: int64 [B, N_t], token indices into `target`, padded likewise.
        users: int64 [B], indices into the sequence set.
        candidates: int64 [K], indices into `item_rows` of the candidate items; None
            where the positives of the batch are the candidates.
        past: None for towers without a repeat score.
        content: float16 [U, C], content vectors of the distinct items; None until
            `attach_content`.
        item_ids: `item_rows` as a KJT; None until `attach_content`, and for towers
            without an ID table.
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
    past: Past | None = None
    content: Tensor | None = None
    item_ids: KeyedJaggedTensor | None = None


def attach_content(
    batches: Iterable[TowerBatch], store: ContentStore, with_ids: bool = False
) -> Iterator[TowerBatch]:
    """Gather the content vectors of each batch, once per distinct item, as float16.

    `with_ids` attaches the rows as a KJT as well, for a table of item ids.
    """
    for batch in batches:
        rows = batch.item_rows
        yield dataclasses.replace(
            batch,
            content=torch.from_numpy(store.gather(rows.numpy())),
            item_ids=as_kjt(rows) if with_ids else None,
        )


def collate(
    sequences: SequenceSet,
    users: Int64Array,
    samples: list[UserSample],
    num_anchors: int,
    num_positives: int,
    candidates: Int64Array | None = None,
    past_length: int = 0,
) -> TowerBatch:
    """Pack the samples of users, int64 [B], into a batch.

    `candidates`, int64 [K], are store rows; None for the batch's own positives. N_h and
    N_t are `num_anchors` and `num_positives`. Every anchor has a past of up to
    `past_length` events; 0 for none. Users beyond the samples only fill the batch:
    they have no anchor and no positive.
    """
    fill = UserSample(
        **dict.fromkeys(("history", "target"), np.zeros(1, np.int64)),
        **dict.fromkeys(("anchors", "positives"), np.zeros(0, np.int64)),
    )
    samples = [*samples, *[fill] * (len(users) - len(samples))]
    first = sequences.starts[users]
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
        history_times=torch.from_numpy(sequences.times[history].astype(np.int64)),
        history_actions=torch.from_numpy(sequences.actions[history]),
        target=torch.from_numpy(in_target),
        target_lengths=torch.from_numpy(target_lengths),
        target_times=torch.from_numpy(sequences.times[target].astype(np.int64)),
        target_actions=torch.from_numpy(sequences.actions[target]),
        anchors=anchors,
        positives=positives,
        users=torch.from_numpy(np.asarray(users, np.int64)),
        candidates=None if candidates is None else torch.from_numpy(in_candidates),
        past=_past(sequences, first, samples, num_anchors, past_length),
    )


def _past(
    sequences: SequenceSet,
    first: Int64Array,
    samples: list[UserSample],
    num_anchors: int,
    length: int,
) -> Past | None:
    """Return the users' events up to the last anchor, `length` of them to the first.

    `first`, int64 [B], are the users' first events; None for a `length` of 0.
    """
    if not length:
        return None
    events, anchors = [], []
    for sample in samples:
        read = sample.history[sample.anchors]
        ends = read if len(read) else sample.history  # of a user that fills the batch
        events.append(np.arange(max(0, ends[0] + 1 - length), ends[-1] + 1))
        anchors.append(read - events[-1][0])
    past, lengths = _events(first, events)
    return Past(
        items=torch.from_numpy(sequences.items[past].astype(np.int64)),
        times=torch.from_numpy(sequences.times[past].astype(np.int64)),
        lengths=torch.from_numpy(lengths),
        anchors=_token_index(anchors, lengths, num_anchors),
    )


class RankUsers(NamedTuple):
    """A rank's users of a global batch; every rank has the same number.

    Attributes:
        users: int64 [B], B the batch size over the ranks, rounded up.
        share: how many of them are its own; the others only fill the batch.
    """

    users: Int64Array
    share: int

    @property
    def mine(self) -> list[int]:
        """The users of the share."""
        return self.users[: self.share].tolist()


def epoch_users(
    sequences: SequenceSet, *, batch_size: int, seed: int, epoch: int, start: int
) -> Iterator[tuple[int, RankUsers]]:
    """Yield the steps of one pass over the users, with this rank's users of each.

    The order depends only on (seed, epoch). The last, incomplete global batch of
    `batch_size` users is dropped, so every rank takes the same number of steps. `start`
    is the first step to yield, greater than 0 on resume.

    Yields:
        The step and `RankUsers`.

    Raises:
        UserError: the batch size is below the number of ranks, or above the users'.
    """
    _refuse_batch_size(batch_size, len(sequences))
    share = rank_share(batch_size)
    size = -(-batch_size // dist.get_world_size())
    order = np.random.default_rng([seed, epoch]).permutation(len(sequences))
    for step in range(start, len(sequences) // batch_size):
        mine = order[step * batch_size : (step + 1) * batch_size][share]
        users = np.concatenate([mine, np.full(size - len(mine), mine[0])])
        yield step, RankUsers(users, len(mine))


def _events(
    first: Int64Array, chosen: list[Int64Array]
) -> tuple[Int64Array, Int64Array]:
    """Turn per-user event indices into indices of the set; also return lengths [B]."""
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
    if batch_size < dist.get_world_size():
        raise UserError(
            f"towers.training.batch_size={batch_size}: is less than the number of "
            f"ranks, {dist.get_world_size()}; raise it"
        )
    if num_users < batch_size:
        raise UserError(
            f"towers.training.batch_size={batch_size} is more than the {num_users} "
            "training users; make it smaller"
        )
