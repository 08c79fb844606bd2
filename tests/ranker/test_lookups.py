"""Item columns, past counts and rates: equal to a plain loop, however rows are read."""

import math
import pickle

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from learn_torchrec.apps import main as command_line
from learn_torchrec.apps import train_ranker
from learn_torchrec.apps.common.learn_inputs import ranker_tables
from learn_torchrec.artifact import read_manifest
from learn_torchrec.datasets import open_dataset
from learn_torchrec.datasets.split import SplitTimes
from learn_torchrec.errors import UserError
from learn_torchrec.ranker.config import (
    RankerConfig,
    RankerTrainingConfig,
    StreamConfig,
)
from learn_torchrec.ranker.features import FeaturesConfig, HashedFeature
from learn_torchrec.ranker.features.lookups import find_columns, open_lookups
from learn_torchrec.ranker.tasks import TaskConfig

ONE = (TaskConfig(),)
PAST = ["user_past_events", "item_past_events", "user_past_rate", "item_past_rate"]
FEATURES = FeaturesConfig(sparse=("user_id", "category"), dense=tuple(PAST))


def rewrite(market, file, change):
    """Write a file of the market again, in small row groups."""
    path = market / file
    pq.write_table(change(pq.read_table(path)), path, row_group_size=200)


def with_column(table, name, values):
    kept = table.drop_columns([name]) if name in table.column_names else table
    return kept.append_column(name, pa.array(values))


@pytest.fixture
def shop(market):
    """The market with ties in time, null labels and categories, and an unknown item."""

    def impressions(table):
        random = np.random.default_rng(0)
        labels = [
            None if random.random() < 0.2 else label
            for label in table["label"].to_pylist()
        ]
        items = table["item_id"].to_numpy().copy()
        items[5::50] = 999
        times = table["timestamp"].to_numpy() // 40_000 * 40_000
        table = with_column(table, "click", random.integers(0, 2, len(items)))
        table = with_column(table, "maybe", labels)
        table = with_column(table, "timestamp", times)
        return with_column(table, "item_id", items)

    def items(table):
        return with_column(table, "category", [None, None, *["red", "blue"] * 19])

    rewrite(market, "impressions.parquet", impressions)
    rewrite(market, "items.parquet", items)
    rewrite(
        market,
        "interactions.parquet",
        lambda t: with_column(
            t, "timestamp", t["timestamp"].to_numpy() // 40_000 * 40_000
        ),
    )
    return open_dataset(f"parquet:{market}")


def plain_past(dataset, row, side, label):
    """The four columns' definition, in a loop."""
    log, rows = dataset.interactions, dataset.impressions
    id_, time = rows[f"{side}_id"][row].as_py(), rows["timestamp"][row].as_py()
    events = sum(
        (i, a) == (id_, "like") and t < time
        for i, t, a in zip(
            *(log[n].to_pylist() for n in (f"{side}_id", "timestamp", "action")),
            strict=True,
        )
    )
    known = [
        (i == id_, y)
        for i, t, y in zip(
            *(rows[n].to_pylist() for n in (f"{side}_id", "timestamp", label)),
            strict=True,
        )
        if t < time and y is not None
    ]
    overall = (sum(y for _, y in known) + 1) / (len(known) + 2)
    own = [y for same, y in known if same]
    yes, no = sum(own) + 10 * overall, len(own) - sum(own) + 10 * (1 - overall)
    return math.log(1 + events), math.log(yes / no * (1 - overall) / overall)


@pytest.mark.parametrize("in_memory", [False, True])
def test_past_counts_and_rates_equal_a_plain_loop(shop, in_memory):
    if in_memory:
        assert shop.impressions.num_rows
        assert shop.interactions.num_rows
    tasks = (TaskConfig(name="cvr", label="maybe"),)
    added = open_lookups(shop, FEATURES, tasks, ["like"])
    added = pickle.loads(pickle.dumps(added)).add_to(shop.impressions, "file")
    for row in [0, 17, 1500, 2400, 2999]:
        for side in ("user", "item"):
            events, rate = plain_past(shop, row, side, "maybe")
            found = [added[f"{side}_past_{x}"][row].as_py() for x in ("events", "rate")]
            assert found == pytest.approx([events, rate], rel=1e-5, abs=1e-6)


def plain_pair(dataset, row, column):
    """Count the user's earlier likes of items that share the row's item's value."""
    log, rows = dataset.interactions, dataset.impressions
    items = dataset.items
    value = dict(
        zip(items["item_id"].to_pylist(), items[column].to_pylist(), strict=True)
    )
    user, item, time = (
        rows[n][row].as_py() for n in ("user_id", "item_id", "timestamp")
    )
    wanted = value.get(item)
    names = ("user_id", "item_id", "timestamp", "action")
    return math.log1p(
        sum(
            (u, a) == (user, "like") and t < time and value[i] == wanted
            for u, i, t, a in zip(*(log[n].to_pylist() for n in names), strict=True)
        )
        if wanted is not None
        else 0
    )


@pytest.mark.parametrize("text_ids", [False, True])
def test_pair_counts_equal_a_plain_loop(shop, market, text_ids):
    if text_ids:
        for file in ("items", "interactions", "impressions"):
            rewrite(
                market,
                f"{file}.parquet",
                lambda t: with_column(
                    t, "item_id", [f"i{x}" for x in t["item_id"].to_pylist()]
                ),
            )
        shop = open_dataset(f"parquet:{market}")
    columns = {"item": "item_id", "category": "category"}
    dense = tuple(f"user_{name}_past_events" for name in columns)
    added = open_lookups(shop, FeaturesConfig(dense=dense), ONE, ["like"])
    added = pickle.loads(pickle.dumps(added)).add_to(shop.impressions, "file")
    # Rows 5, 55, ... show an item that the catalogue lacks.
    rows = [0, 5, 17, 55, 400, 1500, 2400, 2700, 2999]
    for name, column in columns.items():
        found = [added[f"user_{name}_past_events"][row].as_py() for row in rows]
        expected = [plain_pair(shop, row, column) for row in rows]
        assert found == pytest.approx(expected, rel=1e-6)
        assert expected[1] == expected[3] == 0
    assert max(added["user_category_past_events"].to_pylist()) > math.log(5)


def test_pair_counts_by_a_column_read_the_catalogue(shop):
    """A changed catalogue then makes another ranker, by its fingerprint."""
    for name, reads in (("user", False), ("user_item", True), ("user_category", True)):
        features = FeaturesConfig(dense=(f"{name}_past_events",))
        assert find_columns(shop, features, ONE).reads_items is reads
        tables = ranker_tables(shop, RankerConfig(features=features), None)
        assert ("items.parquet" in tables) is reads


def test_a_user_without_events_has_no_pair_counts(shop):
    rows = shop.impressions.slice(0, 3)
    rows = with_column(rows, "user_id", [10**9, -5, 10**12])
    features = FeaturesConfig(dense=("user_item_past_events",))
    added = open_lookups(shop, features, ONE, ["like"]).add_to(rows, "file")
    assert added["user_item_past_events"].to_pylist() == [0.0] * 3


def test_each_of_several_tasks_has_its_rates(shop):
    tasks = (TaskConfig(name="ctr", label="click"), TaskConfig(label="maybe"))
    features = FeaturesConfig(dense=("user_past_rate_ctr", "user_past_rate_cvr"))
    added = open_lookups(shop, features, tasks, ["like"])
    added = added.add_to(shop.impressions, "file")
    for name, label in (("ctr", "click"), ("cvr", "maybe")):
        _, rate = plain_past(shop, 2500, "user", label)
        assert added[f"user_past_rate_{name}"][2500].as_py() == pytest.approx(
            rate, rel=1e-5
        )


def test_impressions_without_labels_have_no_rates(shop):
    features = FeaturesConfig(dense=("item_past_rate",))
    tasks = (TaskConfig(label="bought"),)
    added = open_lookups(shop, features, tasks, ["like"]).add_to(shop.impressions, "")
    assert set(added["item_past_rate"].to_pylist()) == {0.0}


def test_item_columns_are_joined_by_item(shop):
    rows = shop.impressions
    added = open_lookups(shop, FEATURES, ONE, ["like"]).add_to(rows, "file")
    known = dict(
        zip(*(shop.items[n].to_pylist() for n in ("item_id", "category")), strict=True)
    )
    expected = [known.get(item) for item in rows["item_id"].to_pylist()]
    assert added["category"].to_pylist() == expected
    assert expected.count(None) > 60
    text = with_column(rows, "item_id", ["x"] * rows.num_rows)
    with pytest.raises(
        UserError, match=r"ids are string, but int64 in .*items\.parquet"
    ):
        open_lookups(shop, FEATURES, ONE, []).add_to(text, "file")


@pytest.mark.parametrize(
    "workers", [0, pytest.param(2, marks=pytest.mark.slow)], ids=["threads", "workers"]
)
def test_streamed_rows_are_those_of_memory(shop, workers, one_rank):
    split = SplitTimes(towers_until=0, test_from=2**40)
    rows = []
    for streams in (False, True):
        stream = StreamConfig(enabled=streams, lanes=1, workers=workers * streams)
        training = RankerTrainingConfig(batch_size=3000, stream=stream)
        config = RankerConfig(features=FEATURES, training=training)
        made = train_ranker.training_impressions(shop, config, split, None, ["like"])
        rows.append((next(made.batches(epoch=0)), made.report))
    (here, report), (there, other) = rows
    assert here.dense_features.equal(there.dense_features)
    assert here.dense_features.std(dim=0).min() > 0.1
    for key in ("user_id", "category"):
        ours, theirs = (b.sparse_features[key] for b in (here, there))
        assert ours.lengths().equal(theirs.lengths())
        assert ours.values().equal(theirs.values())
    assert report == other
    assert report.nulls["category"] > 60


def test_columns_are_looked_for_in_this_order(shop):
    features = FeaturesConfig(
        sparse=("item_id", "title", "hour"), dense=("click", "item_past_rate")
    )
    origins = find_columns(shop, features, ONE)
    assert origins.impressions == ("item_id", "hour", "click")
    assert origins.items == ("title",)
    assert [column.name for column in origins.past] == ["item_past_rate"]
    assert "items" not in vars(shop)  # footers only
    assert "impressions" not in vars(shop)


@pytest.mark.parametrize(
    ("features", "option", "hint"),
    [
        (FeaturesConfig(sparse=("user_id", "catgory")), "sparse", "'category'"),
        (FeaturesConfig(dense=("hours",)), "dense", "'hour'"),
        (FeaturesConfig(dense=("user_past_events_7d",)), "dense", "'user_past_events'"),
    ],
)
def test_an_unknown_column_names_those_that_exist(shop, features, option, hint):
    with pytest.raises(UserError) as caught:
        find_columns(shop, features, ONE)
    message = str(caught.value)
    assert message.startswith(f"ranker.features.{option}: no column ")
    assert (
        "the impressions have item_id, user_id, label, hour, click, maybe, time"
        in message
    )
    assert "the catalogue has title, category" in message
    assert message.endswith(f"did you mean {hint}?")
    assert "_row_number" not in message


def test_the_stages_join_and_count_and_know_when_items_changed(
    market, tmp_path, capsys
):
    def run(command, out, *options):
        settings = ["sparse=user_id,item_id,category", f"dense={','.join(PAST)}"]
        command_line.main(
            [
                *(command, f"--data=parquet:{market}", f"--out={tmp_path / out}"),
                *(f"--set=ranker.features.{setting}" for setting in settings),
                *("--set=ranker.training.batch_size=64", *options),
            ]
        )
        return tmp_path / out

    ranker = run("train-ranker", "ranker")
    predictions = run("predict", "predictions", f"--ranker={ranker}")
    table = pq.read_table(predictions / "predictions.parquet")
    assert not {"category", *PAST} & set(table.column_names)
    assert pc.is_finite(table["score"]).to_pylist().count(False) == 0
    assert "items.parquet" in read_manifest(ranker, "ranker").inputs
    rewrite(
        market, "items.parquet", lambda t: with_column(t, "category", ["green"] * 40)
    )
    with pytest.raises(SystemExit):
        run("predict", "predictions", f"--ranker={ranker}")
    assert "other settings or inputs" in capsys.readouterr().err


def test_a_catalogue_that_no_feature_reads_is_no_input(market, tmp_path):
    features = FeaturesConfig(sparse=(HashedFeature(column="user_id"),))
    dataset = open_dataset(f"parquet:{market}")
    (market / "items.parquet").unlink()
    assert find_columns(dataset, features, ONE).items == ()
