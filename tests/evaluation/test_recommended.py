"""Another model's recommendations, ranked like any other row."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from learn_torchrec.errors import UserError
from learn_torchrec.evaluation.recommended import recommended_scores
from learn_torchrec.evaluation.retrieval import target_ranks
from learn_torchrec.jagged import Jagged

USERS = pa.array([7, 3])


def written(tmp_path, rows, names=("user_id", "item_id", "rank")):
    columns = [pa.array(list(column)) for column in zip(*rows, strict=True)]
    path = tmp_path / "other.parquet"
    pq.write_table(pa.table(columns, names=list(names)), path)
    return path


def test_ranks_are_those_of_the_file(store, tmp_path):
    # The catalogue is 100 to 139; 999 is none of it, and 5 no test user.
    rows = [
        (3, 120, 2),
        (7, 101, 1),
        (3, 100, 1),
        (7, 999, 2),
        (7, 102, 3),
        (5, 100, 1),
    ]
    score = recommended_scores(written(tmp_path, rows), USERS, store)
    targets = Jagged.from_lists([[1, 2, 30], [0, 20]])
    ranks = target_ranks(score, 40, targets)
    assert ranks.tolist() == [1, 2, 2 + (38 + 1) / 2, 1, 2]
    history = Jagged.from_lists([[1], []])
    assert target_ranks(score, 40, targets, history)[1] == 1  # 101 leaves


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([(7, 101, 1)], "1 of 2 test users have no recommendations, the first is 3"),
        ([(7, 101, 0), (3, 101, 1)], "column rank: below 1 in row 0"),
        ([(7, 101, 1), (7, 101, 2), (3, 101, 1)], "an item is there twice"),
        ([(7, 101, 1.5), (3, 101, 1.0)], "column rank: must hold integers"),
        ([("7", 101, 1), ("3", 101, 1)], "column user_id: ids are string"),
    ],
)
def test_what_does_not_fit_is_said(store, tmp_path, rows, message):
    with pytest.raises(UserError, match=message):
        recommended_scores(written(tmp_path, rows), USERS, store)


def test_a_column_is_missing(store, tmp_path):
    path = written(tmp_path, [(7, 1), (3, 1)], ("user_id", "item_id"))
    with pytest.raises(UserError, match="no column rank; recommendations have user_id"):
        recommended_scores(path, USERS, store)
    with pytest.raises(UserError, match="no such file"):
        recommended_scores(tmp_path / "none", USERS, store)
