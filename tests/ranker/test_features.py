"""How columns become features: every kind of ID feature, numbers, labels, weights."""

import dataclasses

import numpy as np
import pyarrow as pa
import pytest
import torch

from learn_torchrec import config as configs
from learn_torchrec.errors import UserError
from learn_torchrec.ids import as_ids, hash_ids
from learn_torchrec.ranker.batch import collate
from learn_torchrec.ranker.config import RankerConfig
from learn_torchrec.ranker.encode import Encoder
from learn_torchrec.ranker.features import (
    BucketizedFeature,
    FeaturesConfig,
    HashedFeature,
    IndexedFeature,
    ManagedCollisionFeature,
)
from learn_torchrec.ranker.rows import RankingRows
from learn_torchrec.ranker.tasks import TaskConfig
from learn_torchrec.training.table_optimizer import TableOptimizerConfig

TABLE = pa.table(
    {
        "user_id": [1, 2, 3, 4, 5],
        "item_id": ["a", "b", "a", "c", "b"],
        "timestamp": [10, 20, 30, 40, 50],
        "label": pa.array([1, 0, 0, 1, 0], pa.float32()),
        "tags": [["x"], [], ["x", "y"], ["y"], ["z", "x", "z"]],
        "price": [1.0, 2.0, 3.0, 4.0, 5.0],
    }
)
FEATURES = FeaturesConfig(
    sparse=(
        HashedFeature(column="user_id", num_embeddings=50),
        HashedFeature(column="tags", num_embeddings=20),
    ),
    dense=("price",),
)


def encode(table, features, *tasks, nulls="refuse"):
    features = dataclasses.replace(features, nulls=nulls)
    return Encoder(features, tasks or (TaskConfig(),), None, "file")(table)


def hashed(ids, rows):
    return (hash_ids(as_ids(ids, "ids")) % np.uint64(rows)).tolist()


def test_rows_by_hand():
    rows = encode(TABLE, FEATURES)
    assert rows.dense.tolist() == [[1], [2], [3], [4], [5]]
    assert rows.labels["label"].tolist() == [1, 0, 0, 1, 0]
    assert rows.weights.tolist() == [1] * 5
    weighted = encode(with_column("weight", [0, 0.5, 1, 2, 3]), FEATURES)
    assert weighted.weights.tolist() == [0, 0.5, 1, 2, 3]
    assert rows.sparse["tags"].offsets.tolist() == [0, 1, 1, 3, 4, 7]
    assert rows.sparse["tags"].values.tolist() == hashed(list("xxyyzxz"), 20)
    assert rows.sparse["user_id"].values.tolist() == hashed([1, 2, 3, 4, 5], 50)


def test_a_batch_is_cut_out_of_the_rows():
    rows = encode(TABLE, FEATURES)
    batch = collate(rows.take(np.array([4, 1, 2])), None)
    assert batch.dense_features.tolist() == [[5], [2], [3]]
    assert batch.labels["label"].tolist() == [0, 0, 0]
    tags = batch.sparse_features["tags"].to_dense()
    expected = [["z", "x", "z"], [], ["x", "y"]]
    assert [t.tolist() for t in tags] == [
        hashed(pa.array(e, pa.string()), 20) for e in expected
    ]
    assert batch.learn is None


def test_taken_and_joined_rows_keep_everything_together():
    table = with_column("tags", [[3], [], [9, 0], [2], [1, 1, 8]])
    table = table.append_column(
        "shares", pa.array([[0.5], [], [0.25, 2.0], [1.0], [3.0, 4.0, 5.0]])
    )
    features = sparse(IndexedFeature, column="tags", num_embeddings=4, weights="shares")
    rows, order = encode(table, features), np.array([2, 0, 4])
    parts = [encode(table.slice(at, 1), features) for at in order]
    chosen, joined = rows.take(order), RankingRows.concatenate(parts)
    for found in (chosen, joined):
        assert found.dense[:, 0].tolist() == [3, 1, 5]
        assert found.labels["label"].tolist() == [0, 1, 0]
        tags = found.sparse["tags"]
        assert tags.values.tolist() == [0, 3, 1, 1]
        assert tags.offsets.tolist() == [0, 1, 2, 4]
        assert tags.weights.tolist() == [2, 0.5, 3, 4]
        assert tags.left_out.tolist() == [1, 0, 1]


def test_other_arrow_types_hash_alike():
    plain = TABLE["user_id"].combine_chunks()
    features = sparse(HashedFeature, column="shop", num_embeddings=50)
    for column in (
        plain.cast(pa.int32()),
        plain.cast(pa.uint64()),
        plain.dictionary_encode(),
    ):
        rows = encode(TABLE.append_column("shop", column), features)
        assert rows.sparse["shop"].values.tolist() == hashed([1, 2, 3, 4, 5], 50)
    pairs = pa.FixedSizeListArray.from_arrays(pa.array(list("xyxyxyxyxy")), 2)
    table = TABLE.drop_columns(["tags"]).append_column("tags", pairs)
    tags = encode(table, FEATURES).sparse["tags"]
    assert tags.offsets.tolist() == [0, 2, 4, 6, 8, 10]


def test_large_numbers_are_rounded_to_float32():
    table = with_column("price", [20_000_001, 1, 2, 3, 4])
    assert encode(table, FEATURES).dense[0, 0] == 20_000_000


def with_column(name, values):
    table = TABLE
    if name in table.column_names:
        table = table.drop_columns([name])
    return table.append_column(name, pa.array(values))


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (TABLE.drop_columns(["price"]), "file: column 'price' is missing"),
        (with_column("price", [1, 2, None, 4, 5]), "'price' is null in row 2"),
        (
            with_column("price", list("abcde")),
            "file: column 'price' is string, must be a number",
        ),
        (with_column("price", [1, 2, 3, np.inf, 5]), "'price' is inf in row 3"),
        (
            with_column("price", [1, 1e300, 3, 4, 5]),
            "is 1e.300 in row 1, no finite flo",
        ),
        (with_column("tags", [0.5] * 5), "file: column 'tags': ids are double"),
        (
            with_column("tags", [["x"], [None], [], [], []]),
            "tags' holds a null in row 1",
        ),
        (with_column("weight", [1.0, 1, 1, -1, 1]), "'weight' is negative in row 3"),
    ],
)
def test_bad_columns_are_refused(table, message):
    with pytest.raises(UserError, match=message):
        encode(table, FEATURES)


def sparse(kind, **options):
    return FeaturesConfig(sparse=(kind(**options),), dense=("price",))


def test_ids_outside_an_indexed_table_are_left_out_and_counted():
    table = with_column("tags", [[3], [], [4, 0, -1], [2, 7], [1, 1]])
    features = sparse(IndexedFeature, column="tags", num_embeddings=4)
    rows = encode(table, features)
    tags = rows.sparse["tags"]
    assert tags.values.tolist() == [3, 0, 2, 1, 1]
    assert tags.offsets.tolist() == [0, 1, 1, 2, 3, 5]
    assert rows.report().left_out == {"tags": 3}
    kept = rows.take(np.array([0, 1, 2]))
    assert kept.report().left_out == {"tags": 2}
    both = kept.report() + kept.report()
    assert both.facts()["ids_left_out"] == {"tags": 4}
    assert both.facts()["rows"] == 6


def test_weights_go_with_their_ids():
    table = with_column("shares", [[0.5], [], [0.25, 2.0], [1.0], [3.0, 4.0, 5.0]])
    features = FeaturesConfig(
        sparse=(
            HashedFeature(column="user_id", num_embeddings=50),
            HashedFeature(column="tags", num_embeddings=20, weights="shares"),
        ),
        dense=("price",),
    )
    batch = collate(encode(table, features).take(np.array([4, 2])), None)
    weights = batch.sparse_features.weights().tolist()
    assert weights == [1, 1, 3, 4, 5, 0.25, 2]  # users have weight 1
    assert batch.sparse_features["tags"].lengths().tolist() == [3, 2]


def test_weights_of_ids_left_out_go_too():
    table = with_column("tags", [[3], [], [9, 0], [2], [1, 1, 8]])
    table = table.append_column(
        "shares", pa.array([[0.5], [], [0.25, 2.0], [1.0], [3.0, 4.0, 5.0]])
    )
    features = sparse(IndexedFeature, column="tags", num_embeddings=4, weights="shares")
    tags = encode(table, features).sparse["tags"]
    assert tags.values.tolist() == [3, 0, 2, 1, 1]
    assert tags.weights.tolist() == [0.5, 2, 1, 3, 4]


def test_labels_of_all_tasks_travel_by_name():
    table = with_column("bought", [0, 1, 1, 0, 1])
    rows = encode(table, FEATURES, TaskConfig(auxiliary_label="bought"))
    labels = collate(rows.take(np.array([0, 1])), None).labels
    assert {name: values.tolist() for name, values in labels.items()} == {
        "label": [1, 0],
        "bought": [0, 1],
    }
    assert list(encode(TABLE, FEATURES).labels) == ["label"]


def test_managed_ids_travel_apart():
    features = FeaturesConfig(
        sparse=(
            ManagedCollisionFeature(column="user_id"),
            HashedFeature(column="tags", num_embeddings=20),
        ),
        dense=("price",),
    )
    rows = encode(TABLE, features)
    batch = collate(rows, None)
    assert batch.sparse_features.keys() == ["tags"]
    assert batch.managed_features.keys() == ["user_id"]
    keys = batch.managed_features.values()
    assert len(set(keys.tolist())) == 5
    assert (keys >= 0).all()


@pytest.mark.parametrize(
    ("table", "feature", "message"),
    [
        (TABLE, IndexedFeature(column="item_id"), "'index' must be int64"),
        (
            with_column("shares", [[1.0], [1.0], [], [1.0], []]),
            HashedFeature(column="tags", weights="shares"),
            "'shares' has 1 weights in row 1, but 'tags' has 0 ids",
        ),
        (
            with_column("shares", [["a"]] * 5),
            HashedFeature(column="user_id", weights="shares"),
            "'shares' is string, must be a number",
        ),
        (
            with_column("price", [1.0, 2, np.nan, 4, 5]),
            BucketizedFeature(column="price", boundaries=(2.0,)),
            "'price' is null in row 2",
        ),
        (
            TABLE,
            BucketizedFeature(column="item_id", boundaries=(2.0,)),
            "'item_id' is string, must be a number",
        ),
    ],
)
def test_bad_id_features_are_refused(table, feature, message):
    with pytest.raises(UserError, match=message):
        encode(table, FeaturesConfig(sparse=(feature,)))


def test_lists_are_no_dense_feature():
    table = with_column("sizes", [[1.0]] * 5)
    with pytest.raises(UserError, match=r"'sizes' is list<.*>, must be a number"):
        encode(table, FeaturesConfig(dense=("sizes",)))


def test_a_bad_auxiliary_label_is_refused():
    with pytest.raises(UserError, match=r"'price' is 2\.0 in row 1, must be 0 or 1"):
        encode(TABLE, FEATURES, TaskConfig(auxiliary_label="price"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": "w"}, "weights: managed_collision does not"),
        ({"sharding": "table_wise"}, "row_wise only, not table_wise"),
    ],
)
def test_what_managed_collision_cannot_do_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ManagedCollisionFeature(column="user_id", **options)


@pytest.mark.parametrize(("asked", "rows"), [(1, 192), (192, 192), (193, 384)])
def test_managed_tables_have_a_multiple_of_192_rows(asked, rows):
    feature = ManagedCollisionFeature(column="user_id", num_embeddings=asked)
    assert feature.table_rows == rows


def test_optimizers_that_cannot_reset_their_state_are_refused():
    feature = ManagedCollisionFeature(column="user_id")
    rowwise = TableOptimizerConfig(optimizer="rowwise_adagrad")
    with pytest.raises(UserError, match=r"rowwise_adagrad.*'user_id'.*use adagrad"):
        feature.check(rowwise, torch.device("cpu"))
    feature.check(rowwise, torch.device("cuda"))
    feature.check(TableOptimizerConfig(optimizer="adagrad"), torch.device("cpu"))


def test_numbers_are_bucketized_by_hand():
    table = with_column("price", [-7.5, 2, 2.5, 10, 1e9])
    feature = BucketizedFeature(column="price", boundaries=(2, 10))
    bags = feature.encode(table, "file")
    assert bags.values.tolist() == [0, 1, 1, 2, 2]  # a boundary opens its bucket
    assert feature.table_rows == 3
    lists = with_column("prices", [[1, 3], [], [30], [2], [9, 10]])
    many = BucketizedFeature(column="prices", boundaries=(2, 10))
    assert many.encode(lists, "file").values.tolist() == [0, 1, 2, 1, 1, 2]
    large = BucketizedFeature(column="price", boundaries=(20_000_001,))
    table = with_column("price", [20_000_000, 20_000_001, 0, 0, 0])
    assert large.encode(table, "file").values.tolist() == [0, 1, 0, 0, 0]


def test_a_bucket_means_its_boundaries():
    one, same, other = (
        BucketizedFeature(column="price", boundaries=boundaries).row_mapping
        for boundaries in ((1.0, 2.0), (1, 2), (1.0, 2.0000001))
    )
    assert one == same == "bucketized at 1.0, 2.0"
    assert one != other


def set_sparse(text):
    run = configs.apply_overrides(RankerConfig(), [f"features.sparse={text}"])
    assert configs.from_dict(RankerConfig, configs.to_dict(run), "again") == run
    return run.features.sparse


def test_features_are_set_by_name_or_in_full():
    assert set_sparse("user_id, item_id,store") == tuple(
        HashedFeature(column=name) for name in ("user_id", "item_id", "store")
    )
    text = """["user_id", {"column": "shop", "ids": "index", "num_embeddings": 7},
        {"column": "price", "ids": "bucketized", "boundaries": [1, 2.5]},
        {"column": "item_id", "ids": "managed_collision", "sharding": "row_wise"}]"""
    assert set_sparse(text) == (
        HashedFeature(column="user_id"),
        IndexedFeature(column="shop", num_embeddings=7),
        BucketizedFeature(column="price", boundaries=(1, 2.5)),
        ManagedCollisionFeature(column="item_id", sharding="row_wise"),
    )


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (
            '{"column": "x", "ids": "index", "rows": 7}',
            "entry 1: unknown name rows; known",
        ),
        ('{"column": "x", "ids": "other"}', "ids: 'other' is none of hash, index,"),
        ('{"column": "x", "num_embeddings": 0}', "must be greater than 0"),
        ('{"ids": "index"}', "entry 1: column: is missing"),
        (
            '{"column": "x", "ids": "bucketized"}',
            "entry 1: boundaries: missing",
        ),
        (
            '{"column": "x", "ids": "bucketized", "boundaries": [2, 1]}',
            "entry 1: boundaries: must be ascending",
        ),
        (
            '{"column": "x", "ids": "bucketized", "boundaries": [1, 1]}',
            "entry 1: boundaries: must be ascending",
        ),
        (
            '{"column": "x", "ids": "managed_collision", "weights": "w"}',
            "entry 1: weights: managed_collision does not",
        ),
    ],
)
def test_bad_settings_name_the_field(entry, message):
    with pytest.raises(UserError) as caught:
        set_sparse(f"[{entry}]")
    assert message in str(caught.value)


def test_features_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        FEATURES.dense = ()
