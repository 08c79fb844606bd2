"""The ranker's tasks: one probability each.

Letters: B rows.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat
from torch import Tensor, nn

from learn_torchrec.config import configuration, require
from learn_torchrec.schema import LABEL, SCORE

_Name = Annotated[str, Field(pattern="^[a-z][a-z0-9_]*$")]


@configuration
class TaskConfig:
    """One probability that the ranker learns, with its own over-arch.

    Attributes:
        name: of the task, in metrics and predictions.
        label: its label column of 0 and 1.
        weight: of its loss.
        auxiliary_weight: lambda, the weight of the auxiliary network's loss on this
            task; 0 for no head. The paper has one head, on CVR.
        auxiliary_label: the head's label column; None for `label`.
        given: an earlier task whose event is a precondition. This task then learns a
            conditional probability, and its loss is that of the product of both
            (ESMM, Ma et al. 2018, section 2: CTCVR = CTR x CVR).
    """

    name: _Name = "cvr"
    label: str = LABEL
    weight: PositiveFloat = 1.0
    auxiliary_weight: NonNegativeFloat = 1.0
    auxiliary_label: str | None = None
    given: str | None = None

    def __post_init__(self) -> None:
        require(
            not hasattr(nn.ModuleDict(), self.name),
            f"name: {self.name!r} is reserved by PyTorch; choose another",
        )

    @property
    def columns(self) -> tuple[str, ...]:
        """The label columns that it reads."""
        if self.auxiliary_weight and self.auxiliary_label:
            return (self.label, self.auxiliary_label)
        return (self.label,)

    @property
    def joint_name(self) -> str:
        """The event of a conditional task's label, `cvr_and_ctr`; else the name."""
        return self.name if self.given is None else f"{self.name}_and_{self.given}"


def check_tasks(tasks: Sequence[TaskConfig]) -> None:
    """Check the rules between tasks.

    Raises:
        ValueError: no task, two of one name, or a task given a later one.
    """
    names = [task.name for task in tasks]
    require(len(names) > 0, "tasks: configure at least one")
    for name in names:
        is_own = names.count(name) == 1
        require(is_own, f"tasks: two have the name {name!r}; rename one of them")
    for index, task in enumerate(tasks):
        require(
            task.given is None or task.given in names[:index],
            f"tasks: {task.name} is given {task.given!r}, which is not an earlier task",
        )


def label_columns(tasks: Sequence[TaskConfig]) -> tuple[str, ...]:
    """Return the label columns of all tasks, each once."""
    return tuple(dict.fromkeys(name for task in tasks for name in task.columns))


def joint_logits(
    tasks: Sequence[TaskConfig],
    logits: Mapping[str, Tensor],
    offsets: Mapping[str, float] | None = None,
) -> dict[str, Tensor]:
    """Return, by task, the logits of the event that its label marks.

    For a conditional task they are those of the product of its probability and that of
    the task it is given, else its own. With logits a and b, the odds of the product are
    1 / (exp(-a) + exp(-b) + exp(-a - b)).

    `logits` are float [B] by task. `offsets` by task, if any, are added in the end.
    """
    joint: dict[str, Tensor] = {}
    for task in tasks:
        own = logits[task.name]
        if task.given is not None:
            other = joint[task.given]
            parts = torch.stack([-own, -other, -own - other])
            own = -torch.logsumexp(parts, dim=0)
        joint[task.name] = own
    for name, offset in (offsets or {}).items():
        joint[name] = joint[name] + offset
    return joint


def scores(
    tasks: Sequence[TaskConfig], logits: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return the predicted probabilities [B] by column.

    One task writes `score`. Several write `score_<task>`, and a conditional one also
    the joint probability, `score_<task>_and_<given>`.
    """
    if len(tasks) == 1:
        return {SCORE: torch.sigmoid(logits[tasks[0].name])}
    found = {f"{SCORE}_{task.name}": torch.sigmoid(logits[task.name]) for task in tasks}
    joint = joint_logits(tasks, logits)
    return found | {
        f"{SCORE}_{task.joint_name}": torch.sigmoid(joint[task.name])
        for task in tasks
        if task.given is not None
    }


def describe_tasks(tasks: Sequence[TaskConfig]) -> list[dict[str, str]]:
    """Return name, label and score column of each task, for a manifest.

    The score is the one that corresponds to the label: joint for a conditional task.
    """
    return [
        {
            "name": task.name,
            "label": task.label,
            "score": SCORE if len(tasks) == 1 else f"{SCORE}_{task.joint_name}",
        }
        for task in tasks
    ]
