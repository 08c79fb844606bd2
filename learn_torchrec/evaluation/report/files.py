"""The files of a run's directory that a report reads."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import TypeAdapter

from learn_torchrec.artifact import CONFIG, MANIFEST
from learn_torchrec.errors import UserError, refuse_special
from learn_torchrec.evaluation.report.shapes import (
    EXAMPLE_SHAPE,
    METRICS_SHAPE,
    refuse_other_shape,
)
from learn_torchrec.text import parse_json

METRICS, RANKING, RETRIEVAL = "metrics.json", "ranking.json", "retrieval.json"
EXAMPLE = "recommendations.json"
RUN_IS = (
    f"what `quickstart --out` made, or a folder with some of {RANKING} (of "
    f"evaluate-auc), {RETRIEVAL} (of evaluate-retrieval) and the stages' artefacts"
)


class Metrics(NamedTuple):
    """The JSON files of a run, empty where missing.

    Attributes:
        whole: of the whole run, with the seconds of its stages.
        ranking: by predictions and cohort, or by task.
        retrieval: by group of targets.
        example: recommendations for one user.
    """

    whole: dict[str, Any]
    ranking: dict[str, Any]
    retrieval: dict[str, Any]
    example: dict[str, Any]


def read_metrics(directory: Path) -> Metrics:
    """Read them.

    Raises:
        UserError: a damaged file, or one that holds something else.
    """
    shapes: dict[str, TypeAdapter[Any]] = {
        **dict.fromkeys((METRICS, RANKING, RETRIEVAL), METRICS_SHAPE),
        EXAMPLE: EXAMPLE_SHAPE,
    }
    bodies = {}
    for name, shape in shapes.items():
        bodies[name] = read_json(directory / name)
        refuse_other_shape(shape, bodies[name], directory / name)
    whole = bodies[METRICS]
    # A stage that was run again is newer than the metrics of the whole run.
    return Metrics(
        whole,
        bodies[RANKING] or whole,
        bodies[RETRIEVAL] or whole,
        bodies[EXAMPLE],
    )


def files_read(directory: Path, ab_path: Path | None = None) -> list[Path]:
    """Return the JSON files that a report reads, which it must not replace."""
    found = [directory / name for name in (METRICS, RANKING, RETRIEVAL, EXAMPLE)]
    for manifest in directory.glob(f"*/{MANIFEST}"):
        found += [manifest, manifest.with_name(CONFIG)]
    return found if ab_path is None else [*found, ab_path]


def refuse_no_run(directory: Path) -> None:
    """Refuse a directory that holds no part of a run.

    Raises:
        UserError: says what was looked for, and names a run nearby.
    """
    if _holds_run(directory):
        return
    if (directory / MANIFEST).exists():
        hint = "it is an artefact of one stage; name the folder that holds it"
    else:
        nearby = sorted(filter(_holds_run, _folders(directory)))
        hint = f"name {nearby[0]}" if nearby else f"name {RUN_IS}"
    raise UserError(
        f"{directory}: no {METRICS}, {RANKING} or {RETRIEVAL} in it, and no "
        f"artefact in its folders: {hint}"
    )


def _holds_run(directory: Path) -> bool:
    names = (METRICS, RANKING, RETRIEVAL)
    has_artefacts = any(directory.glob(f"*/{MANIFEST}"))
    return has_artefacts or any((directory / name).exists() for name in names)


def _folders(directory: Path) -> Iterable[Path]:
    return (path for path in directory.iterdir() if path.is_dir())


def read_json(path: Path, required: bool = False) -> dict[str, Any]:
    """Return a JSON object; {} for a missing file that is not required.

    Raises:
        UserError: a missing or damaged file, or other JSON.
    """
    if not path.exists() and not required:
        return {}
    refuse_special(path)
    try:
        body = parse_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; name the file") from None
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON ({error}); make it again") from None
    if not isinstance(body, dict):
        raise UserError(f"{path}: not a JSON object; make it again")
    return body
