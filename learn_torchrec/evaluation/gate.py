"""Conditions on a paired comparison, for CI and deployment: `uauc>=+0.002`."""

import math
import operator
import re
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from learn_torchrec.errors import UserError
from learn_torchrec.evaluation.significance import PairedDifference

_OPERATORS: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}
_PARTS = {"": "difference", "low": "low", "high": "high", "p": "p_value"}
_PATTERN = re.compile(
    r"(?P<metric>[a-z_]+)(?:\.(?P<part>[a-z]+))?\s*(?:@(?P<cohort>[^<>=]+))?\s*"
    r"(?P<operator>>=|<=|>|<)\s*(?P<bound>[^<>=\s]+)"
)


class Gate(NamedTuple):
    """One condition.

    Attributes:
        text: as the user wrote it.
        metric: e.g. "uauc".
        part: field of `PairedDifference` that is held against the bound.
        cohort: "all", or a cohort's name.
        operator: ">=", "<=", ">" or "<".
        bound: what the part is compared with.
    """

    text: str
    metric: str
    part: str
    cohort: str
    operator: str
    bound: float


class GateResult(NamedTuple):
    """How one condition came out.

    Attributes:
        gate: as the user wrote it.
        value: what was measured; NaN where the metric is undefined, which fails.
        passed: whether the condition holds.
    """

    gate: str
    value: float
    passed: bool


def parse_gate(text: str) -> Gate:
    """Read `METRIC[.low|.high|.p][@COHORT]OPERATOR NUMBER`.

    `uauc>=+0.002` asks for a difference of at least 0.002, `auc.low>0` for an interval
    above zero, `uauc@user_cold>=0` for no loss in a cohort.

    Raises:
        UserError: text of another form.
    """
    found = _PATTERN.fullmatch(text.strip())
    bound = math.nan
    if found:
        try:
            bound = float(found["bound"])
        except ValueError:
            found = None
    if not found or not math.isfinite(bound) or (found["part"] or "") not in _PARTS:
        raise UserError(
            f"--gate {text}: write METRIC[.low|.high|.p][@COHORT]>=NUMBER, e.g. "
            "uauc>=+0.002 or auc.low@user_cold>0"
        )
    return Gate(
        text=text,
        metric=found["metric"],
        part=_PARTS[found["part"] or ""],
        cohort=(found["cohort"] or "all").strip(),
        operator=found["operator"],
        bound=bound,
    )


def check_names(gate: Gate, cohorts: Iterable[str], metrics: Iterable[str]) -> None:
    """Refuse a gate on what is not there, before anything slow.

    Raises:
        UserError: no such cohort or metric.
    """
    for kind, name, known in (
        ("cohort", gate.cohort, list(cohorts)),
        ("metric", gate.metric, list(metrics)),
    ):
        if name not in known:
            raise UserError(
                f"--gate {gate.text}: no {kind} {name}; there are {', '.join(known)}"
            )


def check_gate(
    gate: Gate, differences: Mapping[str, Mapping[str, PairedDifference]]
) -> GateResult:
    """Hold one condition against the differences by cohort and metric.

    Raises:
        UserError: no such cohort or metric.
    """
    check_names(gate, differences, differences.get(gate.cohort, {}))
    metrics = differences[gate.cohort]
    value = float(getattr(metrics[gate.metric], gate.part))
    passed = _OPERATORS[gate.operator](value, gate.bound)  # a NaN compares as false
    return GateResult(gate.text, value, passed)
