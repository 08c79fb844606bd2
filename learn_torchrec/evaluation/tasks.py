"""The tasks of a prediction file: which columns are labels, which are scores."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from learn_torchrec.artifact import MANIFEST, read_manifest
from learn_torchrec.errors import UserError
from learn_torchrec.schema import LABEL, SCORE

KIND_PREDICTIONS = "predictions"
TASKS = "tasks"  # key of a manifest's facts


class Task(NamedTuple):
    """What a score column predicts.

    Attributes:
        name: "" where nothing names it.
        label: column of 0 and 1.
        score: column of numbers.
    """

    name: str
    label: str
    score: str


ONLY_TASK = Task("", LABEL, SCORE)


def tasks_of(path: Path) -> list[Task]:
    """Return the tasks that an artefact's manifest lists; of other files the usual one.

    Args:
        path: a prediction file, a folder of parts, or an artefact's directory.

    Raises:
        UserError: a damaged manifest, or one that lists no tasks.
    """
    if not (path / MANIFEST).is_file():
        return [ONLY_TASK]
    facts = read_manifest(path, KIND_PREDICTIONS).facts
    return tasks_of_facts(facts, path / MANIFEST)


def tasks_of_facts(facts: Mapping[str, Any], source: Path) -> list[Task]:
    """Return the tasks of a manifest's facts.

    Raises:
        UserError: entries that are no tasks; names `source`.
    """
    try:
        tasks = [Task(**one) for one in facts.get(TASKS, [ONLY_TASK._asdict()])]
    except TypeError:
        tasks = []
    if not tasks or len({one.name for one in tasks}) < len(tasks):
        raise UserError(
            f"{source}: its tasks must each have a name of their own, a label and a "
            "score; predict again"
        )
    return tasks


def tasks_by_name(
    files: Mapping[str, list[Task]],
) -> dict[str, dict[str, Task]]:
    """Return for each task its columns in the files that have it, by file.

    Files of one task each hold the same task, whatever they call it: the first file
    names it.

    Args:
        files: name to tasks, at least one each.

    Raises:
        UserError: a file does not name its task, and another has several.
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
                    "have several; choose columns with --label and --score"
                )
            result.setdefault(task.name, {})[file] = task
    return result
