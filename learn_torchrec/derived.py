"""The preset `default`: a run whose settings are derived from the data.

Every rule here is a starting point that trains on data nobody has tuned for; each
setting comes with its reason and can be overridden by name.
"""

import dataclasses
import datetime
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.types as pt

from learn_torchrec import config
from learn_torchrec.arrays import Int64Array
from learn_torchrec.datasets.adapters.base import Dataset
from learn_torchrec.datasets.histories import Catalogue
from learn_torchrec.datasets.sequences import SequenceSet
from learn_torchrec.datasets.split import SplitConfig, SplitTimes, resolve_times
from learn_torchrec.presets import Run, small_encoder
from learn_torchrec.ranker.features.choices import DerivedFeatures
from learn_torchrec.ranker.features.derive import derive_features
from learn_torchrec.schema import (
    ACTION,
    IMPRESSIONS_FILE,
    ITEM_ID,
    ITEM_TEXT_FIELDS,
    TIMESTAMP,
)
from learn_torchrec.times import as_seconds
from learn_torchrec.towers.config import TowersConfig
from learn_torchrec.towers.encoders.architecture import EncoderShape
from learn_torchrec.towers.model import TowersModelConfig

FEATURES = "ranker.features"

# Actions that say no, and rows of what was merely shown: no history of preferences.
NEGATIVE_ACTIONS = frozenset(
    {
        *("dislike", "unlike", "downvote", "thumbs_down", "hide", "skip", "block"),
        *("report", "return", "refund", "cancel", "remove", "remove_from_cart"),
        *("impression", "exposure", "show", "shown", "display", "no_click"),
    }
)
_EARLIEST_DATE = 10_000_000  # smaller times (April 1970) are positions, not seconds
_DROPOUT = 0.2  # of small towers
_FEW_NEW_USERS = 50  # fewer test users say little
_SAMPLED_USERS = 100_000  # of a large log, to count repeated items
_SMALL_LOG, _LARGE_LOG = 1_000_000, 100_000_000  # events
_MOST_SNAPSHOTS = 5_000_000  # user vectors, one for each event
_STREAMED_ROWS = 20_000_000  # impressions that are not held in memory


@dataclass(frozen=True)
class Choice:
    """A derived setting.

    Attributes:
        setting: its dotted name.
        value: as text.
        reason: why.
    """

    setting: str
    value: str
    reason: str

    def __str__(self) -> str:
        return f"{self.setting}={self.value} ({self.reason})"


@dataclass(frozen=True)
class Derived:
    """A run derived from data.

    Attributes:
        run: all settings.
        choices: those that were derived, in the order of the stages.
        features: of the ranker; None for data without impressions.
    """

    run: Run
    choices: tuple[Choice, ...]
    features: DerivedFeatures | None = None


def derive(
    dataset: Dataset,
    overrides: Sequence[str] = (),
    split: SplitConfig | None = None,
    sections: Sequence[str] = (),
) -> Derived:
    """Derive a run's settings from its data; the same on every rank and in every run.

    Args:
        dataset: with at least items.
        overrides: `section.field=value` assignments of the user; what is derived after
            a setting respects it.
        split: to use instead of a derived one.
        sections: to derive; the others keep their defaults. All by default.

    Raises:
        UserError: data that a section is derived from are missing or wrong, or an
            override is invalid.
    """
    draft = _Draft(dataset, overrides)
    wanted = set(sections or ("content", "split", "towers", "ranker"))
    if "content" in wanted:
        _content(draft)
    if split is not None:
        draft.put("split", split, "that of the vectors")
    elif wanted - {"content", "prepare", "cohorts"}:
        _split(draft)
    draft.respect("split")
    if wanted & {"towers", "retrieval", "export"}:
        _towers(draft)
        _repeats(draft)
        _export(draft)
    if "ranker" not in wanted or not dataset.has_impressions:
        run = config.apply_overrides(draft.run, overrides)
        return Derived(run, draft.final_choices())
    features = _ranker(draft)
    draft.put(FEATURES, features.config, "by the columns, as listed")
    run = config.apply_overrides(draft.run, overrides)
    features = features.with_settings(run.ranker.features)
    run = _replaced(run, FEATURES.split("."), features.config)
    return Derived(run, draft.final_choices(), features)


class _Draft:
    """A run that takes shape, setting by setting."""

    def __init__(self, dataset: Dataset, overrides: Sequence[str]) -> None:
        self.dataset = dataset
        # The user's settings may presuppose the shape that most logs get.
        small = TowersModelConfig(encoder=small_encoder(_DROPOUT))
        self.run = Run(towers=TowersConfig(model=small))
        self._overrides = tuple(overrides)
        self._choices: dict[str, Choice] = {}

    @functools.cached_property
    def sequences(self) -> SequenceSet:
        """All users' events of the wanted actions, which are settled before."""
        catalogue = Catalogue.of(self.dataset)
        return self.dataset.sequences(catalogue, self.run.split.actions)

    def times(self) -> SplitTimes:
        """Return the moments of the split."""
        return resolve_times(self.run.split, self.dataset.times)

    def put(self, setting: str, value: Any, reason: str, shown: str = "") -> None:
        """Set a setting or a whole section by its dotted name."""
        self.run = _replaced(self.run, setting.split("."), value)
        self._choices[setting] = Choice(setting, shown or _text(value), reason)

    def respect(self, section: str) -> None:
        """Apply the user's settings of a section."""
        mine = [one for one in self._overrides if one.startswith(f"{section}.")]
        self.run = config.apply_overrides(self.run, mine)

    def final_choices(self) -> tuple[Choice, ...]:
        """Return the derived settings that the user has not set."""
        taken = [one.partition("=")[0] for one in self._overrides]
        return tuple(
            choice
            for name, choice in self._choices.items()
            if not any(t == name or t.startswith(f"{name}.") for t in taken)
        )


def _content(draft: _Draft) -> None:
    """Choose the text: the paper's fields, else whatever text the items have."""
    draft.respect("content")
    columns = draft.dataset.items.schema
    if set(ITEM_TEXT_FIELDS) & set(columns.names) or draft.run.content.prompt.template:
        return
    texts = [
        field.name
        for field in columns
        if field.name != ITEM_ID
        and (pt.is_string(field.type) or pt.is_large_string(field.type))
    ]
    if texts:
        template = " ".join(f"{{{name}}}." for name in texts)
        reason = f"the items have none of {', '.join(ITEM_TEXT_FIELDS)}"
        draft.put("content.prompt.template", template, reason)


def _split(draft: _Draft) -> None:
    _actions(draft)
    draft.respect("split")
    _moments(draft)
    draft.respect("split")
    _holdout(draft)
    draft.respect("split")
    _users(draft)


@dataclass(frozen=True)
class _Log:
    """Counts of the wanted events.

    Attributes:
        events: in all.
        known: int64, events before the towers' moment of each user who has some.
        arrived: int64, events of each user who first appears later.
        both: users with events on either side of that moment.
    """

    events: int
    known: Int64Array
    arrived: Int64Array
    both: int

    @classmethod
    def of(cls, draft: _Draft) -> "_Log":
        sequences, times = draft.sequences, draft.times()
        lengths = sequences.lengths[sequences.lengths > 0]
        starts = sequences.offsets[:-1][sequences.lengths > 0]
        earlier = np.add.reduceat(
            sequences.times < times.towers_until, starts, dtype=np.int64
        )
        is_known = earlier > 0
        return cls(
            int(lengths.sum()),
            earlier[is_known],
            lengths[~is_known],
            int((is_known & (earlier < lengths)).sum()),
        )


def _actions(draft: _Draft) -> None:
    counts = {
        entry["values"]: entry["counts"]
        for entry in pc.value_counts(draft.dataset.interactions[ACTION]).to_pylist()
    }
    counts = dict(sorted(counts.items(), key=lambda pair: (-pair[1], str(pair[0]))))
    wanted = tuple(name for name in counts if name.lower() not in NEGATIVE_ACTIONS)
    if not wanted:
        wanted = tuple(counts)
    total = sum(counts.values())
    shares = ", ".join(f"{name} {n / total:.0%}" for name, n in counts.items())
    reason = f"the log's actions: {shares}"
    if len(wanted) < len(counts):
        reason += "; the others are no sign of interest"
    draft.put("split.actions", wanted, reason)


def _moments(draft: _Draft) -> None:
    """Choose the moments so that towers, ranker and test each get a part."""
    dataset = draft.dataset
    times = dataset.times
    if not dataset.has_impressions:
        if times.max() < _EARLIEST_DATE:
            reason = "times are positions, not dates: a user's last event is the test"
            draft.put("split.holdout", "leave_one_out", reason)
        return
    column = dataset.columns(IMPRESSIONS_FILE, [TIMESTAMP])[TIMESTAMP].drop_null()
    shown = np.sort(as_seconds(column, dataset.name(IMPRESSIONS_FILE)))
    if not len(shown):
        return
    halves = np.quantile(times, [0.5, 0.8], method="lower")
    before, tested = np.searchsorted(shown, halves)
    if tested - before >= 0.2 * len(shown) and len(shown) - tested >= 0.1 * len(shown):
        reason = "half of the log for the towers, 30 % for the ranker, 20 % for tests"
        draft.put("split.towers_until", "50%", reason)
        draft.put("split.test_from", "80%", reason)
        return
    # Impressions cover another time than the log: all of them, if the log is older.
    towers_until = int(shown[0])
    if np.mean(times < towers_until) < 0.1:
        towers_until = int(np.quantile(shown, 0.3, method="lower"))
    towers_until = max(towers_until, int(times.min()) + 1)
    later = shown[shown >= towers_until]
    if not len(later):
        return
    test_from = int(np.quantile(later, 0.7, method="lower"))
    draft.put(
        "split.towers_until",
        _moment(towers_until),
        f"impressions run from {_moment(shown[0])} to {_moment(shown[-1])}",
    )
    reason = "the last 30 % of the later impressions are the test"
    draft.put("split.test_from", _moment(test_from), reason)


def _holdout(draft: _Draft) -> None:
    """Without a ranker, users who were seen before can test the towers, too."""
    if draft.run.split.holdout != "new_users" or draft.dataset.has_impressions:
        return
    log = _Log.of(draft)
    fewest = draft.run.towers.sampling.min_history + 1
    new_users = int((log.arrived >= fewest).sum())
    if new_users >= _FEW_NEW_USERS or not log.both:
        return
    reason = f"only {new_users} users first appear after split.towers_until"
    draft.put("split.holdout", "time", reason)
    draft.put("split.towers_until", "80%", "the last fifth of the log are targets")


def _users(draft: _Draft) -> None:
    """Choose the fewest events so that at least half of the users remain."""
    log = _Log.of(draft)
    fewest = draft.run.towers.sampling.min_history + 1
    median = int(np.median(log.known)) if len(log.known) else 0
    chosen = max(fewest, min(10, median))
    reason = f"half of the users have {median} events or more"
    draft.put("split.min_events", chosen, reason)


def _towers(draft: _Draft) -> None:
    """Choose shape and length of the training by the number of users and events."""
    log = _Log.of(draft)
    users = int((log.known >= draft.run.split.min_events).sum())
    users = max(1, int(users * (1 - draft.run.split.validation_users)))
    batch = _power_of_two(users / 6, 4, 1024)
    steps = max(1, users // batch)
    epochs = int(np.clip(20_000 // steps, 10, 60))
    reason = f"{users:,} training users"
    for name, value in (
        ("batch_size", batch),
        ("epochs", epochs),
        ("patience", max(5, epochs // 3)),
    ):
        draft.put(f"towers.training.{name}", value, reason)
    draft.put("towers.model.encoder", *_encoder(log.events))
    draft.put("towers.model.item_tower", "self", "learns to encode an item alone")
    draft.put("towers.loss.temperature", 0.1, "less noise than the paper's 0.05")
    reason = "frequent items are drawn often as negatives"
    draft.put("towers.loss.sampling_correction", True, reason)
    if log.events < _SMALL_LOG:
        reason = f"{log.events:,} events"
        draft.put("towers.optimizer.learning_rate", 1e-3, reason)
        draft.put("towers.optimizer.weight_decay", 0.1, reason)


def _encoder(events: int) -> tuple[EncoderShape, str, str]:
    """Return the shape for a log of so many events, the reason and a description."""
    if events < _SMALL_LOG:
        shape = small_encoder(_DROPOUT)
    elif events < _LARGE_LOG:
        shape = EncoderShape(
            width=256, num_layers=4, num_heads=8, feed_forward_dim=1024
        )
    else:
        shape = EncoderShape()  # the paper's
    shown = f"{shape.num_layers} layers of width {shape.width}"
    return shape, f"{events:,} events", shown


def _repeats(draft: _Draft) -> None:
    """Filter histories only where people do not come back to an item."""
    sequences = draft.sequences
    users = len(sequences)
    if users > _SAMPLED_USERS:
        step = -(-users // _SAMPLED_USERS)
        sequences = sequences.select_users(np.arange(users) % step == 0)
    owners = np.repeat(np.arange(len(sequences)), sequences.lengths)
    pairs = len(np.unique(np.stack([owners, sequences.items]), axis=1).T)
    share = 1 - pairs / max(1, len(owners))
    reason = f"{share:.1%} of the events repeat an earlier item of their user"
    draft.put("towers.model.repeat", share >= 0.05, reason)
    draft.put("retrieval.filter_history", share < 0.01, reason)


def _export(draft: _Draft) -> None:
    events = len(draft.sequences.items)
    if events > _MOST_SNAPSHOTS:
        reason = f"a vector after each of {events:,} events would fill the disk"
        draft.put("export.snapshots", "last", reason)


def _ranker(draft: _Draft) -> DerivedFeatures:
    """Choose shape and length by the number of rows, features by the columns."""
    draft.respect("ranker")
    dataset, times = draft.dataset, draft.times()
    rows = dataset.impressions_between(times.towers_until, times.test_from).num_rows
    reason = f"{rows:,} training rows"
    small = rows < _SMALL_LOG
    training = {
        "epochs": 3 if small else 1,
        # Hundreds of steps on a small log, two thousand on a large one.
        "batch_size": _power_of_two(max(rows / 2000, min(rows / 50, 512)), 16, 8192),
    }
    for name, value in training.items():
        draft.put(f"ranker.training.{name}", value, reason)
    if small:
        draft.put("ranker.model.embedding_dim", 16, reason)
        draft.put("ranker.tables.learning_rate", 0.003, reason)
        draft.put("ranker.optimizer.weight_decay", 0.01, reason)
    if rows > _STREAMED_ROWS:
        draft.put("ranker.training.stream.enabled", True, reason)
    tasks, actions = draft.run.ranker.tasks, draft.run.split.actions
    return derive_features(dataset, times, tasks, actions)


def _replaced(value: Any, path: Sequence[str], new: Any) -> Any:
    """Return a configuration with the setting at `path` replaced."""
    if not path:
        return new
    head, *rest = path
    return dataclasses.replace(
        value, **{head: _replaced(getattr(value, head), rest, new)}
    )


def _power_of_two(number: float, least: int, most: int) -> int:
    """Return the largest power of two up to a number, within bounds."""
    return int(np.clip(2 ** int(np.log2(max(number, 1))), least, most))


def _moment(seconds: Any) -> str:
    moment = datetime.datetime.fromtimestamp(int(seconds), datetime.UTC)
    return moment.isoformat(sep=" ").removesuffix("+00:00").removesuffix(" 00:00:00")


def _text(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)
