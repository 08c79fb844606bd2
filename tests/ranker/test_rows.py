import dataclasses

import numpy as np
import pyarrow as pa
import pytest

from learn_torchrec.errors import UserError
from learn_torchrec.ranker import batch as batches
from learn_torchrec.ranker.hashing import hash_ids
from learn_torchrec.ranker.prepare import prepare_rows
from learn_torchrec.ranker.rows import FeaturesConfig, SparseFeature

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
        SparseFeature(column="user_id", num_embeddings=50),
        SparseFeature(column="tags", num_embeddings=20),
    ),
    dense=("price",),
)


def test_rows_by_hand():
    rows = prepare_rows(TABLE, FEATURES, None, "file")
    assert rows.dense.tolist() == [[1], [2], [3], [4], [5]]
    assert rows.labels.tolist() == [1, 0, 0, 1, 0]
    assert rows.weights.tolist() == [1] * 5
    assert rows.sparse["tags"].offsets.tolist() == [0, 1, 1, 3, 4, 7]
    tags = pa.array(["x", "x", "y", "y", "z", "x", "z"])
    assert rows.sparse["tags"].values.tolist() == hash_ids(tags, 20, "tags").tolist()


def test_a_batch_is_cut_out_of_the_rows():
    rows = prepare_rows(TABLE, FEATURES, None, "file")
    batch = batches.collate(rows, np.array([4, 1, 2]))
    assert batch.dense_features.tolist() == [[5], [2], [3]]
    assert batch.labels.tolist() == [0, 0, 0]
    tags = batch.sparse_features["tags"].to_dense()
    expected = [["z", "x", "z"], [], ["x", "y"]]
    assert [t.tolist() for t in tags] == [
        hash_ids(pa.array(e, pa.string()), 20, "tags").tolist() for e in expected
    ]
    assert batch.user_vectors is None


def test_selected_rows_keep_everything_together():
    rows = prepare_rows(TABLE, FEATURES, None, "file")
    keep = np.array([False, True, True, False, True])
    chosen = rows.select(keep)
    expected = prepare_rows(TABLE.filter(pa.array(keep)), FEATURES, None, "file")
    assert np.array_equal(chosen.dense, expected.dense)
    assert np.array_equal(chosen.labels, expected.labels)
    for name, feature in expected.sparse.items():
        assert np.array_equal(chosen.sparse[name].values, feature.values)
        assert np.array_equal(chosen.sparse[name].offsets, feature.offsets)


def test_other_arrow_types_hash_alike():
    plain = prepare_rows(TABLE, FEATURES, None, "file").sparse["user_id"].values
    for kind in (pa.int32(), pa.uint64(), pa.dictionary(pa.int32(), pa.int64())):
        index = TABLE.column_names.index("user_id")
        column = TABLE["user_id"].combine_chunks()
        if pa.types.is_dictionary(kind):
            column = column.dictionary_encode()
        else:
            column = column.cast(kind)
        table = TABLE.set_column(index, "user_id", column)
        rows = prepare_rows(table, FEATURES, None, "file")
        assert rows.sparse["user_id"].values.tolist() == plain.tolist()
    pairs = pa.FixedSizeListArray.from_arrays(pa.array(list("xyxyxyxyxy")), 2)
    table = TABLE.drop_columns(["tags"]).append_column("tags", pairs)
    tags = prepare_rows(table, FEATURES, None, "file").sparse["tags"]
    assert tags.offsets.tolist() == [0, 2, 4, 6, 8, 10]


def test_large_numbers_are_rounded_to_float32():
    table = with_column("price", [20_000_001, 1, 2, 3, 4])
    assert prepare_rows(table, FEATURES, None, "file").dense[0, 0] == 20_000_000


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
@pytest.mark.parametrize("count", [1, 5, 12, 13])
@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_evaluation_has_every_row_once_and_equal_steps(
    world_size, count, batch_size, monkeypatch
):
    table = pa.table(
        {
            "user_id": np.arange(count),
            "timestamp": np.arange(count),
            "label": np.zeros(count, np.float32),
            "row": np.arange(count, dtype=np.float32),
        }
    )
    features = FeaturesConfig(
        sparse=(SparseFeature(column="user_id", num_embeddings=9),), dense=("row",)
    )
    rows = prepare_rows(table, features, None, "file")
    monkeypatch.setattr(batches.dist, "get_world_size", lambda: world_size)
    seen, shapes = [], []
    for rank in range(world_size):
        monkeypatch.setattr(batches.dist, "get_rank", lambda rank=rank: rank)
        share = batches.rank_rows(count)
        some = rows.take(share if len(share) else np.zeros(1, np.int64))
        width = -(-count // world_size)
        mine = list(batches.evaluation_batches(some, width, batch_size))
        shapes.append([len(batch.labels) for batch in mine])
        real = [b.dense_features[b.weights > 0, 0] for b in mine]
        part = [int(row) for chunk in real for row in chunk][: len(share)]
        assert part == share.tolist()
        seen += part
    assert seen == list(range(count))
    assert all(shape == shapes[0] for shape in shapes)


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_training_batches_do_not_depend_on_the_number_of_ranks(world_size, monkeypatch):
    table = pa.concat_tables([TABLE] * 5)
    table = table.set_column(
        table.column_names.index("price"), "price", pa.array(np.arange(25.0))
    )
    rows = prepare_rows(table, FEATURES, None, "file")

    def epoch(size):
        monkeypatch.setattr(batches.dist, "get_world_size", lambda: size)
        parts = []
        for rank in range(size):
            monkeypatch.setattr(batches.dist, "get_rank", lambda rank=rank: rank)
            parts.append(
                [
                    b.dense_features[:, 0].tolist()
                    for b in batches.training_batches(
                        rows, batch_size=8, seed=3, epoch=1
                    )
                ]
            )
        return [[x for part in step for x in part] for step in zip(*parts, strict=True)]

    assert epoch(world_size) == epoch(1)
    assert len(epoch(1)) == 3
    assert len({row for step in epoch(1) for row in step}) == 24


def test_batch_sizes_must_fit(one_rank, monkeypatch):
    del one_rank
    rows = prepare_rows(TABLE, FEATURES, None, "file")
    with pytest.raises(UserError, match="batch_size=6 is more than the 5"):
        next(batches.training_batches(rows, batch_size=6, seed=0, epoch=0))
    monkeypatch.setattr(batches.dist, "get_world_size", lambda: 2)
    with pytest.raises(UserError, match="batch_size=3 must be a multiple"):
        next(batches.training_batches(rows, batch_size=3, seed=0, epoch=0))


def with_column(name, values):
    table = TABLE
    if name in table.column_names:
        table = table.drop_columns([name])
    return table.append_column(name, pa.array(values))


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (TABLE.drop_columns(["price"]), "file: feature column 'price' is missing"),
        (with_column("price", [1, 2, None, 4, 5]), "'price' is null in row 2"),
        (with_column("price", list("abcde")), "dense feature 'price' is string"),
        (with_column("price", [1, 2, 3, np.inf, 5]), "'price' is inf in row 3"),
        (with_column("user_id", [0.5] * 5), "column 'user_id': ids are double"),
        (with_column("tags", [["x"], [None], [], [], []]), "holds a null"),
        (with_column("weight", [1.0, 1, 1, -1, 1]), "'weight' is negative in row 3"),
    ],
)
def test_bad_columns_are_refused(table, message):
    with pytest.raises(UserError, match=message):
        prepare_rows(table, FEATURES, None, "file")


def sparse(**options):
    return FeaturesConfig(sparse=(SparseFeature(**options),), dense=("price",))


def test_ids_outside_an_indexed_table_are_left_out_and_counted():
    table = with_column("tags", [[3], [], [4, 0, -1], [2, 7], [1, 1]])
    features = sparse(column="tags", num_embeddings=4, ids="index")
    rows = prepare_rows(table, features, None, "file")
    tags = rows.sparse["tags"]
    assert tags.values.tolist() == [3, 0, 2, 1, 1]
    assert tags.offsets.tolist() == [0, 1, 1, 2, 3, 5]
    assert rows.report().left_out == {"tags": 3}
    kept = rows.select(np.array([True, True, True, False, False]))
    assert kept.report().left_out == {"tags": 2}
    both = kept.report() + kept.report()
    assert both.facts()["ids_left_out"] == {"tags": 4}
    assert both.facts()["rows"] == 6


def test_weights_go_with_their_ids():
    table = with_column("shares", [[0.5], [], [0.25, 2.0], [1.0], [3.0, 4.0, 5.0]])
    features = FeaturesConfig(
        sparse=(
            SparseFeature(column="user_id", num_embeddings=50),
            SparseFeature(column="tags", num_embeddings=20, weights="shares"),
        ),
        dense=("price",),
    )
    batch = batches.collate(
        prepare_rows(table, features, None, "file"), np.array([4, 2])
    )
    weights = batch.sparse_features.weights().tolist()
    assert weights == [1, 1, 3, 4, 5, 0.25, 2]  # users have weight 1
    assert batch.sparse_features["tags"].lengths().tolist() == [3, 2]


def test_weights_of_ids_left_out_go_too():
    table = with_column("tags", [[3], [], [9, 0], [2], [1, 1, 8]])
    table = table.append_column(
        "shares", pa.array([[0.5], [], [0.25, 2.0], [1.0], [3.0, 4.0, 5.0]])
    )
    features = sparse(column="tags", num_embeddings=4, ids="index", weights="shares")
    tags = prepare_rows(table, features, None, "file").sparse["tags"]
    assert tags.values.tolist() == [3, 0, 2, 1, 1]
    assert tags.weights.tolist() == [0.5, 2, 1, 3, 4]


def test_the_auxiliary_network_may_have_its_own_label():
    table = with_column("bought", [0, 1, 1, 0, 1])
    features = dataclasses.replace(FEATURES, auxiliary_label="bought")
    rows = prepare_rows(table, features, None, "file")
    batch = batches.collate(rows, np.array([0, 1]))
    assert batch.auxiliary_labels.tolist() == [0, 1]
    assert batch.labels.tolist() == [1, 0]
    none = batches.collate(prepare_rows(TABLE, FEATURES, None, "file"), np.array([0]))
    assert none.auxiliary_labels is None


def test_managed_ids_travel_apart():
    features = FeaturesConfig(
        sparse=(
            SparseFeature(column="user_id", ids="managed_collision"),
            SparseFeature(column="tags", num_embeddings=20),
        ),
        dense=("price",),
    )
    rows = prepare_rows(TABLE, features, None, "file")
    batch = batches.collate(rows, np.arange(5))
    assert batch.sparse_features.keys() == ["tags"]
    assert batch.managed_features.keys() == ["user_id"]
    keys = batch.managed_features.values()
    assert len(set(keys.tolist())) == 5
    assert (keys >= 0).all()


@pytest.mark.parametrize(
    ("table", "options", "message"),
    [
        (TABLE, {"column": "item_id", "ids": "index"}, "'index' must be int64"),
        (
            with_column("shares", [[1.0], [1.0], [], [1.0], []]),
            {"column": "tags", "weights": "shares"},
            "'shares' has 1 weights in row 1, but 'tags' has 0 ids",
        ),
        (
            with_column("shares", [["a"]] * 5),
            {"column": "user_id", "weights": "shares"},
            "'shares' is string, must be a number",
        ),
    ],
)
def test_bad_id_features_are_refused(table, options, message):
    with pytest.raises(UserError, match=message):
        prepare_rows(table, sparse(**options), None, "file")


def test_a_bad_auxiliary_label_is_refused():
    features = dataclasses.replace(FEATURES, auxiliary_label="price")
    with pytest.raises(UserError, match=r"'price' is 2\.0 in row 1, must be 0 or 1"):
        prepare_rows(TABLE, features, None, "file")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": "w"}, "not with managed_collision"),
        ({"sharding": "table_wise"}, "row-wise only"),
    ],
)
def test_what_managed_collision_cannot_do_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        SparseFeature(column="user_id", ids="managed_collision", **options)


def test_features_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        FEATURES.dense = ()
