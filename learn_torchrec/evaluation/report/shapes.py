"""What the JSON files of a report must hold, checked when they are read."""

from pathlib import Path
from typing import Annotated, Any, NotRequired

from pydantic import AfterValidator, Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from learn_torchrec.errors import UserError
from learn_torchrec.evaluation.cohorts import ALL

REVENUE = "revenue_per_user"  # what the section on an A/B test draws
_MOST = 2**53  # beyond it a number may not be a float
_Count = Annotated[int, Field(ge=0, le=_MOST)]
_Number = Annotated[int, Field(ge=-_MOST, le=_MOST)] | float | None
_Numbers = dict[str, _Number]


class _Gain(TypedDict):
    difference: _Number
    low: _Number
    high: _Number
    p_value: _Number
    p_adjusted: NotRequired[_Number]


def _counted(*names: str) -> AfterValidator:
    def check(values: _Numbers) -> _Numbers:
        for name in names:
            value = values.get(name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 0:
                raise ValueError(f"needs {name!r}, a count")
        return values

    return AfterValidator(check)


def _alike(parts: dict[str, Any]) -> dict[str, Any]:
    first: set[str] = set(next(iter(parts.values()), {}))
    for name, one in parts.items():
        if set(one) != first:
            raise ValueError(f"{name!r} has other names than the first")
    return parts


def _with_all(cohorts: dict[str, Any]) -> dict[str, Any]:
    if cohorts and ALL not in cohorts:
        raise ValueError(f"needs the cohort {ALL!r}")
    return cohorts


_Cohorts = Annotated[
    dict[str, Annotated[_Numbers, _counted("rows", "users_kept")]],
    Field(min_length=1),
    AfterValidator(_with_all),
    AfterValidator(_alike),
]
_Gains = Annotated[
    dict[str, dict[str, _Gain]],
    AfterValidator(_with_all),
    AfterValidator(_alike),
]


class _Ranking(TypedDict):
    ranking: NotRequired[Annotated[dict[str, _Cohorts], AfterValidator(_alike)]]
    ranking_difference: NotRequired[dict[str, _Gains]]


class _Settings(TypedDict):
    convention: NotRequired[dict[str, Any]]


_Group = dict[str, Annotated[_Numbers, _counted("targets", "users")]]


class _Metrics(_Ranking):
    tasks: NotRequired[dict[str, _Ranking]]
    settings: NotRequired[_Settings]
    retrieval: NotRequired[_Group]
    new_targets: NotRequired[_Group]
    repeated_targets: NotRequired[_Group]
    tail_targets: NotRequired[_Group]
    seconds: NotRequired[_Numbers]
    left_out: NotRequired[dict[str, str]]


class _Event(TypedDict):
    day: str
    item: Any
    title: str


class _Item(TypedDict):
    rank: _Count
    item: Any
    title: str


class _Example(TypedDict):
    user: NotRequired[int | str]
    events: NotRequired[_Count]
    history_left_out: NotRequired[bool]
    history: NotRequired[list[_Event]]
    top: NotRequired[list[_Item]]


class _Lift(TypedDict):
    control: _Number
    treatment: _Number
    lift: _Number
    low: _Number
    high: _Number
    p_value: _Number
    bootstrap_low: _Number
    bootstrap_high: _Number


class _DayLift(TypedDict):
    day: _Count
    lift: _Number
    low: _Number
    high: _Number


class _SampleRatio(TypedDict):
    control_users: _Count
    treatment_users: _Count
    expected_share: float
    p_value: float
    is_mismatch: bool


def _with_revenue(metrics: dict[str, Any]) -> dict[str, Any]:
    if REVENUE not in metrics:
        raise ValueError(f"needs {REVENUE!r}")
    return metrics


class _AbTest(TypedDict):
    sample_ratio: _SampleRatio
    lifts: Annotated[
        dict[str, Annotated[dict[str, _Lift], AfterValidator(_with_revenue)]],
        AfterValidator(_with_all),
    ]
    shares: _Numbers
    daily: Annotated[dict[str, list[_DayLift]], AfterValidator(_with_revenue)]
    days: _Count
    is_simulated: bool


AB_SHAPE = TypeAdapter(_AbTest)
METRICS_SHAPE = TypeAdapter(_Metrics)
EXAMPLE_SHAPE = TypeAdapter(_Example)


def refuse_other_shape(shape: TypeAdapter[Any], body: Any, path: Path) -> None:
    """Refuse JSON that is not as its command writes it.

    Raises:
        UserError: names the place in the file.
    """
    try:
        shape.validate_python(body, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        reason = first["msg"].removeprefix("Value error, ")
        raise UserError(
            f"{path}: {where}: {reason[:1].lower()}{reason[1:]}; make it again"
        ) from None
