import pytest

from learn_torchrec.errors import UserError
from learn_torchrec.evaluation.cohorts import (
    CohortConfig,
    assign_cohorts,
)

DAY = 86_400


def test_bounds_of_the_paper() -> None:
    config = CohortConfig()
    users = assign_cohorts(
        [0, 1, 35, 36, 500], config.user_long_tail_from, config.user_others_from
    )
    assert users["cold"].tolist() == [True, False, False, False, False]
    assert users["long_tail"].tolist() == [False, True, True, False, False]
    assert users["others"].tolist() == [False, False, False, True, True]
    items = assign_cohorts(
        [0, 29, 30], config.item_long_tail_from, config.item_others_from
    )
    assert items["long_tail"].tolist() == [False, True, False]
    assert items["others"].tolist() == [False, False, True]


def test_negative_counts_are_refused() -> None:
    with pytest.raises(UserError, match="negative count in row 1"):
        assign_cohorts([0, -1], 1, 5)


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
