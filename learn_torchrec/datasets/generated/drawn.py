"""Impressions drawn from a log that has none: what a visit took, and what it did not.

A visit is a run of a user's events with gaps of at most `gap` seconds; its time is that
of its first event. Its candidates are the items known at that time: in the log before,
or arrived by then. Those that the visit took are its positives. For each of them
`negatives` others are drawn with replacement, those that it took excepted; one that is
drawn twice is one row. A positive that was not known is no candidate and is left out:
no negative could be as new, so that being new would tell the label.

`sampling_rate` is the probability that a visit's row would have been drawn had it not
been taken: the odds of a model that is trained on the rows, times the rate, are those
among all candidates. It is no feature, and no weight.

Everything follows from the log and the seed, whatever the order of the log's rows.

Letters: E events, N items, V visits, n rows.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, NonNegativeInt, PositiveInt

from learn_torchrec.arrays import Float64Array, Int64Array
from learn_torchrec.config import configuration
from learn_torchrec.datasets.adapters.base import Dataset
from learn_torchrec.datasets.sequences import refuse_unknown_actions
from learn_torchrec.datasets.split import moment
from learn_torchrec.errors import UserError, require_columns
from learn_torchrec.jagged import offsets_of
from learn_torchrec.schema import (
    ACTION,
    ITEM_ID,
    ITEMS_FILE,
    LABEL,
    SAMPLING_RATE,
    TIMESTAMP,
    USER_ID,
)
from learn_torchrec.times import as_seconds

KIND = "drawn"
_BLOCK = 32_768  # positives that are drawn for together
# With fewer of its candidates left (by chance of being drawn), a visit gets no rows.
_LEAST_FREE = 0.1
_NEVER = np.iinfo(np.int64).max


@configuration
class DrawConfig:
    """How impressions are drawn.

    Attributes:
        start: only visits from then on: a share of the log, a date or unix seconds.
        actions: events that take an item; none for all actions.
        gap: seconds between events of one visit, at most; 0: events of one second.
        negatives: drawn for each positive.
        by: `popularity`: an item's chance is its number of earlier events plus one;
            `uniform`: all have the same.
        arrival: column of the items with the time from which each exists; none for the
            time after its first event. An item is known after its first event anyway.
        seed: of the draws.
    """

    start: str = "50%"
    actions: tuple[str, ...] = ()
    gap: NonNegativeInt = 1800
    negatives: PositiveInt = 8
    by: Literal["popularity", "uniform"] = "popularity"
    arrival: str = ""
    seed: Annotated[int, Field(ge=0)] = 0


@dataclass(frozen=True)
class _Visits:
    """Visits in order of time, and what each took.

    Attributes:
        users: int64 [V], numbers of users.
        times: int64 [V], unix seconds.
        offsets: int64 [V + 1], of each visit's items.
        items: int64, rows of the item table, ascending within a visit.
    """

    users: Int64Array
    times: Int64Array
    offsets: Int64Array
    items: Int64Array


class _Candidates:
    """The items known at a time, each with its chance of being drawn.

    Args:
        known_from: int64 [N], the first time at which each item is known.
        items: int64 [E], of the events that make an item popular, in order of time.
        times: int64 [E], unix seconds.
    """

    def __init__(
        self, known_from: Int64Array, items: Int64Array, times: Int64Array
    ) -> None:
        self._by_arrival = np.argsort(known_from, kind="stable")
        self._arrivals = known_from[self._by_arrival]
        self._events, self._times = np.append(items, 0), times
        self._stride = len(items) + 1
        self._keys = np.sort(items * self._stride + np.arange(len(items)))

    def known(self, times: Int64Array) -> Int64Array:
        """Return how many items are known at each time."""
        return np.searchsorted(self._arrivals, times, side="right")

    def total(self, times: Int64Array) -> Int64Array:
        """Return the chances of all known items together."""
        return self.known(times) + np.searchsorted(self._times, times)

    def chances(self, items: Int64Array, times: Int64Array) -> Int64Array:
        """Return 1 plus the events of each item strictly before each time."""
        first = items * self._stride
        end = first + np.searchsorted(self._times, times)
        before = np.searchsorted(self._keys, [end, first])
        return 1 + before[0] - before[1]

    def draw(self, times: Int64Array, random: np.random.Generator) -> Int64Array:
        """Draw a known item at each time by its chance, int64 of the times' shape."""
        known = self.known(times)
        places = random.integers(0, self.total(times))
        of_events = self._events[np.maximum(places - known, 0)]
        of_known = self._by_arrival[np.minimum(places, known - 1)]
        return np.where(places < known, of_known, of_events)


class Drawing:
    """Impressions of a data set's visits, drawn block by block.

    Args:
        dataset: with interactions.
        config: see `DrawConfig`.

    Attributes:
        first: of the visits' times, unix seconds.
        counts: `visits`, `positives`, `negatives`, and what was left out: `new`, taken
            items that were not known, and `crowded`, visits that took nearly all;
            complete after `blocks`.

    Raises:
        UserError: a column of arrivals that is missing or holds no times, actions that
            the log lacks, or no visit with a candidate at or after `config.start`.
    """

    def __init__(self, dataset: Dataset, config: DrawConfig) -> None:
        self._config, log = config, dataset.interactions
        self._item_ids = dataset.items[ITEM_ID].combine_chunks()
        times = log[TIMESTAMP].to_numpy()
        items = pc.index_in(log[ITEM_ID], value_set=self._item_ids).to_numpy()
        items = items.astype(np.int64)
        self.first = moment("--from", config.start, times)
        self._user_ids, users = _ranked(log[USER_ID].combine_chunks())
        known_from = np.full(len(self._item_ids), _NEVER)
        np.minimum.at(known_from, items, times + 1)
        if config.arrival:
            known_from = np.minimum(known_from, _arrivals(dataset, config.arrival))
        if config.actions:
            present = log[ACTION].unique().to_pylist()
            refuse_unknown_actions(config.actions, present, "--actions ")
            taken = pc.is_in(log[ACTION], value_set=pa.array(config.actions))
            mask = taken.to_numpy(zero_copy_only=False)
            users, items, times = users[mask], items[mask], times[mask]
        visits = _visits(users, items, times, config.gap, self.first)
        order = np.lexsort((items, times))
        order = order[: len(order) if config.by == "popularity" else 0]
        self._candidates = _Candidates(known_from, items[order], times[order])
        self.counts = {"visits": 0, "positives": 0, "negatives": 0}
        self._visits = self._with_candidates(visits, known_from)

    def blocks(self) -> Iterator[pa.Table]:
        """Yield rows in order of time: ids, time, label and `sampling_rate`."""
        offsets = self._visits.offsets
        block_of = offsets[:-1] // _BLOCK
        for number, block in enumerate(np.unique(block_of)):
            first, end = np.searchsorted(block_of, [block, block + 1])
            random = np.random.default_rng([self._config.seed, number])
            yield self._block(np.arange(first, end), random)

    def _with_candidates(self, visits: _Visits, known_from: Int64Array) -> _Visits:
        """Return the visits without new items, those that took nearly all left out."""
        owners = np.repeat(np.arange(len(visits.times)), np.diff(visits.offsets))
        times = visits.times[owners]
        is_known = known_from[visits.items] <= times
        chances = self._candidates.chances(visits.items, times) * is_known
        taken = np.bincount(owners, chances, len(visits.times))
        total = self._candidates.total(visits.times)
        has_rows = (taken > 0) & (total - taken >= _LEAST_FREE * total)
        self.counts["new"] = int((~is_known).sum())
        self.counts["crowded"] = int(((taken > 0) & ~has_rows).sum())
        keep = is_known & has_rows[owners]
        if not keep.any():
            raise UserError(
                "--from: no visit from then on took an item that was known before it; "
                "start earlier, or name a column of arrivals with --arrival"
            )
        sizes = np.bincount(owners[keep], minlength=len(visits.times))[has_rows]
        return _Visits(
            visits.users[has_rows],
            visits.times[has_rows],
            offsets_of(sizes),
            visits.items[keep],
        )

    def _block(self, block: Int64Array, random: np.random.Generator) -> pa.Table:
        """Return the rows of consecutive visits, numbered `block`."""
        visits, candidates = self._visits, self._candidates
        sizes = np.diff(visits.offsets)[block]
        items = visits.items[visits.offsets[block[0]] : visits.offsets[block[-1] + 1]]
        width, base = len(self._item_ids), block[0]
        times = visits.times[block]
        taken = np.repeat(np.arange(len(block)), sizes) * width + items
        drawn = np.empty(0, np.int64)
        pending = np.repeat(np.arange(len(block)), sizes * self._config.negatives)
        while len(pending):
            keys = pending * width + candidates.draw(times[pending], random)
            is_taken = _contains(taken, keys)
            drawn = np.concatenate([drawn, keys[~is_taken]])
            pending = pending[is_taken]
        keys = np.union1d(taken, drawn)  # by visit and item
        is_positive = _contains(taken, keys)
        owners, rows = keys // width, keys % width
        rates = self._rates(owners, rows, is_positive, block)
        self.counts["visits"] += len(block)
        self.counts["positives"] += len(taken)
        self.counts["negatives"] += len(keys) - len(taken)
        return pa.table(
            {
                USER_ID: self._user_ids.take(pa.array(visits.users[base + owners])),
                ITEM_ID: self._item_ids.take(pa.array(rows)),
                TIMESTAMP: times[owners],
                LABEL: is_positive.astype(np.int8),
                SAMPLING_RATE: rates.astype(np.float32),
            }
        )

    def _rates(
        self,
        owners: Int64Array,
        items: Int64Array,
        is_positive: np.ndarray,
        block: Int64Array,
    ) -> Float64Array:
        """Return each row's probability of being drawn had it not been taken."""
        times = self._visits.times[block]
        chances = self._candidates.chances(items, times[owners])
        taken = np.bincount(owners, chances * is_positive, len(block))
        free = (self._candidates.total(times) - taken)[owners]
        draws = (np.diff(self._visits.offsets)[block] * self._config.negatives)[owners]
        share = chances / (free + chances * is_positive)
        with np.errstate(divide="ignore"):  # the only candidate is drawn for certain
            rates: Float64Array = -np.expm1(draws * np.log1p(-share))
        return rates


def _visits(
    users: Int64Array, items: Int64Array, times: Int64Array, gap: int, first: int
) -> _Visits:
    """Return the visits from `first` on; an item that is taken twice counts once."""
    order = np.lexsort((times, users))
    users, items, times = users[order], items[order], times[order]
    is_start = np.ones(len(users), bool)
    is_start[1:] = (users[1:] != users[:-1]) | (np.diff(times) > gap)
    starts = np.flatnonzero(is_start)
    starts_at, visitors = times[starts], users[starts]
    by_time = np.lexsort((visitors, starts_at))
    by_time = by_time[starts_at[by_time] >= first]
    number = np.full(len(starts), -1)
    number[by_time] = np.arange(len(by_time))
    owners = number[np.cumsum(is_start) - 1]
    width = int(items.max(initial=0)) + 1
    keys = np.unique(owners[owners >= 0] * width + items[owners >= 0])
    sizes = np.bincount(keys // width, minlength=len(by_time))
    return _Visits(
        visitors[by_time], starts_at[by_time], offsets_of(sizes), keys % width
    )


def _ranked(ids: pa.Array) -> tuple[pa.Array, Int64Array]:
    """Return the distinct ids, sorted, and the place of each id among them."""
    encoded = ids.dictionary_encode()
    order = pc.sort_indices(encoded.dictionary).to_numpy().astype(np.int64)
    places = np.empty(len(order), np.int64)
    places[order] = np.arange(len(order))
    return encoded.dictionary.take(pa.array(order)), places[encoded.indices.to_numpy()]


def _arrivals(dataset: Dataset, column: str) -> Int64Array:
    """Return the times from which items exist, int64 [N]; never where null."""
    name = dataset.name(ITEMS_FILE)
    require_columns(dataset.items.column_names, [column], name, "see --arrival")
    values = dataset.items[column].combine_chunks()
    has_time = values.is_valid().to_numpy(zero_copy_only=False)
    arrivals = np.full(len(values), _NEVER)
    arrivals[has_time] = as_seconds(values.drop_null(), f"{name}: column {column!r}")
    return arrivals


def _contains(known: Int64Array, keys: Int64Array) -> np.ndarray:
    """Return which keys are among the sorted `known`, bool."""
    places = np.minimum(np.searchsorted(known, keys), len(known) - 1)
    found: np.ndarray = known[places] == keys
    return found
