"""Baseline and LEARN on one data set: both tuned alike, then several seeds, by cohort.

Both rankers draw the same number of settings from the same space, LEARN also from that
of its own switches, and are compared on a validation period between the towers' data
and the test. The best settings of each, by validation UAUC, are trained on everything
before the test with each seed, baseline and LEARN in pairs, and tested once. A user's
gain is averaged over the seeds; its interval comes from resampling users, and the
standard deviation over seeds is shown beside it.
"""

import argparse
import dataclasses
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from learn_torchrec import config as configuration
from learn_torchrec.arrays import BoolArray, Float64Array
from learn_torchrec.datasets import open_dataset
from learn_torchrec.datasets.adapters.base import Dataset
from learn_torchrec.datasets.loading.in_memory import TableRows
from learn_torchrec.datasets.split import resolve_times
from learn_torchrec.evaluation.auc import evaluate_auc
from learn_torchrec.evaluation.cohorts import assign_cohorts
from learn_torchrec.evaluation.conventions import PAPER
from learn_torchrec.evaluation.rows import prepare_rows
from learn_torchrec.evaluation.user_auc import count_users, users_that_count
from learn_torchrec.presets import Run
from learn_torchrec.provenance import refuse_vectors_leak
from learn_torchrec.ranker.config import RankerConfig
from learn_torchrec.ranker.features.lookups import open_lookups
from learn_torchrec.ranker.impressions import Impressions
from learn_torchrec.ranker.learn.inputs import LearnInputs
from learn_torchrec.ranker.scoring import score
from learn_torchrec.ranker.training import train_ranker
from learn_torchrec.ranker.vectors import LearnVectors
from learn_torchrec.schema import (
    IMPRESSIONS_FILE,
    ITEM_ACTIVITY,
    LABEL,
    SCORE,
    TIMESTAMP,
    USER_ACTIVITY,
    USER_ID,
)
from learn_torchrec.training.distributed import process_group
from learn_torchrec.training.run_log import RunLog

from .. import options
from ..predict import cohort_activity
from . import measure

ARMS = ("baseline", "learn")
_RESAMPLES = 2000
# A draw has one value of each; the space was fixed before any run.
_SPACE: dict[str, tuple[Any, ...]] = {
    "optimizer.learning_rate": (3e-4, 1e-3, 3e-3),
    "optimizer.weight_decay": (0.01, 0.1),
    "tables.learning_rate": (0.001, 0.003, 0.01, 0.03),
    "training.epochs": (1, 2, 3, 5),
    "model.embedding_dim": (8, 16, 32),
}
_LEARN_SPACE: dict[str, tuple[Any, ...]] = {
    "learn.paper.inputs": ("all", "vectors", "fusion"),
    "tasks": tuple([{"auxiliary_weight": weight}] for weight in (0.1, 0.3, 1.0)),
    "learn.paper.stop_gradient": (False, True),
}


@dataclass(frozen=True)
class Study:
    """What both rankers share: the data, and masks of the impressions of each part."""

    run: Run
    dataset: Dataset
    vectors: LearnVectors
    train: BoolArray
    validation: BoolArray
    test: BoolArray


def build_parser() -> argparse.ArgumentParser:
    """Return the program's options."""
    parser = options.parser("ranking-study", __doc__)
    parser.prog = "python -m apps.benchmarks.ranking_study"
    options.add_data(parser)
    options.add_input(parser, "--vectors", "LEARN's vectors")
    parser.add_argument(
        "--validation-from",
        required=True,
        metavar="MOMENT",
        help="start of the validation period, as split.test_from",
    )
    parser.add_argument(
        "--trials", type=int, default=12, metavar="N", help="settings for each"
    )
    parser.add_argument(
        "--seeds", type=int, default=5, metavar="N", help="paired runs of the test"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Tune, test, print; write JSON where asked."""
    args = build_parser().parse_args(argv)
    study = prepare(args)
    with process_group() as device, tempfile.TemporaryDirectory() as directory:
        log = Path(directory) / "log"
        tuned = {arm: tune(study, arm, args.trials, device, log) for arm in ARMS}
        scores = {
            arm: test_scores(
                study, arm, tuned[arm]["settings"], args.seeds, device, log
            )
            for arm in ARMS
        }
    result = {
        "machine": measure.machine(),
        "data": args.data.partition(":")[0],
        "rows": {
            name: int(getattr(study, name).sum())
            for name in ("train", "validation", "test")
        },
        "trials": args.trials,
        "seeds": args.seeds,
        "interval": "95 %, users resampled, gains averaged over seeds; points",
        "tuned": tuned,
        "cohorts": compare(study, scores),
    }
    measure.publish(result, args.json)


def prepare(args: argparse.Namespace) -> Study:
    """Read data and vectors, and split the impressions by time."""
    run = options.resolve(args)
    dataset = open_dataset(args.data)
    times = resolve_times(run.split, dataset.interactions)
    earlier = dataclasses.replace(run.split, test_from=args.validation_from)
    validation_from = resolve_times(earlier, dataset.interactions).test_from
    moments = dataset.impressions[TIMESTAMP].to_numpy()
    vectors = LearnVectors.open(args.vectors)
    later = moments[moments >= times.towers_until]
    start = int(later.min()) if len(later) else None
    refuse_vectors_leak(vectors.manifest, start, "train on")
    return Study(
        run=run,
        dataset=dataset,
        vectors=vectors,
        train=(moments >= times.towers_until) & (moments < validation_from),
        validation=(moments >= validation_from) & (moments < times.test_from),
        test=moments >= times.test_from,
    )


def tune(
    study: Study, arm: str, trials: int, device: torch.device, log: Path
) -> dict[str, Any]:
    """Return the settings with the best validation UAUC, and the UAUC of all draws."""
    space = _SPACE if arm == "baseline" else {**_SPACE, **_LEARN_SPACE}
    random = np.random.default_rng(0)
    users_and_labels = _columns(
        study.dataset.impressions.filter(pa.array(study.validation))
    )
    tried: list[dict[str, Any]] = []
    for _ in range(trials):
        settings = {
            name: values[random.integers(len(values))] for name, values in space.items()
        }
        ranker = with_settings(study.run.ranker, settings, seed=0)
        scores = fit_and_score(
            study, arm, ranker, study.train, study.validation, device, log
        )
        uauc = evaluate_auc(*users_and_labels, scores)["uauc"]
        tried.append({"settings": settings, "uauc": uauc})
        print(f"{arm} {settings}: validation UAUC {uauc:.4f}", flush=True)
    best = max(tried, key=lambda trial: trial["uauc"])
    return {**best, "validation_uauc_of_all": [trial["uauc"] for trial in tried]}


def with_settings(
    ranker: RankerConfig, settings: dict[str, Any], seed: int
) -> RankerConfig:
    """Return the configuration with some settings changed."""
    overrides = [
        f"{name}={json.dumps(value).strip(chr(34))}"
        for name, value in {**settings, "training.seed": seed}.items()
    ]
    return configuration.apply_overrides(ranker, overrides)


def test_scores(
    study: Study,
    arm: str,
    settings: dict[str, Any],
    seeds: int,
    device: torch.device,
    log: Path,
) -> list[Float64Array]:
    """Train on all before the test with each seed; return the test's scores."""
    before = study.train | study.validation
    rankers = (
        with_settings(study.run.ranker, settings, seed) for seed in range(1, seeds + 1)
    )
    return [
        fit_and_score(study, arm, ranker, before, study.test, device, log)
        for ranker in rankers
    ]


def fit_and_score(
    study: Study,
    arm: str,
    ranker: RankerConfig,
    train: BoolArray,
    test: BoolArray,
    device: torch.device,
    log: Path,
) -> Float64Array:
    """Train on some rows and score others."""
    lookups = open_lookups(
        study.dataset, ranker.features, ranker.tasks, study.run.split.actions
    )
    train_rows, test_rows = (
        Impressions(
            TableRows(
                study.dataset.impressions.filter(pa.array(rows)), None, IMPRESSIONS_FILE
            ),
            ranker,
            None if arm == "baseline" else _inputs(study, ranker),
            lookups,
        )
        for rows in (train, test)
    )
    with RunLog(log) as run_log:
        model, _ = train_ranker(ranker, train_rows, device, run_log)
    scores = score(model, test_rows, ranker.training.batch_size, device)
    return scores[SCORE].astype(np.float64)


def _inputs(study: Study, ranker: RankerConfig) -> LearnInputs:
    learn = LearnInputs(study.vectors, study.vectors.content, ranker.learn)
    return learn.read(study.dataset, ranker.tasks, study.run.split.actions)


def compare(study: Study, scores: dict[str, list[Float64Array]]) -> dict[str, Any]:
    """Return metrics and paired differences of each cohort."""
    table = study.dataset.impressions.filter(pa.array(study.test))
    table = cohort_activity(study.dataset, study.run).add_to(table)
    masks = {"all": np.ones(table.num_rows, bool)}
    for side, column in (("user", USER_ACTIVITY), ("item", ITEM_ACTIVITY)):
        activity = table[column].to_numpy()
        masks |= assign_cohorts(side, activity, study.run.cohorts)
    users, labels = _columns(table)
    return {
        name: _compare_rows(
            users.filter(mask),
            labels.filter(mask),
            {arm: [values[mask] for values in scores[arm]] for arm in ARMS},
        )
        for name, mask in masks.items()
    }


def _compare_rows(
    users: pa.Array, labels: pa.Array, scores: dict[str, list[Float64Array]]
) -> dict[str, Any]:
    if not len(users):
        return {"rows": 0}
    metrics = {
        arm: [evaluate_auc(users, labels, values) for values in scores[arm]]
        for arm in ARMS
    }
    result: dict[str, Any] = {
        "rows": len(users),
        **{k: metrics["baseline"][0][k] for k in ("users", "users_kept", "positives")},
    }
    for name in ("auc", "uauc", "wuauc", "ne"):
        by_arm = {arm: [seed[name] for seed in metrics[arm]] for arm in ARMS}
        gains = np.subtract(by_arm["learn"], by_arm["baseline"])
        result[name] = {
            **{arm: float(np.mean(by_arm[arm])) for arm in ARMS},
            "points": 100 * float(gains.mean()),
            "points_by_seed": [100 * float(gain) for gain in gains],
            "seed_std": 100 * float(gains.std(ddof=1)) if len(gains) > 1 else None,
        }
    intervals = bootstrap(*_gains_by_user(users, labels, scores))
    for name, interval in intervals.items():
        result[name]["interval"] = interval
    return result


def _gains_by_user(
    users: pa.Array, labels: pa.Array, scores: dict[str, list[Float64Array]]
) -> tuple[Float64Array, Float64Array]:
    """Return each kept user's AUC gain, averaged over seeds, and impressions."""
    by_arm = {
        arm: [
            users_that_count(count_users(prepare_rows(users, labels, values)), PAPER)
            for values in scores[arm]
        ]
        for arm in ARMS
    }
    means = {
        arm: np.mean([seed.values for seed in by_arm[arm]], axis=0) for arm in ARMS
    }
    return means["learn"] - means["baseline"], by_arm["learn"][0].weights


def bootstrap(
    gains: Float64Array, impressions: Float64Array
) -> dict[str, list[float] | None]:
    """Return the 95 % interval of the mean gain, unweighted and weighted, in points."""
    if not len(gains):
        return {"uauc": None, "wuauc": None}
    random = np.random.default_rng(0)
    drawn = random.integers(len(gains), size=(_RESAMPLES, len(gains)))
    weights = impressions[drawn]
    means = {
        "uauc": gains[drawn].mean(1),
        "wuauc": (gains[drawn] * weights).sum(1) / weights.sum(1),
    }
    return {
        name: [100 * float(x) for x in np.percentile(values, (2.5, 97.5))]
        for name, values in means.items()
    }


def _columns(impressions: pa.Table) -> tuple[pa.Array, pa.Array]:
    return impressions[USER_ID].combine_chunks(), impressions[LABEL].combine_chunks()


if __name__ == "__main__":
    options.run(main)
