"""Nulls: ids without an embedding, numbers that become the mean, counted."""

import dataclasses
import logging

import numpy as np
import pyarrow as pa
import pytest

from learn_torchrec.errors import UserError
from learn_torchrec.ranker.encode import Encoder
from learn_torchrec.ranker.features import (
    BucketizedFeature,
    CalendarFeature,
    DenseFeature,
    FeaturesConfig,
    HashedFeature,
    IndexedFeature,
    ManagedCollisionFeature,
)
from learn_torchrec.ranker.rows import RankingRows
from learn_torchrec.ranker.tasks import TaskConfig

TABLE = pa.table(
    {
        "user_id": [1, 2, 3, 4],
        "item_id": [1, 1, 1, 1],
        "timestamp": [10, 20, 30, 40],
        "label": pa.array([1, 0, 0, 1], pa.float32()),
        "store": pa.array(["a", None, "b", None]),
        "kind": pa.array(["x", None, "y", "x"]).dictionary_encode(),
        "place": pa.array([2, None, 9, 0]),
        "tags": [[1, None], None, [], [3]],
        "shares": [[0.5, None], None, [], [2.0]],
        "price": [4.0, None, float("nan"), 8.0],
        "stock": pa.array([1, None, 3, None]),
        "since": pa.array([0, None, 90_000, 3_700], pa.timestamp("s")),
    }
)
ALL = FeaturesConfig(
    sparse=(
        HashedFeature(column="store", num_embeddings=50),
        HashedFeature(column="kind", num_embeddings=50),
        IndexedFeature(column="place", num_embeddings=5),
        HashedFeature(column="tags", num_embeddings=50, weights="shares"),
        BucketizedFeature(column="price", boundaries=(5.0,)),
        CalendarFeature(column="since", part="hour"),
        ManagedCollisionFeature(column="store", name="managed"),
    ),
    dense=(
        DenseFeature(column="price", transform="standard", mean=6, std=2),
        DenseFeature(column="stock", mean=7, null_flag=True),
    ),
)


def encode(features, table=TABLE):
    return Encoder(features, (TaskConfig(),), None, "file")(table)


@pytest.mark.parametrize(
    "kind", [pa.bool_(), pa.int8(), pa.float64(), pa.decimal128(3)]
)
def test_a_label_of_any_number_type_may_be_null(kind):
    labels = pa.array([1, None, 0, 1], pa.int8()).cast(kind)
    table = TABLE.set_column(3, "label", labels)
    encoder = Encoder(ALL, (TaskConfig(),), None, "file", labelled=False)
    assert encoder.encode(encoder.checked(table)).labels["label"].tolist() == [
        1,
        0,
        0,
        1,
    ]


@pytest.mark.parametrize("weight", [None, float("nan")])
def test_a_weight_must_not_be_null(weight):
    table = TABLE.append_column("weight", pa.array([1.0, 1.0, weight, 1.0]))
    with pytest.raises(UserError, match=r"'weight' is null in row 2; fill it, with 1"):
        encode(ALL, table)


def test_a_null_has_no_id_and_the_mean_of_its_column():
    rows = encode(ALL)
    lengths = {name: ids.lengths.tolist() for name, ids in rows.sparse.items()}
    assert lengths == {
        "store": [1, 0, 1, 0],
        "kind": [1, 0, 1, 1],
        "place": [1, 0, 0, 1],  # 9 is outside its table
        "tags": [1, 0, 0, 1],
        "price": [1, 0, 0, 1],
        "since_hour": [1, 0, 1, 1],
    }
    assert rows.managed["managed"].lengths.tolist() == [1, 0, 1, 0]
    assert rows.sparse["tags"].weights.tolist() == [0.5, 2.0]
    assert rows.sparse["price"].values.tolist() == [0, 1]
    assert rows.sparse["since_hour"].values.tolist() == [0, 1, 1]
    assert rows.dense.tolist() == [[-1, 1, 0], [0, 7, 1], [0, 3, 0], [1, 7, 1]]


def test_nulls_are_counted_by_feature(caplog):
    rows = encode(ALL)
    report = rows.report()
    expected = {"store": 2, "kind": 1, "place": 1, "tags": 2, "price": 2}
    expected |= {"since_hour": 1, "managed": 2, "stock": 2}
    assert report.nulls == expected
    assert report.left_out == {"place": 1}
    some = rows.take(np.array([0, 3])).report()
    assert some.nulls == {"store": 1, "tags": 1, "managed": 1, "stock": 1}
    parts = [encode(ALL, TABLE.slice(at, 2)) for at in (0, 2)]
    assert RankingRows.concatenate(parts).report() == report
    assert (parts[0].report() + parts[1].report()).facts()["nulls"] == report.nulls
    with caplog.at_level(logging.WARNING):
        report.log()
    assert "feature 'stock': null in 2 of 4 rows" in caplog.text


def test_without_nulls_nothing_is_counted():
    whole = TABLE.slice(0, 1).set_column(7, "tags", pa.array([[1, 2]]))
    whole = whole.set_column(8, "shares", pa.array([[0.5, 1.0]]))
    assert encode(ALL, whole).report().nulls == {}


@pytest.mark.parametrize(
    ("feature", "message"),
    [
        (HashedFeature(column="store"), "'store' is null in row 1; fill it, or set"),
        (HashedFeature(column="tags"), "'tags' holds a null in row 0"),
        (
            BucketizedFeature(column="price", boundaries=(1,)),
            "'price' is null in row 1",
        ),
    ],
)
def test_nulls_can_be_refused(feature, message):
    features = FeaturesConfig(sparse=(feature,), nulls="refuse")
    with pytest.raises(UserError, match=message):
        encode(features)
    dense = FeaturesConfig(dense=(DenseFeature(column="stock"),), nulls="refuse")
    with pytest.raises(UserError, match="'stock' is null in row 1"):
        encode(dense)


def test_an_id_needs_its_weight():
    table = TABLE.set_column(8, "shares", pa.array([[None, 0.5], None, [], [2.0]]))
    with pytest.raises(UserError, match="'shares' is null in row 0, where 'tags'"):
        encode(ALL, table)
    table = TABLE.set_column(8, "shares", pa.array([[0.5], None, [], [2.0]]))
    with pytest.raises(UserError, match=r"1 weights in row 0, but 'tags' has 2 ids"):
        encode(ALL, table)


def test_infinity_is_refused_beside_nulls():
    table = TABLE.set_column(9, "price", pa.array([4.0, None, float("-inf"), 8.0]))
    with pytest.raises(
        UserError, match="column 'price' is -inf in row 2, no finite float64; replace"
    ):
        encode(dataclasses.replace(ALL, sparse=ALL.sparse[:1]), table)


@pytest.mark.parametrize("transform", ["standard", "log"])
def test_any_finite_number_stays_finite_and_within_ten_deviations(transform):
    feature = DenseFeature(column="x", transform=transform, mean=2.0, std=1e-300)
    numbers = np.array([1e308, -1e308, 0.0, 5e-324, 2.0])
    found = feature.apply(numbers)
    assert np.isfinite(found).all()
    assert np.abs(found).max() == 10.0


def test_transforms_by_hand():
    numbers = np.array([-3.0, 0.0, 1.0])
    standard = DenseFeature(column="x", transform="standard", mean=1.0, std=2.0)
    assert standard.apply(numbers).tolist() == [-2, -0.5, 0]
    log = DenseFeature(column="x", transform="log", mean=0.0, std=0.5)
    expected = [-2 * np.log(4), 0, 2 * np.log(2)]
    assert log.apply(numbers).tolist() == pytest.approx(expected)
    assert DenseFeature(column="x").apply(numbers).tolist() == numbers.tolist()


def test_parts_of_a_time_by_hand():
    # A Thursday; Saturday, 2026-08-01 23:59:59; the last second of 1969; year 1800.
    seconds = [0, 1_785_628_799, -1, -5_364_662_400]
    for column in (pa.array(seconds), pa.array(seconds, pa.timestamp("s", "UTC"))):
        table = pa.table({"t": column})

        def part(name, table=table):
            feature = CalendarFeature(column="t", part=name)
            return feature.encode(table, "file").values.tolist()

        assert part("hour") == [0, 23, 23, 0]
        assert part("weekday") == [3, 5, 2, 2]
        assert part("month") == [0, 7, 11, 0]
        assert part("year") == [70, 126, 69, 0]
    days = pa.table({"t": pa.array([0, 59], pa.date32())})
    assert CalendarFeature(column="t", part="month").encode(
        days, "file"
    ).values.tolist() == [0, 2]
    hour = CalendarFeature(column="t", part="hour")
    for alike in (pa.array([3_600.5, 7_199]), ["1970-01-01 01:00", "1970-01-01"]):
        assert hour.encode(pa.table({"t": alike}), "file").values.tolist()[0] == 1
    with pytest.raises(UserError, match="column 't' is bool, must be a date or time"):
        hour.encode(pa.table({"t": [True]}), "file")
    with pytest.raises(UserError, match="column 't' holds 'x'; write times as"):
        hour.encode(pa.table({"t": ["x"]}), "file")


def test_one_column_gives_several_features():
    hour, weekday = (
        CalendarFeature(column="timestamp", part=part) for part in ("hour", "weekday")
    )
    assert [hour.name, weekday.name] == ["timestamp_hour", "timestamp_weekday"]
    assert hour.table_name == "t_timestamp_hour"
    assert HashedFeature(column="user.age").name == "user_age"
    with pytest.raises(
        ValueError, match="sparse: store listed twice; list it once, or"
    ):
        FeaturesConfig(sparse=(HashedFeature(column="store"),) * 2)
