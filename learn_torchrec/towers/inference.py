"""Vectors from trained towers: the catalogue, and users at any point in time.

Dimension letters: E events, W windows, C content dim, D vector dim.
"""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from learn_torchrec.arrays import Int64Array
from learn_torchrec.content.store import ContentStore
from learn_torchrec.datasets.sequences import SequenceSet
from learn_torchrec.jagged import spread
from learn_torchrec.towers.ids import as_kjt
from learn_torchrec.towers.model import TwinTower
from learn_torchrec.towers.repeat import RepeatedItems
from learn_torchrec.training.batch import to_device

_TOKENS_PER_BATCH = 16_384


@torch.no_grad()
def encode_catalogue(
    towers: TwinTower, store: ContentStore, rows: Int64Array, device: torch.device
) -> Tensor:
    """Encode items, given by store rows int64 [n], each on its own.

    Returns:
        float32 [n, D] on the CPU, unit vectors.
    """
    parts = [torch.empty(0, _dim(towers))]
    for start in range(0, len(rows), _TOKENS_PER_BATCH):
        part = rows[start : start + _TOKENS_PER_BATCH]
        content, id_vectors = _inputs(towers, store, part, device)
        items = torch.arange(len(part), device=device)
        parts.append(towers.encode_items(content, items, id_vectors).cpu())
    return torch.cat(parts)


def history_windows(
    sequences: SequenceSet, events: Int64Array, length: int
) -> tuple[Int64Array, Int64Array]:
    """Return the window of the most recent events that ends with each of some events.

    Returns:
        First and one-past-last event index of each window, int64 [n] each; a window
        has at most `length` events of its user.
    """
    user_starts = sequences.starts[sequences.owners(events)]
    ends = events + 1
    return np.maximum(user_starts, ends - length), ends


def encode_histories(
    towers: TwinTower,
    store: ContentStore,
    sequences: SequenceSet,
    events: Int64Array,
    history_length: int,
    device: torch.device,
) -> Tensor:
    """Return all of `history_vectors`, float32 [n, D]."""
    parts = history_vectors(towers, store, sequences, events, history_length, device)
    return torch.cat([torch.empty(0, _dim(towers)), *parts])


@torch.no_grad()
def history_vectors(
    towers: TwinTower,
    store: ContentStore,
    sequences: SequenceSet,
    events: Int64Array,
    history_length: int,
    device: torch.device,
    on_progress: Callable[[int, int], None] | None = None,
) -> Iterator[Tensor]:
    """Encode users at a point in time: after each of some of their events.

    The vector after event e is the user tower's over the at most `history_length`
    most recent events up to and including e. Events within the first
    `history_length` of a user share one causal pass. The towers must be in evaluation
    mode; `events` are ascending int64 [n]. `on_progress` is called with the number of
    events done and the total.

    Yields:
        float32 [., D] on the CPU, unit vectors of the next events.
    """
    done = 0
    for starts, ends, reads in _batches(sequences, events, history_length):
        tokens, first = _tokens(starts, ends)
        rows, items = np.unique(
            sequences.items[tokens].astype(np.int64), return_inverse=True
        )
        window = np.searchsorted(ends, reads + 1)
        read = first[window] + reads - starts[window]
        content, id_vectors = _inputs(towers, store, rows, device)
        vectors = towers.encoder(
            content,
            to_device(items, device),
            to_device(ends - starts, device),
            read=to_device(read, device),
            id_vectors=id_vectors,
            times=to_device(sequences.times[tokens].astype(np.int64), device),
            actions=to_device(sequences.actions[tokens], device),
        )
        done += len(reads)
        if on_progress is not None:
            on_progress(done, len(events))
        yield vectors.cpu()


@torch.no_grad()
def repeat_scores(
    towers: TwinTower, sequences: SequenceSet, events: Int64Array
) -> RepeatedItems | None:
    """Score past items after one event of each user, see `RepeatConsumption`.

    `events` are int64 [n], ascending.

    Returns:
        Anchors index `events`, items are store rows, on the towers' device; None where
        the towers have no such score or there are no events.
    """
    if towers.repeat is None or len(events) == 0:
        return None
    starts, ends = history_windows(sequences, events, towers.repeat.length)
    lengths = ends - starts
    tokens, first = _tokens(starts, ends)
    device = towers.repeat.weight.device
    return towers.repeat(
        to_device(sequences.items[tokens].astype(np.int64), device),
        to_device(sequences.times[tokens].astype(np.int64), device),
        to_device(lengths, device),
        to_device(first + lengths - 1, device).unsqueeze(1),
    )


def _tokens(starts: Int64Array, ends: Int64Array) -> tuple[Int64Array, Int64Array]:
    """Return the events of all windows, and the position of each window's first."""
    tokens, offsets = spread(starts, ends - starts)
    return tokens, offsets[:-1]


def _dim(towers: TwinTower) -> int:
    """Return D."""
    return towers.encoder.vector_projection.out_features


def _inputs(
    towers: TwinTower, store: ContentStore, rows: Int64Array, device: torch.device
) -> tuple[Tensor, Tensor | None]:
    """Return the towers' input for items: content [U, C], ID vectors [U, W] or None."""
    content = to_device(store.gather(rows), device)
    return content, towers.id_vectors(as_kjt(to_device(rows, device)))


def _batches(
    sequences: SequenceSet, events: Int64Array, history_length: int
) -> Iterator[tuple[Int64Array, Int64Array, Int64Array]]:
    """Group the events into windows, and windows into batches.

    Yields:
        Windows (starts, ends), ascending by end, and the events to read from them,
        ascending.
    """
    if len(events) == 0:
        return
    owners = sequences.owners(events)
    in_first_window = events < sequences.starts[owners] + history_length
    # Events within a user's first window share the window of the last of them.
    last = np.r_[owners[1:] != owners[:-1], True]
    last |= np.r_[~in_first_window[1:], True]
    window_event = np.where(in_first_window, -1, events)
    closing = in_first_window & last
    window_event[closing] = events[closing]
    # Every event reads from the window of the next event that has one.
    windows = events[window_event >= 0]
    owner = np.searchsorted(windows, events)
    starts, ends = history_windows(sequences, windows, history_length)
    costs = np.cumsum(ends - starts)
    batch = costs // _TOKENS_PER_BATCH
    # Both ascend, so a batch is a slice of the windows and a slice of the events.
    firsts = np.searchsorted(batch, np.unique(batch)[1:])
    first_reads = np.searchsorted(owner, firsts)
    yield from zip(
        np.split(starts, firsts),
        np.split(ends, firsts),
        np.split(events, first_reads),
        strict=True,
    )
