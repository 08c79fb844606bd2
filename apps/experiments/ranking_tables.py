"""Tables 6 and 7: the ranker with LEARN, overall, by part and by cohort."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from learn_torchrec.arrays import BoolArray, Float64Array, joined
from learn_torchrec.artifact import versions
from learn_torchrec.datasets.generated.market import REVENUE
from learn_torchrec.errors import UserError
from learn_torchrec.evaluation.auc import evaluate_auc
from learn_torchrec.evaluation.cohorts import ALL
from learn_torchrec.evaluation.conventions import PAPER
from learn_torchrec.evaluation.paired_seeds import auc_difference
from learn_torchrec.evaluation.retrieval_study import compare_rows
from learn_torchrec.evaluation.revenue_replay import in_first_places, visits_of
from learn_torchrec.evaluation.rows import prepare_rows
from learn_torchrec.evaluation.user_auc import count_users, users_that_count
from learn_torchrec.evaluation.words import cohort_title
from learn_torchrec.schema import USER_ID
from learn_torchrec.training.distributed import process_group

from .. import export_vectors, study, train_towers
from ..common import options
from .base import LLM, Goal, Request, judged
from .ranker_arms import (
    BASELINE,
    LEARN,
    Study,
    arms_of,
    cohorts_of,
    prepare,
    train_and_test,
)

PLACES = 5
_SHOWN = ("uauc", "auc", "revenue")
_PAPER = "ranker.learn.form=paper"
_PARTS = {
    "paper": (_PAPER,),
    "paper_vectors": (_PAPER, "ranker.learn.paper.inputs=vectors"),
    "paper_fusion": (_PAPER, "ranker.learn.paper.inputs=fusion"),
    "paper_stopped": (_PAPER, "ranker.learn.paper.stop_gradient=true"),
    "no_statistics": ("ranker.learn.statistics.spaces=[]",),
    "no_neighbours": ("ranker.learn.neighbours=0",),
    "no_products": ("ranker.learn.interactions=false",),
    "din": (
        "ranker.learn.attention=id",
        "ranker.learn.statistics.spaces=[]",
        "ranker.learn.neighbours=0",
        "ranker.learn.interactions=false",
    ),
}
_TITLES = {
    BASELINE: "baseline",
    LEARN: "LEARN against the candidate",
    "paper": "LEARN as in the paper",
    "paper_vectors": "the paper's, vectors without fusion",
    "paper_fusion": "the paper's, fusion alone",
    "paper_stopped": "the paper's, fusion without the main loss",
    "no_statistics": "LEARN without similarity statistics",
    "no_neighbours": "LEARN without neighbours' rates",
    "no_products": "LEARN without products of vectors",
    "din": "DIN: attention to the history's ids, no content",
}
_PUBLISHED = {BASELINE: 0.6885, "paper": 0.6969}  # UAUC, on the paper's data
_TUNING = (
    "Baseline and LEARN draw the same settings and are chosen by UAUC on the latest "
    "fifth of the training rows; other rows have LEARN's settings but for what they "
    "change."
)
_REPLAY = (
    f"Revenue: the share that a visit's first {PLACES} places hold of what was paid, "
    "the shown items ordered by score; it cannot tell what people would have bought "
    "in another order."
)


@dataclass(frozen=True)
class RankerTable:
    """Rankers with LEARN, in parts, beside a baseline tuned alike."""

    title: str = "The ranker with and without LEARN, and with parts of it"

    def check(self, request: Request) -> None:
        """Look for impressions and the encoder."""
        _check(request)

    def run(self, request: Request) -> dict[str, Any]:
        """Encode, train towers and rankers, test."""
        parts = [f"{name}:{';'.join(settings)}" for name, settings in _PARTS.items()]
        given, tuned, scores = _tested(request, parts)
        users, labels = given.columns("test")
        found = user_metrics(users, labels, scores)
        return _described(given) | {
            "rows": {
                name: {
                    "title": _TITLES[name],
                    "published": _PUBLISHED.get(name),
                    **{metric: rows[name] for metric, rows in found.items()},
                }
                for name in scores
            },
            "reference": BASELINE,
            "metrics": [*found],
            "published_metric": "uauc",
            "goal_metric": "uauc",
            "goals": judged(
                (Goal(row=LEARN, than=BASELINE), Goal(row="paper", than=BASELINE)),
                {"all": found["uauc"]},
            ),
            "notes": [_TUNING],
            "tuned": tuned,
        }


@dataclass(frozen=True)
class CohortTable:
    """LEARN beside the baseline for each cohort, by AUC and revenue."""

    title: str = "What LEARN gives cold-start, long-tail and other users and items"

    def check(self, request: Request) -> None:
        """Look for impressions and the encoder."""
        _check(request)

    def run(self, request: Request) -> dict[str, Any]:
        """Encode, train towers and rankers, test by cohort."""
        given, _, scores = _tested(request, [])
        masks = cohorts_of(given)
        table = given.table("test")
        has_revenue = REVENUE in table.column_names
        users, labels = given.columns("test")
        rows = {}
        for cohort, mask in masks.items():
            kept = pa.array(mask)
            part = {name: [one[mask] for one in made] for name, made in scores.items()}
            if not mask.any():
                continue
            found = user_metrics(users.filter(kept), labels.filter(kept), part)
            if has_revenue:
                found["revenue"] = _revenue(table, mask, scores)
            rows[cohort] = {
                "title": cohort_title(cohort),
                "share": float(mask.mean()),
                **{metric: _gain(one) for metric, one in found.items()},
            }
        return _described(given) | {
            "rows": rows,
            "reference": None,
            "metrics": [name for name in _SHOWN if name in rows[ALL]],
            "goals": [],
            "goal_metric": "uauc",
            "notes": [_TUNING, *([_REPLAY] if has_revenue else [])],
        }


def user_metrics(
    users: pa.Array, labels: pa.Array, scores: Mapping[str, Sequence[Float64Array]]
) -> dict[str, dict[str, Any]]:
    """Return UAUC, WUAUC and AUC of every arm beside the baseline, by arm.

    `below` is as `compare_rows` defines it; of AUC only the difference has an interval.
    """
    counted = {
        name: [
            users_that_count(count_users(prepare_rows(users, labels, one)), PAPER)
            for one in seeds
        ]
        for name, seeds in scores.items()
    }
    values = {name: [one.values for one in made] for name, made in counted.items()}
    found: dict[str, dict[str, Any]] = {}
    weights = counted[BASELINE][0].weights
    if len(weights):
        found["uauc"] = compare_rows(values, BASELINE)["rows"]
        found["wuauc"] = compare_rows(values, BASELINE, weights)["rows"]
    found["auc"] = {
        name: _auc(users, labels, made, scores[BASELINE])
        for name, made in scores.items()
    }
    return found


def _auc(
    users: pa.Array,
    labels: pa.Array,
    scores: Sequence[Float64Array],
    baseline: Sequence[Float64Array],
) -> dict[str, Any]:
    seeds = [evaluate_auc(users, labels, one)["auc"] for one in scores]
    gain = auc_difference(users, labels, scores, baseline)
    below: dict[str, Any] = {"difference": -gain.difference, "low": None, "high": None}
    if not math.isnan(gain.low):
        below |= {"low": -gain.high, "high": -gain.low}
    return {
        "mean": float(np.mean(seeds)),
        **{"low": None, "high": None, "seeds": seeds, "below": below},
    }


def _revenue(
    table: pa.Table, mask: BoolArray, scores: Mapping[str, Sequence[Float64Array]]
) -> dict[str, Any]:
    """Return the share of the cohort's revenue in the first places, by arm."""
    revenue = np.where(mask, table[REVENUE].to_numpy(), 0.0).astype(np.float64)
    users = joined(table[USER_ID]).dictionary_encode().indices.to_numpy()
    visits = visits_of(table)
    total = np.bincount(users, revenue)
    paying = total > 0

    def share(one: Float64Array) -> Float64Array:
        held = revenue * in_first_places(visits, one, PLACES)
        by_user: Float64Array = np.bincount(users, held)[paying] / total[paying]
        return by_user

    values = {name: [share(one) for one in seeds] for name, seeds in scores.items()}
    rows: dict[str, Any] = compare_rows(values, BASELINE, total[paying])["rows"]
    return rows


def _gain(rows: Mapping[str, Any]) -> dict[str, Any]:
    """Return LEARN's row, and the baseline's mean."""
    return {**rows[LEARN], BASELINE: rows[BASELINE]["mean"]}


def _check(request: Request) -> None:
    request.refuse_absent([LLM])
    dataset = options.dataset(request.args)
    if not dataset.has_impressions:
        raise UserError(
            f"{request.args.table}: the data have no impressions to rank; draw some "
            "with learn-torchrec data impressions"
        )
    options.resolve(request.args, ("split", "towers", "ranker", "cohorts"))


def _tested(
    request: Request, parts: Sequence[str]
) -> tuple[Study, dict[str, dict[str, Any]], dict[str, list[Float64Array]]]:
    """Train towers and rankers; return what arms share, their tuning and scores."""
    vectors = _vectors(request)
    with process_group() as device:
        given = _divided(request, vectors, device)
        return given, *train_and_test(given, arms_of(given.run.ranker, parts))


def _vectors(request: Request) -> Path:
    """Encode, train the towers, export their vectors; return where these lie."""
    content, folder = request.encode(LLM), request.args.out / "ranker"
    folder.mkdir(exist_ok=True)
    towers, vectors = folder / "towers", folder / "vectors"
    given = ["--data", request.args.data, "--content", str(content), "--overwrite"]
    given += request.shared
    train_towers.main([*given, "--out", str(towers), *request.sets("split", "towers")])
    given += ["--towers", str(towers)]
    export_vectors.main([*given, "--out", str(vectors), *request.sets("export")])
    return vectors


def _divided(request: Request, vectors: Path, device: torch.device) -> Study:
    """Divide the impressions; return what all arms share."""
    args = study.build_parser().parse_args(
        [
            *("--data", request.args.data, *request.shared),
            *("--vectors", str(vectors), "--out", str(vectors.parent)),
            *("--seeds", str(request.args.seeds), "--trials", str(request.args.trials)),
            *request.sets("split", "ranker", "cohorts"),
        ]
    )
    run = options.resolve(args, ("split", "ranker", "cohorts"))
    return prepare(args, options.dataset(args), run, device)


def _described(given: Study) -> dict[str, Any]:
    return {
        "data": given.args.data.partition(":")[0],
        "versions": versions(),
        "impressions": {name: int(mask.sum()) for name, mask in given.parts.items()},
        "seeds": given.args.seeds,
        "trials": given.args.trials,
    }


RANKER, COHORTS = RankerTable(), CohortTable()
