"""Reads a run's directory, as `learn-torchrec quickstart` lays it, into a report.

Every part of a run is optional: what is not there has no section. Nothing is computed
anew but what a drawing needs: bins of scores, and two dimensions of vectors.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from learn_torchrec.artifact import CONFIG, MANIFEST
from learn_torchrec.errors import UserError
from learn_torchrec.evaluation.arrays import Float64Array
from learn_torchrec.evaluation.cohorts import assign_cohorts
from learn_torchrec.evaluation.predictions import Predictions, read_predictions
from learn_torchrec.evaluation.report import figures
from learn_torchrec.evaluation.report.parts import Figure, Report, Section, Table
from learn_torchrec.schema import (
    ITEM_ID,
    ITEM_VECTORS_FILE,
    PREDICTIONS_FILE,
    VECTOR,
)

COHORT_TITLES = {
    "all": "all",
    "user_cold": "user cold-start",
    "user_long_tail": "user long-tail",
    "user_others": "user others",
    "item_cold": "item cold-start",
    "item_long_tail": "item long-tail",
    "item_others": "item others",
}
SIMULATED = "The A/B test below is simulated: generated users, no live test."
_RETRIEVAL_TITLES = {
    "learn": "LEARN",
    "popularity": "popularity",
    "content_mean": "averaged content vectors (Baseline-v1)",
    "already_bought": "already bought, then popularity",
}
_BINS = 10
_NEIGHBOURS = 10
_MAP_ITEMS = 3000


def read_run(directory: Path, ab_path: Path | None = None) -> Report:
    """Read a run.

    Args:
        directory: holds `metrics.json` or artefacts, or both.
        ab_path: JSON that `learn-torchrec evaluate-ab` wrote.

    Raises:
        UserError: nothing of a run is there, or a file is damaged.
    """
    metrics = {
        **_read_json(directory / "ranking.json"),
        **_read_json(directory / "retrieval.json"),
        **_read_json(directory / "metrics.json"),
    }
    manifests = {
        path.parent.name: _read_json(path)
        for path in sorted(directory.glob(f"*/{MANIFEST}"))
    }
    if not metrics and not manifests:
        raise UserError(
            f"{directory}: no metrics.json and no artefacts; name a run's directory"
        )
    ab = {} if ab_path is None else _read_json(ab_path, required=True)
    sections = [
        *_ranking(metrics),
        *_retrieval(metrics),
        *_ab(ab),
        *_training(directory, manifests),
        *_calibration(directory, manifests),
        *_vectors(directory),
        *_facts(manifests, metrics),
        *_config(directory, manifests),
    ]
    return Report(
        title=f"LEARN: {directory.resolve().name}",
        subtitle=_subtitle(manifests),
        notices=[SIMULATED] if ab.get("is_simulated") else [],
        sections=sections,
    )


def _read_json(path: Path, required: bool = False) -> dict[str, Any]:
    if not path.exists() and not required:
        return {}
    try:
        body = json.loads(path.read_text())
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; name the file") from None
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON ({error}); make it again") from None
    if not isinstance(body, dict):
        raise UserError(f"{path}: not a JSON object; make it again")
    return body


def _subtitle(manifests: Mapping[str, dict[str, Any]]) -> str:
    if not manifests:
        return "Metrics only: the run's artefacts are not here."
    last = max(manifests.values(), key=lambda one: str(one.get("created", "")))
    versions = ", ".join(f"{k} {v}" for k, v in last.get("versions", {}).items())
    return (
        f"Last artefact made {last.get('created', 'at an unknown time')}. {versions}."
    )


def _number(value: Any, scale: float = 1.0) -> float | None:
    return None if value is None else scale * float(value)


# --- metrics ----------------------------------------------------------------------


def _ranking(metrics: Mapping[str, Any]) -> Iterator[Section]:
    ranking = metrics.get("ranking")
    if not ranking:
        return
    differences = metrics.get("ranking_difference", {})
    yield Section(
        name="ranking",
        title="Ranking",
        text=[
            "AUC is pooled over all rows; UAUC is the mean of the users' AUCs, WUAUC "
            "weights it by impressions. Ties count one half, users of one class are "
            "left out.",
        ],
        tables=[_ranking_table(ranking), *_difference_tables(differences)],
        figures=[
            _lift_figure(pair, metric, cohorts)
            for pair, cohorts in differences.items()
            for metric in ("uauc", "wuauc", "auc")
        ],
    )


def _ranking_table(ranking: Mapping[str, Any]) -> Table:
    names = ("auc", "uauc", "wuauc", "ne", "log_loss", "calibration")
    rows = [
        [
            name,
            COHORT_TITLES.get(cohort, cohort),
            values["rows"],
            _share(values["rows"], cohorts["all"]["rows"]),
            values["users_kept"],
            *(values[metric] for metric in names),
        ]
        for name, cohorts in ranking.items()
        for cohort, values in cohorts.items()
    ]
    return Table(
        name="ranking-metrics",
        title="Metrics by cohort",
        columns=["predictions", "cohort", "rows", "share, %", "users kept", *names],
        formats=["", "", ",d", ".2f", ",d", *[".4f"] * len(names)],
        rows=rows,
    )


def _share(part: int, whole: int) -> float | None:
    return 100 * part / whole if whole else None


def _difference_tables(differences: Mapping[str, Any]) -> Iterator[Table]:
    for pair, cohorts in differences.items():
        rows = [
            [
                COHORT_TITLES.get(cohort, cohort),
                metric,
                *(_number(one[part], 100) for part in ("difference", "low", "high")),
                one["p_value"],
                one.get("p_adjusted"),
            ]
            for cohort, metrics in cohorts.items()
            for metric, one in metrics.items()
        ]
        yield Table(
            name=f"difference-{pair}",
            title=f"Difference {pair}, percentage points",
            columns=["cohort", "metric", "points", "low", "high", "p", "p (Holm)"],
            formats=["", "", "+.2f", "+.2f", "+.2f", ".3f", ".3f"],
            rows=rows,
            note="95 % interval of a paired bootstrap over users. "
            f"{len(rows)} comparisons: one in twenty has p below 0.05 by chance; "
            "Holm's p corrects for their number.",
        )


def _lift_figure(pair: str, metric: str, cohorts: Mapping[str, Any]) -> Figure:
    rows = []
    for cohort, metrics in cohorts.items():
        one = metrics[metric]
        if one["difference"] is not None:
            values = (100 * one[part] for part in ("difference", "low", "high"))
            rows.append((COHORT_TITLES.get(cohort, cohort), *values))
    words = "; ".join(f"{n} {v:+.2f} ({a:+.2f} to {b:+.2f})" for n, v, a, b in rows)
    label = f"{metric.upper()}, percentage points"
    return figures.intervals(
        f"lift-{pair}-{metric}",
        f"{metric.upper()} difference by cohort, {pair}",
        rows,
        label,
        f"{label}, with 95 % intervals: {words}.",
    )


def _retrieval(metrics: Mapping[str, Any]) -> Iterator[Section]:
    retrieval = metrics.get("retrieval")
    if not retrieval:
        return
    rows = dict(_flat_retrieval(retrieval))
    columns = list(next(iter(rows.values())))
    is_count = ["@" not in name and name != "mrr" for name in columns]
    table = Table(
        name="retrieval-metrics",
        title="Retrieval",
        columns=["vectors", *columns],
        formats=["", *(",.0f" if count else ".4f" for count in is_count)],
        rows=[
            [name, *(values.get(column) for column in columns)]
            for name, values in rows.items()
        ],
        note="h: hits over (user, target) pairs; r: mean recall of the users; hit_any: "
        "users with a hit; n: NDCG; mrr: over the full ranking.",
    )
    yield Section(name="retrieval", title="Retrieval", tables=[table])


def _flat_retrieval(
    retrieval: Mapping[str, Any], prefix: str = ""
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (name, metrics) pairs, however deep subsets of targets are nested."""
    for name, values in retrieval.items():
        if not isinstance(values, Mapping):
            continue
        title = prefix + _RETRIEVAL_TITLES.get(name, name)
        numbers = {k: v for k, v in values.items() if not isinstance(v, Mapping)}
        if any(k.startswith(("h@", "r@")) for k in numbers):
            yield title, numbers
        yield from _flat_retrieval(values, f"{title}, ")


# --- A/B --------------------------------------------------------------------------


def _ab(ab: Mapping[str, Any]) -> Iterator[Section]:
    if not ab:
        return
    ratio = ab["sample_ratio"]
    verdict = "MISMATCH, trust nothing below" if ratio["is_mismatch"] else "as meant"
    rows = [
        [
            cohort,
            metric,
            _number(ab["shares"].get(cohort), 100),
            one["control"],
            one["treatment"],
            *(_number(one[k], 100) for k in ("lift", "low", "high")),
            one["p_value"],
            *(_number(one[k], 100) for k in ("bootstrap_low", "bootstrap_high")),
        ]
        for cohort, metrics in ab["lifts"].items()
        for metric, one in metrics.items()
    ]
    head = ["cohort", "metric", "revenue share, %", "control", "treatment", "lift, %"]
    table = Table(
        name="ab-lifts",
        title=f"Lifts by cohort{_simulated(ab)}",
        columns=[*head, "low", "high", "p", "bootstrap low", "bootstrap high"],
        formats=["", "", ".2f", ".5g", ".5g", *["+.2f"] * 3, ".3f", "+.2f", "+.2f"],
        rows=rows,
        note="Relative lift with the delta method's 95 % interval over users, and the "
        "bootstrap's beside it.",
    )
    yield Section(
        name="ab",
        title="A/B test, simulated" if ab["is_simulated"] else "A/B test",
        text=[
            f"{ab['days']} days; {ratio['control_users']:,} control and "
            f"{ratio['treatment_users']:,} treatment users; sample ratio {verdict} "
            f"(p = {ratio['p_value']:.3g})."
        ],
        tables=[table],
        figures=[_ab_cohorts(ab), _ab_days(ab)],
    )


def _simulated(ab: Mapping[str, Any]) -> str:
    return ", simulated" if ab["is_simulated"] else ""


def _ab_cohorts(ab: Mapping[str, Any]) -> Figure:
    rows = []
    for cohort, metrics in ab["lifts"].items():
        one = metrics["revenue_per_user"]
        if one["lift"] is not None:
            values = (100 * one[part] for part in ("lift", "low", "high"))
            rows.append((cohort, *values))
    words = "; ".join(f"{n} {v:+.2f} ({a:+.2f} to {b:+.2f})" for n, v, a, b in rows)
    return figures.intervals(
        "ab-cohorts",
        f"Revenue per user, lift by cohort{_simulated(ab)}",
        rows,
        "lift, %",
        f"Relative lift in per cent with 95 % intervals: {words}.",
    )


def _ab_days(ab: Mapping[str, Any]) -> Figure:
    days = [one for one in ab["daily"]["revenue_per_user"] if one["lift"] is not None]
    rows = [
        (f"day {one['day']}", *(100 * one[part] for part in ("lift", "low", "high")))
        for one in days
    ]
    words = "; ".join(f"{n} {v:+.2f}" for n, v, *_ in rows)
    return figures.intervals(
        "ab-days",
        f"Revenue per user, lift by day{_simulated(ab)}",
        rows,
        "lift, %",
        f"Relative lift in per cent: {words}.",
    )


# --- training ---------------------------------------------------------------------


def _training(
    directory: Path, manifests: Mapping[str, dict[str, Any]]
) -> Iterator[Section]:
    drawn = []
    for stage in manifests:
        lines = list(_log_lines(directory, stage))
        losses = _series(lines, "loss")
        if losses[0]:
            drawn.append(_curve(stage, "training loss", {"loss": losses}))
        recalls = {
            key: _series(lines, key)
            for key in dict.fromkeys(key for line in lines for key in line)
            if key.startswith("r@") or key in ("auc", "uauc", "validation_loss")
        }
        if recalls:
            drawn.append(_curve(stage, "validation", recalls))
    if drawn:
        yield Section(name="training", title="Training curves", figures=drawn)


def _log_lines(directory: Path, stage: str) -> Iterator[dict[str, Any]]:
    for path in (
        directory / stage / "log.jsonl",
        directory / "logs" / f"{stage}.jsonl",
    ):
        if path.exists():
            for line in path.read_text().splitlines():
                try:
                    yield json.loads(line)
                except ValueError:  # the last line of a run that was killed
                    continue
            return


def _series(lines: Iterable[Mapping[str, Any]], key: str) -> figures.Curve:
    pairs = [(one["step"], one[key]) for one in lines if "step" in one and key in one]
    return [x for x, _ in pairs], [y for _, y in pairs]


def _curve(stage: str, what: str, series: Mapping[str, figures.Curve]) -> Figure:
    words = "; ".join(
        f"{name} from {y[0]:.4g} to {y[-1]:.4g}, lowest {min(y):.4g}, highest "
        f"{max(y):.4g}"
        for name, (_, y) in series.items()
    )
    return figures.curves(
        f"curve-{stage}-{what.replace(' ', '-')}",
        f"{stage}: {what}",
        series,
        ("step", what),
        f"{stage}, {what} over the steps: {words}.",
    )


# --- calibration ------------------------------------------------------------------


def _calibration(
    directory: Path, manifests: Mapping[str, dict[str, Any]]
) -> Iterator[Section]:
    series = {}
    rows: list[list[Any]] = []
    for stage, manifest in manifests.items():
        path = directory / stage / PREDICTIONS_FILE
        if manifest.get("kind") != "predictions" or not path.exists():
            continue
        bins = calibration_bins(read_predictions(path.parent))
        if bins:
            series[stage] = ([b[0] for b in bins], [b[1] for b in bins])
            rows += [[stage, number, *one] for number, one in enumerate(bins, start=1)]
    if not rows:
        return
    gaps = {
        name: max(abs(a - b) for a, b in zip(*xy, strict=True))
        for name, xy in series.items()
    }
    words = "; ".join(f"{name} at most {gap:.4f} off" for name, gap in gaps.items())
    table = Table(
        name="calibration-bins",
        title="Score calibration",
        columns=["predictions", "bin", "mean score", "observed rate", "rows"],
        formats=["", "d", ".4f", ".4f", ",d"],
        rows=rows,
        note=f"{_BINS} bins of equally many rows, by score.",
    )
    figure = figures.calibration(
        "calibration-curve",
        "Observed rate over mean score",
        series,
        f"Observed rate of the label over the mean score in {_BINS} bins: {words}.",
    )
    yield Section(
        name="calibration", title="Calibration", tables=[table], figures=[figure]
    )


def calibration_bins(predictions: Predictions) -> list[tuple[float, float, int]]:
    """Return (mean score, observed rate, rows) of bins of equally many rows.

    Equal scores stay in one bin. None at all where scores are no probabilities.
    """
    scores, labels = predictions.scores, predictions.labels
    if scores.min() < 0 or scores.max() > 1:
        return []
    edges = np.unique(np.quantile(scores, np.arange(1, _BINS) / _BINS))
    bins = np.searchsorted(edges, scores, side="right")
    weights = predictions.weights
    weights = np.ones(len(scores)) if weights is None else weights
    totals = np.bincount(bins, weights)
    means, rates = (np.bincount(bins, weights * x) for x in (scores, labels))
    counts = np.bincount(bins)
    return [
        (float(means[b] / totals[b]), float(rates[b] / totals[b]), int(counts[b]))
        for b in np.flatnonzero(totals > 0)
    ]


# --- vectors ----------------------------------------------------------------------


def _vectors(directory: Path) -> Iterator[Section]:
    content_path = directory / "content" / "vectors.npy"
    ids_path = directory / "content" / "item_ids.parquet"
    towers_path = directory / "vectors" / ITEM_VECTORS_FILE
    if not (content_path.exists() and ids_path.exists() and towers_path.exists()):
        return
    ids = pq.read_table(ids_path)[ITEM_ID].to_pylist()
    table = pq.read_table(towers_path)
    after_rows = {item: row for row, item in enumerate(table[ITEM_ID].to_pylist())}
    shared = [(row, after_rows[i]) for row, i in enumerate(ids) if i in after_rows]
    if len(shared) < 3:
        return
    step = len(shared) // _MAP_ITEMS + 1
    before_rows, rows = np.array(shared[::step]).T
    before = np.load(content_path, mmap_mode="r")[before_rows].astype(np.float64)
    flat = table[VECTOR].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    after = flat.reshape(table.num_rows, -1)[rows].astype(np.float64)
    names = [ids[row] for row in before_rows]
    groups = _item_groups(directory, names)
    kept = neighbours_kept(before, after, _NEIGHBOURS)
    cosines = {"before": mean_cosine(before), "after": mean_cosine(after)}
    drawn = [
        figures.scatter(
            f"map-{name}",
            f"Item vectors {name} the towers",
            two_dimensions(vectors),
            groups,
            f"{len(names):,} items in the two directions in which their "
            f"{vectors.shape[1]}-dim vectors {name} the towers vary most, by "
            "activity cohort. The cosine of two random items is "
            f"{cosines[name]:.3f} on average.",
        )
        for name, vectors in (("before", before), ("after", after))
    ]
    yield Section(
        name="vectors",
        title="Content vectors before and after the towers",
        text=[
            f"Of an item's {_NEIGHBOURS} nearest items by content, {kept:.1%} are "
            "among its nearest after the towers: what behaviour moved."
        ],
        figures=drawn,
    )


def _item_groups(directory: Path, items: list[Any]) -> dict[str, npt.NDArray[np.bool_]]:
    """Return the items of each activity cohort at the end of the predictions."""
    everyone = {"items": np.ones(len(items), dtype=bool)}
    for path in sorted(directory.glob(f"*/{PREDICTIONS_FILE}")):
        predictions = read_predictions(path.parent)
        if predictions.item_ids is None or predictions.item_activity is None:
            continue
        known: dict[Any, int] = {}
        seen = zip(
            predictions.item_ids.to_pylist(),
            predictions.item_activity.tolist(),
            strict=True,
        )
        for item, activity in seen:
            known[item] = max(activity, known.get(item, 0))
        counts = np.array([known.get(item, -1) for item in items])
        cohorts = assign_cohorts(np.maximum(counts, 0), 1, 30)
        groups = {
            COHORT_TITLES[f"item_{name}"]: mask & (counts >= 0)
            for name, mask in cohorts.items()
        }
        return groups | {"not in the test": counts < 0}
    return everyone


def two_dimensions(vectors: Float64Array) -> Float64Array:
    """Return [N, 2]: the vectors along their two directions of largest variance."""
    centred = vectors - vectors.mean(axis=0)
    spread = centred.std(axis=0)
    centred = centred / np.where(spread > 1e-12, spread, 1.0)
    _, directions = np.linalg.eigh(centred.T @ centred)
    return centred @ directions[:, :-3:-1]


def mean_cosine(vectors: Float64Array) -> float:
    """Return the mean cosine of two different rows."""
    units = _units(vectors)
    count = len(units)
    return float((np.square(units.sum(axis=0)).sum() - count) / (count * (count - 1)))


def neighbours_kept(before: Float64Array, after: Float64Array, k: int) -> float:
    """Return the share of the rows' k nearest rows that are nearest in both."""
    k = min(k, len(before) - 1)
    nearest = []
    for vectors in (before, after):
        units = _units(vectors - vectors.mean(axis=0))
        cosines = units @ units.T
        np.fill_diagonal(cosines, -np.inf)
        nearest.append(np.argpartition(-cosines, k - 1, axis=1)[:, :k])
    same = [len(np.intersect1d(*pair)) for pair in zip(*nearest, strict=True)]
    return float(np.mean(same)) / k


def _units(vectors: Float64Array) -> Float64Array:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.maximum(lengths, 1e-30))


# --- facts and configuration ------------------------------------------------------


def _facts(
    manifests: Mapping[str, dict[str, Any]], metrics: Mapping[str, Any]
) -> Iterator[Section]:
    if not manifests:
        return
    seconds = metrics.get("seconds", {})
    stages = Table(
        name="stages",
        title="Stages",
        columns=["stage", "kind", "seconds", "learned from events before", "made"],
        formats=["", "", ".1f", "", ""],
        rows=[
            [
                stage,
                one.get("kind", ""),
                seconds.get(stage),
                _utc(one.get("cutoff")),
                str(one.get("created", "")),
            ]
            for stage, one in manifests.items()
        ],
    )
    facts = Table(
        name="facts",
        title="Data and coverage",
        columns=["stage", "fact", "value"],
        formats=["", "", ""],
        rows=[
            [stage, name, value]
            for stage, one in manifests.items()
            for name, value in _flat(one.get("facts", {}))
        ],
    )
    yield Section(name="data", title="Data and coverage", tables=[stages, facts])


def _utc(seconds: Any) -> str:
    if seconds is None:
        return "–"  # noqa: RUF001  a dash, not a minus
    return str(np.datetime64(int(seconds), "s")).replace("T", " ") + " UTC"


def _flat(facts: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in facts.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        elif isinstance(value, float):
            yield prefix + name, f"{value:.4f}"
        elif isinstance(value, int):
            yield prefix + name, f"{value:,}"
        else:
            yield prefix + name, str(value)


def _config(
    directory: Path, manifests: Mapping[str, dict[str, Any]]
) -> Iterator[Section]:
    """Yield the resolved configuration of the last stage: it holds the whole run's."""
    made = sorted(manifests, key=lambda stage: str(manifests[stage].get("created", "")))
    for stage in reversed(made):
        path = directory / stage / CONFIG
        if path.exists():
            body = json.dumps(_read_json(path), indent=2)
            yield Section(
                name="configuration",
                title="Resolved configuration",
                text=[f"`--config` with {stage}/{CONFIG} repeats the run."],
                code=body,
            )
            return
