"""What the ranker predicts: one probability for each task.

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
    """One probability that the ranker learns, with an over-arch of its own.

    Attributes:
        name: of the task, in metrics and predictions.
        label: its column of 0 and 1.
        weight: of its loss.
        auxiliary_weight: lambda, of the auxiliary network's loss on this task; 0 for
            no head. The paper has one head, on CVR.
        auxiliary_label: the head's column of 0 and 1; None for `label`.
        given: a task before this one that must have happened first. This task's own
            probability is then conditional, and its loss that of the product of both
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
            f"name: {self.name!r} is a name of PyTorch's own; choose another",
        )

    @property
    def columns(self) -> tuple[str, ...]:
        """The label columns that it reads."""
        if self.auxiliary_weight and self.auxiliary_label:
            return (self.label, self.auxiliary_label)
        return (self.label,)

    @property
    def joint_name(self) -> str:
        """What a conditional task's label means: `cvr_and_ctr`; else the name."""
        return self.name if self.given is None else f"{self.name}_and_{self.given}"


def check_tasks(tasks: Sequence[TaskConfig]) -> None:
    """Check the rules between tasks.

    Raises:
        ValueError: none, two of one name, or a task given a later one.
    """
    names = [task.name for task in tasks]
    require(len(names) > 0, "tasks: name at least one")
    require(len(set(names)) == len(names), "tasks: two have the same name")
    for place, task in enumerate(tasks):
        require(
            task.given is None or task.given in names[:place],
            f"tasks: {task.name} is given {task.given!r}, which is no task before it",
        )


def label_columns(tasks: Sequence[TaskConfig]) -> tuple[str, ...]:
    """Return the label columns of all tasks, each once."""
    return tuple(dict.fromkeys(name for task in tasks for name in task.columns))


def joint_logits(
    tasks: Sequence[TaskConfig], logits: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return, by task, the logits that its label judges.

    They are the task's own; of a conditional task those of the product of its
    probability and that of the task it is given. With logits a and b the odds of the
    product are 1 / (exp(-a) + exp(-b) + exp(-a - b)).

    Args:
        tasks: in order.
        logits: float [B] of each task.
    """
    joint: dict[str, Tensor] = {}
    for task in tasks:
        own = logits[task.name]
        if task.given is not None:
            other = joint[task.given]
            parts = torch.stack([-own, -other, -own - other])
            own = -torch.logsumexp(parts, dim=0)
        joint[task.name] = own
    return joint


def scores(
    tasks: Sequence[TaskConfig], logits: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return the predictions by column, probabilities [B].

    One task writes `score`. Several write `score_<task>`, and conditional ones also
    the probability that both happen, `score_<task>_and_<given>`.
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

    The score is the one that the label judges: of a conditional task the joint one.
    """
    return [
        {
            "name": task.name,
            "label": task.label,
            "score": SCORE if len(tasks) == 1 else f"{SCORE}_{task.joint_name}",
        }
        for task in tasks
    ]
