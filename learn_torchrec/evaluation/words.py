"""The words of tables, summaries and reports: one for each thing.

- *baseline* and *LEARN*: the ranker without and with LEARN's features.
- *all*, *cold-start users*, *long-tail users*, *other users*, and the same of items:
  cohorts of rows, by the events of a row's user or item (`CohortConfig`).
- *users*, of rows to rank: those with both labels, whom UAUC and WUAUC compare
  (`users_kept` in the JSON).
- *points*: 100 x a difference of metrics, LEARN minus baseline.
- *95 % interval*: of the points, by a paired bootstrap over users, or by influence.
- *better*, *worse*: the interval lies above, or below, 0. *unclear*: it includes 0.
- *targets*: the held-out items that retrieval looks for; *new* targets are not in the
  user's history, *repeated* ones are, *long-tail* ones have few training events.
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from learn_torchrec.evaluation.cohorts import COLD, LONG_TAIL, OTHERS, SIDES

BETTER, WORSE, UNCLEAR = "better", "worse", "unclear"
USERS = "users"
USERS_ARE = f"{USERS}: those with both labels"
INTERVAL = "95 % interval"

_COHORTS = {
    f"{side}_{name}": f"{word} {side}s"
    for side in SIDES
    for name, word in (
        (COLD, "cold-start"),
        (LONG_TAIL, "long-tail"),
        (OTHERS, "other"),
    )
}
_PREDICTIONS = {"learn": "LEARN"}
_RANKED_BY = {
    "learn": "LEARN",
    "ids": "towers on ids alone",
    "popularity": "popularity",
    "content_mean": "averaged content vectors",
    "already_bought": "already bought, then popularity",
    "co_occurrence": "item-item co-occurrence",
}
# By their key in the metrics, as `evaluate-retrieval` writes them.
TARGETS = {
    "retrieval": "all targets",
    "new_targets": "new targets",
    "repeated_targets": "repeated targets",
    "tail_targets": "long-tail targets",
}
TARGETS_MEAN = {
    "retrieval": "",
    "new_targets": ": not in the user's history, which leaves the ranking",
    "repeated_targets": ": in the user's history",
    "tail_targets": ": items with few training events",
}


def cohort_title(name: str) -> str:
    """Return a cohort's title: "long-tail users" for "user_long_tail"."""
    return _COHORTS.get(name, name)


def predictions_title(name: str) -> str:
    """Return the title of named predictions: "LEARN" for "learn"."""
    return _PREDICTIONS.get(name, name)


def pair_title(pair: str, names: Iterable[str]) -> str:
    """Return a difference's title: "LEARN minus baseline" for "learn-baseline"."""
    for name in names:
        if pair.startswith(f"{name}-"):
            baseline = predictions_title(pair.removeprefix(f"{name}-"))
            return f"{predictions_title(name)} minus {baseline}"
    return pair


def ranked_by(name: str) -> str:
    """Return the title of what ranks the catalogue in the retrieval metrics."""
    return _RANKED_BY.get(name, name)


class Gain(NamedTuple):
    """Points with their interval.

    Attributes:
        points: 100 x candidate minus baseline; None where undefined.
        low: lower end of the 95 % interval; None for none.
        high: upper end.
    """

    points: float | None
    low: float | None
    high: float | None

    @classmethod
    def of(cls, difference: Mapping[str, Any]) -> "Gain":
        """Read a difference as `PairedDifference` is written to JSON."""
        parts = (difference[name] for name in ("difference", "low", "high"))
        return cls(*(None if part is None else 100 * part for part in parts))

    @property
    def verdict(self) -> str:
        """One of the words better, worse and unclear; "" without an interval."""
        if self.low is None or self.high is None:
            return ""
        return BETTER if self.low > 0 else WORSE if self.high < 0 else UNCLEAR

    @property
    def interval(self) -> str:
        """The interval as text, "" for none."""
        if self.low is None or self.high is None:
            return ""
        return f"({signed(self.low)}, {signed(self.high)})"


def signed(points: float) -> str:
    """Return points with a sign and two digits, never "-0.00"."""
    return f"{round(points, 2) + 0.0:+.2f}"
