import pytest

from learn_torchrec.errors import UserError
from learn_torchrec.evaluation.cohorts import CohortConfig, assign_cohorts


def test_bounds_of_the_paper() -> None:
    users = assign_cohorts("user", [0, 1, 35, 36, 500], CohortConfig())
    assert users["user_cold"].tolist() == [True, False, False, False, False]
    assert users["user_long_tail"].tolist() == [False, True, True, False, False]
    assert users["user_others"].tolist() == [False, False, False, True, True]
    items = assign_cohorts("item", [0, 29, 30], CohortConfig())
    assert items["item_long_tail"].tolist() == [False, True, False]
    assert items["item_others"].tolist() == [False, False, True]


def test_negative_counts_are_refused() -> None:
    with pytest.raises(UserError, match="negative count in row 1"):
        assign_cohorts("user", [0, -1], CohortConfig())


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("user_others_from", 0),
        ("item_long_tail_from", 31),
        ("user_long_tail_from", -1),
        ("window_days", 0),
    ],
)
def test_bounds_out_of_order_are_refused(field: str, value: int) -> None:
    with pytest.raises(ValueError, match=field):
        CohortConfig(**{field: value})
