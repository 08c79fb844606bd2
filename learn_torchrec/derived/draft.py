"""A run that takes shape setting by setting, each with its reason."""

import dataclasses
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from learn_torchrec import config
from learn_torchrec.arrays import Int64Array
from learn_torchrec.datasets.adapters.base import Dataset
from learn_torchrec.datasets.histories import Catalogue
from learn_torchrec.datasets.sequences import SequenceSet
from learn_torchrec.datasets.split import SplitTimes, resolve_times
from learn_torchrec.presets import Run, small_encoder
from learn_torchrec.towers.config import TowersConfig
from learn_torchrec.towers.model import TowersModelConfig

DROPOUT = 0.2  # of small towers


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


class Draft:
    """A run that takes shape, setting by setting."""

    def __init__(
        self, dataset: Dataset, overrides: Sequence[str], ranks: int = 1
    ) -> None:
        self.dataset, self.ranks = dataset, ranks
        # The user's settings may presuppose the shape that most logs get.
        small = TowersModelConfig(encoder=small_encoder(DROPOUT))
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
        return resolve_times(self.run.split, self.dataset.moments)

    def put(self, setting: str, value: Any, reason: str, shown: str = "") -> None:
        """Set a setting or a whole section by its dotted name."""
        self.run = replaced(self.run, setting.split("."), value)
        self._choices[setting] = Choice(setting, shown or _text(value), reason)

    def respect(self, section: str) -> None:
        """Apply the user's settings of a section."""
        mine = [one for one in self._overrides if one.startswith(f"{section}.")]
        self.run = config.apply_overrides(self.run, mine)

    def is_set(self, setting: str) -> bool:
        """Whether the user has set a setting or a part of it."""
        taken = [one.partition("=")[0] for one in self._overrides]
        return any(t == setting or t.startswith(f"{setting}.") for t in taken)

    def final_choices(self) -> tuple[Choice, ...]:
        """Return the derived settings that the user has not set."""
        return tuple(
            choice for name, choice in self._choices.items() if not self.is_set(name)
        )


@dataclass(frozen=True)
class LogCounts:
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
    def of(cls, draft: Draft) -> "LogCounts":
        """Count, at the moments that are settled so far."""
        sequences, times = draft.sequences, draft.times()
        active = sequences.select_users(sequences.lengths > 0)
        lengths = active.lengths
        earlier = active.first_at_or_after(times.towers_until) - active.starts
        is_known = earlier > 0
        return cls(
            int(lengths.sum()),
            earlier[is_known],
            lengths[~is_known],
            int((is_known & (earlier < lengths)).sum()),
        )


def replaced(value: Any, path: Sequence[str], new: Any) -> Any:
    """Return a configuration with the setting at `path` replaced."""
    if not path:
        return new
    head, *rest = path
    return dataclasses.replace(
        value, **{head: replaced(getattr(value, head), rest, new)}
    )


def _text(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)
