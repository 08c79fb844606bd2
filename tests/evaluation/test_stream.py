import doctest
import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stream_ranks import on_ranks

from learn_torchrec.errors import UserError
from learn_torchrec.evaluation import pooled_stream, stream
from learn_torchrec.evaluation.auc import evaluate_auc
from learn_torchrec.evaluation.conventions import Convention
from learn_torchrec.evaluation.predictions import read_predictions, stream_predictions
from learn_torchrec.evaluation.stream import MetricsStream

NAMES = ("auc", "uauc", "wuauc", "ne", "log_loss", "calibration")
COUNTS = ("rows", "users", "users_kept", "positives")


def streamed(columns, batch, convention=None, communicator=None):
    result = MetricsStream(
        convention or Convention(), threads=2, communicator=communicator
    )
    for start in range(0, len(columns[0]), batch):
        result.add(*(None if c is None else c[start : start + batch] for c in columns))
    return result.finish()


def table(seed=0, num_rows=5000, num_users=300, is_weighted=False):
    random = np.random.default_rng(seed)
    return (
        random.integers(num_users, size=num_rows) * 1_000_003 - 7,
        (random.random(num_rows) < 0.2).astype(np.int64),
        random.integers(50, size=num_rows) / 50,
        random.integers(4, size=num_rows) / 2 if is_weighted else None,
    )


def assert_close(left, right) -> None:
    for name in NAMES:
        a, b = left[name], right[name]
        assert a == pytest.approx(b, abs=1e-12, nan_ok=True), name
    for name in COUNTS:
        assert left[name] == right[name]


@pytest.fixture
def small_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a few thousand rows take the paths of many millions."""
    for module in (stream, pooled_stream):
        monkeypatch.setattr(module, "_TASK_ROWS", 100)
    monkeypatch.setattr(pooled_stream, "_RANGE_ROWS", 500)


@pytest.mark.usefixtures("small_tasks")
@pytest.mark.parametrize("is_weighted", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_equals_the_whole_table(is_weighted: bool, dtype: type) -> None:
    users, labels, scores, weights = table(is_weighted=is_weighted)
    columns = (users, labels, scores.astype(dtype) / 3, weights)
    assert_close(streamed(columns, 700), evaluate_auc(*columns))


@pytest.mark.usefixtures("small_tasks")
@pytest.mark.parametrize("ties", ["positive", "negative"])
@pytest.mark.parametrize("user_weight", ["positives", "none", "impressions", "clicks"])
def test_conventions_equal_the_whole_table(ties: str, user_weight: str) -> None:
    convention = Convention(single_class="half", ties=ties, user_weight=user_weight)
    columns = table(num_rows=600)
    clicks = np.random.default_rng(1).integers(3, size=600)
    assert_close(
        streamed((*columns, clicks), 90, convention),
        evaluate_auc(*columns, clicks=clicks, convention=convention),
    )


@pytest.mark.usefixtures("small_tasks")
def test_string_ids_give_the_same() -> None:
    users, *rest = table()
    names = np.array([f"user {user}" for user in users])
    assert_close(streamed((names, *rest), 700), streamed((users, *rest), 700))


rows = st.lists(
    st.tuples(st.integers(-3, 3), st.booleans(), st.integers(0, 6)), max_size=60
)


@given(rows, st.randoms(use_true_random=False), st.integers(1, 20))
@settings(max_examples=60, deadline=None)
def test_order_split_and_monotone_scores_change_nothing(rows, random, batch) -> None:
    if not rows:
        return
    users, labels, steps = (np.array(column) for column in zip(*rows, strict=True))
    labels, scores = labels.astype(int), steps / 8
    whole = streamed((users, labels, scores), len(users))
    order = np.array(random.sample(range(len(users)), len(users)))
    other = streamed((users[order], labels[order], np.exp(scores[order])), batch)
    for name in ("auc", "uauc", "wuauc", "users", "users_kept", "positives"):
        a, b = whole[name], other[name]
        assert a == b or (math.isnan(a) and math.isnan(b)), name  # to the last bit


def test_no_row_one_row_and_equal_scores() -> None:
    empty = MetricsStream().finish()
    assert empty["rows"] == empty["users"] == 0
    assert all(math.isnan(empty[name]) for name in NAMES)
    one = streamed((np.array(["a"]), np.array([1]), np.array([0.5])), 1)
    assert [one[name] for name in COUNTS] == [1, 1, 0, 1]
    assert math.isnan(one["auc"])
    assert one["log_loss"] == pytest.approx(math.log(2))
    equal = streamed((np.array([1, 1, 2]), np.array([1, 0, 0]), np.full(3, 0.3)), 2)
    assert equal["auc"] == equal["uauc"] == equal["wuauc"] == 0.5


@pytest.mark.usefixtures("small_tasks")
@pytest.mark.parametrize("is_weighted", [False, True])
@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("as_string", [False, True])
def test_many_ranks_equal_one(size: int, is_weighted: bool, as_string: bool) -> None:
    users, *rest = table(num_rows=3000, is_weighted=is_weighted)
    columns = (users.astype(str) if as_string else users, *rest)
    # The last rank has no rows at all.
    bounds = [0, *(1000 * rank for rank in range(1, size)), 1000 * (size - 1)]
    bounds[-2] = 1000 * (size - 1)
    whole = streamed([None if c is None else c[: bounds[-1]] for c in columns], 400)

    def work(communicator):
        mine = slice(bounds[communicator.rank], bounds[communicator.rank + 1])
        return streamed(
            [None if c is None else c[mine] for c in columns], 400, None, communicator
        )

    results = on_ranks(size, work)
    assert all(result == results[0] for result in results)
    assert_close(results[0], whole)
    if not is_weighted:
        for name in ("auc", "uauc", "wuauc"):
            assert results[0][name] == whole[name]


def write(path: Path, columns, **options) -> None:
    names = ("user_id", "label", "score", "weight")
    body = {n: c for n, c in zip(names, columns, strict=True) if c is not None}
    body["title"] = ["never read"] * len(columns[0])
    pq.write_table(pa.table(body), path, **options)


def test_files_are_streamed_and_shared_by_ranks(tmp_path: Path) -> None:
    columns = table(num_rows=2000)
    folder = tmp_path / "predictions.parquet"
    folder.mkdir()
    for number, part in enumerate((slice(0, 1300), slice(1300, None))):
        mine = [None if c is None else c[part] for c in columns]
        write(folder / f"part-{number}.parquet", mine, row_group_size=300)

    def read(communicator):
        result = MetricsStream(communicator=communicator)
        stream_predictions(tmp_path, result, communicator)
        return result.finish()

    expected = evaluate_auc(*columns)
    for result in (read(None), *on_ranks(2, read)):
        assert_close(result, expected)


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("label", [1, 2], "label: neither 0 nor 1 in row 1"),
        ("score", [0.5, math.nan], "score: not finite in row 1"),
        ("score", [0.5, None], "score: null in row 1"),
        ("label", pa.nulls(2, pa.int8()), "2 of 2 rows have no label .*nulls alone"),
        ("score", ["a", "b"], "score: string; a number is needed"),
        ("weight", [1, -1], "weight: negative or not finite in row 1"),
        ("weight", [1, 1e-170], "weight: not between 1e-100 and 1e.100 in row 1"),
        ("weight", [1e200, 0], "weight: not between 1e-100 and 1e.100 in row 0"),
        ("user_id", [0.5, 1.5], "ids are double; use int64 or string"),
    ],
)
def test_unfit_files_are_refused(tmp_path: Path, column, values, message) -> None:
    body = {"user_id": [1, 2], "label": [0, 1], "score": [0.1, 0.2]} | {column: values}
    path = tmp_path / "p.parquet"
    pq.write_table(pa.table(body), path)
    with pytest.raises(UserError, match=message) as refused:
        stream_predictions(path, MetricsStream())
    assert str(path) in str(refused.value)


def test_rows_without_a_label_are_left_out(tmp_path: Path, caplog) -> None:
    """In memory, streamed, and by each of two ranks."""
    users, labels, scores, _ = table(num_rows=2000)
    has_label = np.random.default_rng(1).random(2000) < 0.7
    expected = evaluate_auc(*(x[has_label] for x in (users, labels, scores)))
    body = {"user_id": users, "label": pa.array(labels, mask=~has_label)}
    path = tmp_path / "p.parquet"
    pq.write_table(pa.table(body | {"score": scores}), path, row_group_size=300)

    def read(communicator):
        result = MetricsStream(communicator=communicator)
        stream_predictions(path, result, communicator)
        return result.finish()

    for result in (read(None), *on_ranks(2, read)):
        assert_close(result, expected)
    said = f"{path}: {(~has_label).sum()} of 2000 rows have no label; left out"
    assert caplog.messages == [said] * 2  # once by one process, once by rank 0 of two
    found = read_predictions(path)
    assert caplog.messages == [said] * 3
    assert found.scores.tolist() == scores[has_label].tolist()


def test_bad_rows_are_counted_over_all_batches() -> None:
    result = MetricsStream()
    result.add([1, 1], [0, 1], [0.1, 0.2])
    with pytest.raises(UserError, match="score: not finite in row 3 "):
        result.add([1, 1], [0, 1], [0.1, math.inf])


def test_weights_in_some_batches_only_are_refused() -> None:
    result = MetricsStream()
    result.add([1, 1], [0, 1], [0.1, 0.2], [1, 2])
    with pytest.raises(UserError, match="weight, click: in some batches only"):
        result.add([1, 1], [0, 1], [0.1, 0.2])


def test_an_empty_file_and_ties_by_order_are_refused(tmp_path: Path) -> None:
    columns = [np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0), None]
    write(tmp_path / "p.parquet", columns)
    with pytest.raises(UserError, match="no rows"):
        stream_predictions(tmp_path / "p.parquet", MetricsStream())
    with pytest.raises(UserError, match="ties=first"):
        MetricsStream(Convention(ties="first"))


def test_docstring_example() -> None:
    result = doctest.testmod(stream)
    assert result.attempted > 0
    assert result.failed == 0
