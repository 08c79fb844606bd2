"""The tasks of a prediction file: which columns are labels, which are scores."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from learn_torchrec.artifact import MANIFEST, artifact_of, read_manifest
from learn_torchrec.errors import UserError
from learn_torchrec.schema import LABEL, SCORE

KIND_PREDICTIONS = "predictions"
TASKS = "tasks"  # key of a manifest's facts


class Task(NamedTuple):
    """A score column and the label that it predicts.

    Attributes:
        name: "" if the task has no name.
        label: column of 0 and 1.
        score: column of numbers.
    """

    name: str
    label: str
    score: str


ONLY_TASK = Task("", LABEL, SCORE)


def tasks_of(path: Path) -> list[Task]:
    """Return the tasks in an artefact's manifest, or the default one of other files.

    Args:
        path: a prediction file, a folder of parts, or an artefact's directory.

    Raises:
        UserError: a damaged manifest, or one without valid tasks.
    """
    if (artefact := artifact_of(path)) is None:
        return [ONLY_TASK]
    facts = read_manifest(artefact, KIND_PREDICTIONS).facts
    return tasks_of_facts(facts, artefact / MANIFEST)


def tasks_of_facts(facts: Mapping[str, Any], source: Path) -> list[Task]:
    """Return the tasks in a manifest's facts.

    Raises:
        UserError: invalid tasks; names `source`.
    """
    try:
        tasks = [Task(**one) for one in facts.get(TASKS, [ONLY_TASK._asdict()])]
        tasks = [one for one in tasks if all(isinstance(x, str) for x in one)]
    except (TypeError, AttributeError):
        tasks = []
    if not tasks or len({one.name for one in tasks}) < len(tasks):
        raise UserError(
            f"{source}: its tasks must each have a unique name, a label and a score; "
            "predict again"
        )
    return tasks


def tasks_by_name(files: Mapping[str, list[Task]]) -> dict[str, dict[str, Task]]:
    """Return each task's columns by file, in the files that have it.

    If all files have one task, it is the same task, under the first file's name.

    Args:
        files: name to tasks, at least one each.

    Raises:
        UserError: a file does not name its task, but another has several.
    """
    if all(len(tasks) == 1 for tasks in files.values()):
        name = next(iter(files.values()))[0].name
        return {name: {file: tasks[0] for file, tasks in files.items()}}
    result: dict[str, dict[str, Task]] = {}
    for file, tasks in files.items():
        for task in tasks:
            if not task.name:
                raise UserError(
                    f"--predictions {file}: does not name its task, and other files "
                    "have several; name columns with --label and --score"
                )
            result.setdefault(task.name, {})[file] = task
    return result
