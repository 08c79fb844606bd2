"""Conditions on a paired comparison, for CI and deployment: `uauc>=+0.002`."""

import contextlib
import math
import operator
import re
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from learn_torchrec.errors import UserError
from learn_torchrec.evaluation.auc import METRICS
from learn_torchrec.evaluation.cohorts import ALL
from learn_torchrec.evaluation.significance import PairedDifference
from learn_torchrec.evaluation.words import cohort_title

_OPERATORS: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}
_PARTS = {"low": "low", "high": "high", "p": "p_value"}
_PATTERN = re.compile(
    r"(?P<names>[\w-]+(?:\.[\w-]+)*)\s*(?:@(?P<cohort>[^<>=]+))?\s*"
    r"(?P<operator>>=|<=|>|<)\s*(?P<bound>[^<>=\s]+)"
)


class Gate(NamedTuple):
    """One condition.

    Attributes:
        text: as the user wrote it.
        task: name of the task; "" for every task.
        metric: e.g. "uauc".
        part: field of `PairedDifference` that is compared with the bound.
        cohort: "all", or a cohort's name.
        operator: ">=", "<=", ">" or "<".
        bound: a number.
    """

    text: str
    task: str
    metric: str
    part: str
    cohort: str
    operator: str
    bound: float


class GateResult(NamedTuple):
    """Result of one condition.

    Attributes:
        gate: as the user wrote it.
        value: the measured value; NaN, which fails, where the metric is undefined.
        passed: whether the condition holds.
    """

    gate: str
    value: float
    passed: bool


def parse_gate(text: str) -> Gate:
    """Read `[TASK.]METRIC[.low|.high|.p][@COHORT]OPERATOR NUMBER`.

    `uauc>=+0.002` requires a difference of at least 0.002, `auc.low>0` an interval
    above zero, `uauc@user_cold>=0` no loss in a cohort, and `ctr.uauc>=0` no loss in
    one of several tasks.

    Raises:
        UserError: text of another form.
    """
    found = _PATTERN.fullmatch(text.strip())
    names = found["names"].split(".") if found else []
    part = _PARTS[names.pop()] if len(names) > 1 and names[-1] in _PARTS else ""
    bound = math.nan
    if found:
        with contextlib.suppress(ValueError):
            bound = float(found["bound"])
    # "uauc.mean" names an unknown part, not a metric "mean" of a task "uauc".
    is_part_unknown = len(names) == 2 and names[0] in METRICS
    if not found or not math.isfinite(bound) or len(names) > 2 or is_part_unknown:
        raise UserError(
            f"--gate {text}: write [TASK.]METRIC[.low|.high|.p][@COHORT]>=NUMBER, e.g. "
            "uauc>=+0.002, auc.low@user_cold>0 or ctr.uauc>=0"
        )
    return Gate(
        text=text,
        task=names[0] if len(names) == 2 else "",
        metric=names[-1],
        part=part or "difference",
        cohort=(found["cohort"] or ALL).strip(),
        operator=found["operator"],
        bound=bound,
    )


def check_names(gate: Gate, cohorts: Iterable[str], metrics: Iterable[str]) -> str:
    """Return the cohort that a gate means; it and the metric must be known.

    Raises:
        UserError: no such cohort, by name or title, or no such metric.
    """
    known, metrics = list(cohorts), list(metrics)
    found = [name for name in known if gate.cohort in (name, cohort_title(name))]
    for kind, name, is_known, names in (
        ("cohort", gate.cohort, bool(found), known),
        ("metric", gate.metric, gate.metric in metrics, metrics),
    ):
        if not is_known:
            raise UserError(
                f"--gate {gate.text}: no {kind} {name}; there are {', '.join(names)}"
            )
    return found[0]


def check_gate(
    gate: Gate, differences: Mapping[str, Mapping[str, PairedDifference]]
) -> GateResult:
    """Check one condition on the differences by cohort and metric.

    Raises:
        UserError: no such cohort or metric.
    """
    metrics = next(iter(differences.values()), {})
    cohort = check_names(gate, differences, metrics)
    value = float(getattr(differences[cohort][gate.metric], gate.part))
    passed = _OPERATORS[gate.operator](value, gate.bound)  # a NaN compares as false
    return GateResult(gate.text, value, passed)
