"""Reads a run's directory, as `learn-torchrec quickstart` writes it, into a report.

Every part of a run is optional: a missing one has no section. Nothing is computed but
what drawings need: bins of scores, and two dimensions of vectors.
"""

import contextlib
import dataclasses
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from learn_torchrec.artifact import CONFIG, MANIFEST, verify
from learn_torchrec.content.store import KIND as KIND_CONTENT
from learn_torchrec.errors import UserError, refuse_special
from learn_torchrec.evaluation.ab import AbResult
from learn_torchrec.evaluation.report import figures
from learn_torchrec.evaluation.report.calibration import calibration
from learn_torchrec.evaluation.report.files import (
    RANKING,
    RETRIEVAL,
    read_json,
    read_metrics,
    refuse_no_run,
)
from learn_torchrec.evaluation.report.metrics import ranking, retrieval
from learn_torchrec.evaluation.report.outcomes import SIMULATED, ab_test
from learn_torchrec.evaluation.report.parts import Figure, Report, Section, Table
from learn_torchrec.evaluation.report.shapes import AB_SHAPE, refuse_other_shape
from learn_torchrec.evaluation.report.summary import summarise
from learn_torchrec.evaluation.report.vectors import vectors
from learn_torchrec.evaluation.tasks import KIND_PREDICTIONS
from learn_torchrec.text import parse_json

# Kinds of artefacts whose data the report reads, and so verifies.
_LOG = "log.jsonl"  # of a training
_KINDS_READ = (KIND_PREDICTIONS, KIND_CONTENT, "vectors")
# What each section is made of, for the sentence on one that is missing.
_MADE_OF = {
    "ranking": f"{RANKING}, which evaluate-auc writes",
    "retrieval": f"{RETRIEVAL}, which evaluate-retrieval writes",
    "training": "the towers' and the ranker's log.jsonl",
    "calibration": "predictions with labels",
    "vectors": "content and vectors, in folders of these names",
    "data": "artefacts, in folders of their own",
}


def read_run(directory: Path, ab_path: Path | None = None) -> Report:
    """Read a run.

    Args:
        directory: holds `metrics.json`, or `ranking.json` and `retrieval.json`, or
            artefacts, or all of them.
        ab_path: JSON of `learn-torchrec evaluate-ab`.

    Raises:
        UserError: no part of a run is there, or a file is damaged: the checksums of all
            artefacts that are read are verified.
    """
    refuse_no_run(directory)
    metrics = read_metrics(directory)
    manifests = read_manifests(directory)
    ab = {} if ab_path is None else _read_ab(ab_path)
    sections = [
        *ranking(metrics.ranking),
        *retrieval(metrics.retrieval),
        *ab_test(ab),
        *_training(directory, manifests),
        *calibration(directory, manifests),
        *vectors(directory, manifests),
        *_facts(manifests, metrics.whole),
        *_config(directory, manifests),
    ]
    there = {section.name.partition("-")[0] for section in sections}
    return Report(
        title=f"LEARN: {directory.resolve().name}",
        subtitle=_subtitle(manifests),
        notices=[SIMULATED] if ab.get("is_simulated") else [],
        summary=summarise(directory, metrics, manifests),
        sections=sections,
        left_out=[
            f"No section on {name}: the run lacks {needed}."
            for name, needed in _MADE_OF.items()
            if name not in there
        ],
    )


def read_manifests(directory: Path) -> dict[str, dict[str, Any]]:
    """Return the manifests of a run's artefacts by stage, verified.

    Raises:
        UserError: a damaged artefact.
    """
    return {
        path.parent.name: _verified(path)
        for path in sorted(directory.glob(f"*/{MANIFEST}"))
    }


def _verified(path: Path) -> dict[str, Any]:
    """Return a manifest after checking the files that the report reads beside it.

    Raises:
        UserError: a file is missing or damaged; names it.
    """
    manifest = read_json(path)
    kind = str(manifest.get("kind", ""))
    if kind in _KINDS_READ:
        verify(path.parent, kind)
    else:  # of a large artefact, only these are read
        verify(path.parent, kind, only=(CONFIG, _LOG))
    return manifest


def _read_ab(path: Path) -> dict[str, Any]:
    body = read_json(path, required=True)
    for field in dataclasses.fields(AbResult):
        if field.name not in body:
            raise UserError(
                f"--ab {path}: no {field.name!r} in it; name a JSON that evaluate-ab "
                "wrote"
            )
    refuse_other_shape(AB_SHAPE, body, path)
    return body


def _subtitle(manifests: Mapping[str, dict[str, Any]]) -> str:
    if not manifests:
        return "Metrics only: the run's artefacts are not here."
    last = max(manifests.values(), key=lambda one: str(one.get("created", "")))
    versions = ", ".join(f"{k} {v}" for k, v in last.get("versions", {}).items())
    return (
        f"Last artefact made {last.get('created', 'at an unknown time')}. {versions}."
    )


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
            if key.startswith(("r@", "validation_auc", "validation_uauc"))
        }
        recalls = {key: series for key, series in recalls.items() if series[0]}
        if recalls:
            drawn.append(_curve(stage, "validation", recalls))
    if drawn:
        yield Section(name="training", title="Training curves", figures=drawn)


def _log_lines(directory: Path, stage: str) -> Iterator[dict[str, Any]]:
    for path in (
        directory / stage / _LOG,
        directory / "logs" / f"{stage}.jsonl",
    ):
        if path.exists():
            refuse_special(path)
            text = path.read_text(encoding="utf-8", errors="replace")
            for line in text.splitlines():
                try:
                    body = parse_json(line)
                except ValueError:  # the last line of a run that was killed
                    continue
                if isinstance(body, dict):
                    yield body
            return


def _series(lines: Iterable[Mapping[str, Any]], key: str) -> figures.Curve:
    pairs = [
        (one["step"], one[key])
        for one in lines
        if _is_number(one.get("step")) and _is_number(one.get(key))
    ]
    return [x for x, _ in pairs], [y for _, y in pairs]


def _is_number(value: Any) -> bool:
    """Whether a value can be drawn; a log has null for one that is not finite."""
    with contextlib.suppress(OverflowError):
        return (
            isinstance(value, int | float)
            and not isinstance(value, bool)
            and math.isfinite(value)
        )
    return False


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


def _facts(
    manifests: Mapping[str, dict[str, Any]], summary: Mapping[str, Any]
) -> Iterator[Section]:
    if not manifests:
        return
    seconds = summary.get("seconds", {})
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
    """Yield the last stage's resolved configuration, which is the whole run's."""
    made = sorted(manifests, key=lambda stage: str(manifests[stage].get("created", "")))
    for stage in reversed(made):
        path = directory / stage / CONFIG
        if path.exists():
            body = json.dumps(read_json(path), indent=2)
            yield Section(
                name="configuration",
                title="Resolved configuration",
                text=[f"`--config` with {stage}/{CONFIG} repeats the run."],
                code=body,
            )
            return
