"""Days of a generated market: refreshed, trained from scratch, and never refreshed.

Every evening three policies see the same data. The first refreshes the served run, the
second trains every stage from the beginning, with the first run's settings, and the
third does nothing after the first evening. All rank the next day's impressions. Seconds
are of processor time, of towers, vectors and ranker, and of the refresh's content too;
content is encoded once for all runs from scratch. Both would be gated, which is not
counted. Work is kept in --work: the same command goes on where it was.
"""

import argparse
import json
import os
import re
import shutil
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from learn_torchrec.config import from_dict
from learn_torchrec.datasets.generated.market import (
    DAY,
    START,
    Market,
    MarketConfig,
    write_market,
)
from learn_torchrec.ranker.learn.vectors import LearnVectors
from learn_torchrec.refresh.runs import Runs
from learn_torchrec.schema import (
    IMPRESSIONS_FILE,
    INTERACTIONS_FILE,
    ITEM_ID,
    ITEMS_FILE,
)

from .. import evaluate_auc, predict, refresh
from ..common.hardware import describe_machine
from ..common.program import write_json
from ..refreshing.steps import SECONDS
from .measure import parser, publish

FIRST_DAYS = 10  # of the first run
MARKET = {"users": 1200, "items": 900, "impressions": 100_000, "brands": 60}
SETTINGS = (
    "content.encoder.model=minilm",
    "split.actions=click,buy",
    "refresh.test_hours=2",
    "refresh.keep=20",
    'refresh.gate=["uauc>=-1"]',
)
_TRAINED = ("towers", "vectors", "ranker")
_MEASURES = ("uauc", "auc")


def build_parser() -> argparse.ArgumentParser:
    """Return the benchmark's options."""
    result = parser("refresh", __doc__)
    result.add_argument(
        "--work", type=Path, required=True, metavar="DIR", help="where everything goes"
    )
    result.add_argument(
        "--days", type=int, default=14, metavar="N", help="evenings after the first"
    )
    result.add_argument(
        "--scratch-every",
        type=int,
        default=1,
        metavar="N",
        help="train from scratch on every Nth evening only",
    )
    return result


def main(argv: Sequence[str] | None = None) -> None:
    """Run the days that are missing, and write the figures."""
    args = build_parser().parse_args(argv)
    torch.set_num_threads(1)
    args.work.mkdir(parents=True, exist_ok=True)
    days = _Days(args.work, args.days)
    records = _Records(args.work / "records.json")
    daily = args.work / "daily"
    last = FIRST_DAYS + args.days
    for day in range(FIRST_DAYS, last + 1):
        if f"{day}/refresh" not in records.known:
            _run(days.until(day), daily)
            records.add(f"{day}/refresh", _made(daily))
            records.add(f"{day}/new_items", days.new_items(day, Runs(daily)))
        is_turn = day > FIRST_DAYS and (last - day) % args.scratch_every == 0
        scratch = args.work / f"scratch_{day}"
        if is_turn and f"{day}/scratch" not in records.known:
            _reuse_content(args.work, scratch)
            _run(days.until(day), scratch)
            records.add(f"{day}/scratch", _made(scratch))
        if day == FIRST_DAYS:
            continue
        runs = Runs(daily)
        policies = {"never": runs.path(1), "refresh": runs.path(day - FIRST_DAYS + 1)}
        if is_turn:
            policies["scratch"] = _current(scratch)
        if policies.keys() - records.known.get(f"{day}/next_day", {}).keys():
            records.add(f"{day}/next_day", days.evaluate(day, policies))
    publish(_figures(records.known), args.json)


class _Days:
    """The market's data as they were at the end of each day."""

    def __init__(self, work: Path, days: int) -> None:
        self._work = work
        # One day more, to evaluate the last evening.
        config = from_dict(
            MarketConfig, {**MARKET, "days": FIRST_DAYS + days + 1}, "market"
        )
        self._market, self._whole = Market(config), work / "market"
        if not (work / "market.done").exists():
            shutil.rmtree(self._whole, ignore_errors=True)
            self._whole.mkdir()
            for _ in write_market(config, self._whole):
                pass
            (work / "market.done").touch()

    def until(self, day: int) -> str:
        """Return the data set of the first `day` days, items that had arrived."""
        directory = self._work / f"day_{day}"
        if not directory.exists():
            working = directory.with_suffix(".tmp")
            shutil.rmtree(working, ignore_errors=True)
            for table in (INTERACTIONS_FILE, IMPRESSIONS_FILE):
                (working / table).mkdir(parents=True)
                for number in range(day):
                    name = f"day-{number:05d}.parquet"
                    os.link(self._whole / table / name, working / table / name)
            items = pq.read_table(self._whole / ITEMS_FILE)
            arrived = int(self._market.items_by_day[day - 1])
            pq.write_table(items.slice(0, arrived), working / ITEMS_FILE)
            working.rename(directory)
        return f"parquet:{directory}"

    def new_items(self, day: int, runs: Runs) -> dict[str, float]:
        """Return how many items arrived on the last day, and have vectors."""
        known = self._market.items_by_day
        new = range(int(known[day - 2]), int(known[day - 1]))
        vectors = LearnVectors.open(_current(runs.directory) / "vectors")
        found = pc.is_in(pa.array(new, pa.int64()), value_set=vectors.items.index.ids)
        return {"arrived": len(new), "with_vectors": pc.sum(found).as_py() or 0}

    def evaluate(self, day: int, policies: Mapping[str, Path]) -> dict[str, Any]:
        """Return metrics of the next day's impressions by policy and cohort."""
        out, given = self._work / "scored", []
        shutil.rmtree(out, ignore_errors=True)
        for name, run in policies.items():
            options = ["--data", self.until(day + 1), "--out", str(out / name)]
            options += ["--ranker", str(run / "ranker"), "--vectors"]
            options += [str(run / "vectors"), "--set"]
            predict.main([*options, f"split.test_from={START + day * DAY}"])
            given.append(f"{name}={out / name}")
        figures = out / "figures.json"
        evaluate_auc.main(["--predictions", *given, "--out", str(figures)])
        ranking = json.loads(figures.read_text())["ranking"]
        recent = pa.array(
            range(*map(int, self._market.items_by_day[[FIRST_DAYS - 1, day - 1]]))
        )
        rows = {
            name: pq.read_table(out / name / "predictions.parquet") for name in policies
        }
        return {
            name: {
                "uauc": by_cohort["all"]["uauc"],
                "auc": by_cohort["all"]["auc"],
                "auc_items_after_first_run": _auc_of(rows[name], recent),
            }
            for name, by_cohort in ranking.items()
        }


class _Records:
    """What has been measured, kept between runs."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.known: dict[str, Any] = (
            json.loads(path.read_text()) if path.exists() else {}
        )

    def add(self, name: str, value: Any) -> None:
        self.known[name] = value
        write_json(self._path, self.known)


def _run(data: str, directory: Path) -> None:
    """Refresh, or go on with it."""
    given = [] if (directory / "config.json").exists() else ["--set", *SETTINGS]
    refresh.main(["--data", data, "--run", str(directory), *given])


def _current(directory: Path) -> Path:
    return (directory / "current").resolve()


def _made(directory: Path) -> dict[str, Any]:
    """Return what making the served run took, processor seconds by step."""
    seconds: dict[str, Any] = json.loads((_current(directory) / SECONDS).read_text())
    return seconds


def _reuse_content(work: Path, scratch: Path) -> None:
    """Put yesterday's content where the first run of a new folder replaces it."""
    target = scratch / "runs" / "001" / "content"
    if not target.exists():
        shutil.copytree(_current(work / "daily") / "content", target)


def _auc_of(rows: pa.Table, items: pa.Array) -> float:
    """Return the AUC among the impressions of some items."""
    from sklearn.metrics import roc_auc_score

    chosen = rows.filter(pc.is_in(rows[ITEM_ID], value_set=items))
    labels = chosen["label"].to_numpy()
    if len(np.unique(labels)) < 2:
        return float("nan")
    return float(roc_auc_score(labels, chosen["score"].to_numpy()))


def _figures(records: Mapping[str, Any]) -> dict[str, Any]:
    """Return the figures of all days."""
    evenings = [
        int(found[1]) for key in records if (found := re.match(r"(\d+)/next_day", key))
    ]
    compared = [day for day in sorted(evenings) if f"{day}/scratch" in records]
    cost = {
        policy: sum(
            records[f"{day}/{policy}"][step]["processor"]
            for day in compared
            for step in steps
        )
        for policy, steps in (
            ("refresh", ("content", *_TRAINED)),
            ("scratch", _TRAINED),
        )
    }

    def points(measure: str, policy: str, other: str) -> list[float]:
        scores = [records[f"{day}/next_day"] for day in sorted(evenings)]
        return [
            100 * (one[policy][measure] - one[other][measure])
            for one in scores
            if {policy, other} <= one.keys()
        ]

    gaps = points("uauc", "scratch", "refresh")
    new = [records[f"{day}/new_items"] for day in evenings]
    return {
        "machine": describe_machine(),
        "market": {**MARKET, "first_days": FIRST_DAYS, "evenings": len(evenings)},
        "settings": list(SETTINGS),
        "by_day": {day: records[f"{day}/next_day"] for day in sorted(evenings)},
        "processor_seconds": {k: round(v, 1) for k, v in cost.items()},
        "evenings_from_scratch": len(compared),
        "refresh_time_ratio": round(cost["refresh"] / cost["scratch"], 3),
        "refresh_uauc_gap": round(statistics.mean(gaps), 3),
        "refresh_uauc_gap_standard_error": _standard_error(gaps),
        "uauc_lost_without_refresh": round(
            statistics.mean(points("uauc", "refresh", "never")), 3
        ),
        "new_items": sum(day["arrived"] for day in new),
        "new_items_with_vectors_same_evening": sum(day["with_vectors"] for day in new),
        "auc_gained_on_items_after_first_run": round(
            statistics.mean(points("auc_items_after_first_run", "refresh", "never")), 2
        ),
    }


def _standard_error(values: Sequence[float]) -> float | None:
    if len(values) < 2:
        return None
    return round(statistics.stdev(values) / len(values) ** 0.5, 3)


if __name__ == "__main__":
    main()
