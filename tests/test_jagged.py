import doctest

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from learn_torchrec import jagged
from learn_torchrec.errors import UserError
from learn_torchrec.jagged import Jagged, positions_in, take_index

ROWS = st.lists(st.lists(st.integers(-9, 9), max_size=4), min_size=1, max_size=8)


def lists(rows: Jagged) -> list[list[int]]:
    return [rows[n].tolist() for n in range(len(rows))]


def test_examples():
    results = doctest.testmod(jagged, extraglobs={"np": np})
    assert results.attempted
    assert not results.failed


@given(ROWS, st.data())
def test_every_operation_equals_plain_lists(rows, data):
    built = Jagged.from_lists(rows)
    assert lists(built) == rows
    assert built.owners().tolist() == [n for n, row in enumerate(rows) for _ in row]
    positions = positions_in(built.lengths)
    assert positions.tolist() == [i for row in rows for i in range(len(row))]
    wanted = data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=6))
    numbers = np.array(wanted, np.int64)
    assert lists(built.take(numbers)) == [rows[n] for n in wanted]
    index, offsets = take_index(built.offsets, numbers)
    assert lists(Jagged(built.values[index], offsets)) == [rows[n] for n in wanted]
    kept = built.filter(built.values > 0)
    assert lists(kept) == [[x for x in row if x > 0] for row in rows]


@pytest.mark.parametrize("offsets", [[], [1, 2], [0, 3], [0, 2, 1, 2], [[0, 2]]])
def test_offsets_that_do_not_fit_are_refused(offsets):
    with pytest.raises(UserError, match="must rise from 0 to the number of values, 2"):
        Jagged(np.array([5, 6]), np.array(offsets, np.int64))
