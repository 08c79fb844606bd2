"""Derived features: what becomes of each kind of column; no test row is seen."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from learn_torchrec import config as configs
from learn_torchrec.datasets import open_dataset
from learn_torchrec.datasets.loading.in_memory import TableRows
from learn_torchrec.datasets.loading.row_groups import RowGroups
from learn_torchrec.datasets.split import SplitTimes
from learn_torchrec.errors import UserError
from learn_torchrec.ranker.encode import Encoder
from learn_torchrec.ranker.features import (
    BucketizedFeature,
    DenseFeature,
    FeaturesConfig,
    HashedFeature,
    IndexedFeature,
)
from learn_torchrec.ranker.features import derive as derive_module
from learn_torchrec.ranker.features.derive import derive_features
from learn_torchrec.ranker.features.lookups import open_lookups
from learn_torchrec.ranker.features.profile import (
    ColumnProfile,
    fit_number,
    sample_rows,
)
from learn_torchrec.ranker.tasks import TaskConfig

ROWS, DAY = 4000, 86_400
SPLIT = SplitTimes(towers_until=10 * DAY, test_from=30 * DAY)
TASKS = (TaskConfig(name="ctr", label="click"), TaskConfig(label="label"))


def impressions():
    """One column of each kind; rows before and after the training interval differ."""
    random = np.random.default_rng(0)
    times = np.sort(random.integers(0, 40 * DAY, ROWS))
    label = random.integers(0, 2, ROWS)
    other = (times < SPLIT.towers_until) | (times >= SPLIT.test_from)
    users = random.integers(0, 300, ROWS)
    noise = random.normal(size=ROWS)
    null = random.random(ROWS) < 0.3
    days = pa.array(times // DAY, pa.int32()).cast(pa.date32())
    return pa.table(
        {
            "user_id": users,
            "item_id": random.integers(0, 100, ROWS),
            "timestamp": times,
            "label": label,
            "click": np.maximum(label, random.integers(0, 2, ROWS)),
            "weight": np.ones(ROWS),
            "price": np.where(other, 1e6, 5 + 2 * noise),
            "spend": np.exp(3 * noise),
            "rare": pa.array(noise, mask=null),
            "huge": np.where(noise > 2, 1e300, 1.0),
            "store": pa.array(users % 7, pa.int16()),
            "plan": pa.array(np.where(null, "free", "paid")).dictionary_encode(),
            "is_new": pa.array(null),
            "tags": [[f"t{n % 5}"] * (n % 3) for n in range(ROWS)],
            "codes": [[0.5, n] for n in range(ROWS)],
            "joined": days,
            "request": [f"r{n}" for n in range(ROWS)],
            "email": [f"u{user}@example.com" for user in users],
            "same": [3] * ROWS,
            "empty": pa.nulls(ROWS, pa.string()),
            "paid_at": pa.array(times, pa.timestamp("s"), mask=label == 0),
            "twice": np.where(label == 1, noise**2 + 9, -(noise**2)),
            "is_buy": label,
            "revenue": noise,
            "label_7d": random.integers(0, 2, ROWS),
            "like_count_30d": random.integers(0, 90, ROWS),
            "shape": [{"w": 1}] * ROWS,
            "blob": pa.array([b"x", b"y"] * (ROWS // 2)),
            "user.age": random.integers(18, 60, ROWS),
            "user_age": random.integers(18, 60, ROWS),
        }
    )


def items():
    return pa.table(
        {
            "item_id": np.arange(120),
            "title": [f"thing {n}" for n in range(120)],
            "category": [f"c{n % 9}" for n in range(120)],
            "released": pa.array(np.arange(120) * 60 * DAY, pa.timestamp("s")),
            "cost": np.arange(120) / 7,
            "price": np.zeros(120),  # the impressions' comes first
        }
    )


@pytest.fixture
def shop(tmp_path):
    log = impressions().select(["user_id", "item_id", "timestamp"])
    log = log.append_column("action", pa.array(["buy", "view"] * (ROWS // 2)))
    for name, table in (
        ("items", items()),
        ("interactions", log),
        ("impressions", impressions()),
    ):
        pq.write_table(table, tmp_path / f"{name}.parquet", row_group_size=500)
    return tmp_path


@pytest.fixture
def derived(shop):
    dataset = open_dataset(f"parquet:{shop}")
    return derive_features(dataset, SPLIT, TASKS, ["buy"])


def test_what_becomes_of_every_column(derived):
    uses = {(c.source, c.column): c.use for c in derived.choices}
    hashed = "hash, 1,024 rows"
    past = {
        name: "number"
        for side in ("user", "item")
        for name in (
            f"{side}_past_events",
            f"{side}_past_rate_ctr",
            f"{side}_past_rate_cvr",
        )
    } | {"user_item_past_events": "number"}
    assert uses == {
        **{("impressions", name): use for name, use in {
            "user_id": "hash, 4,096 rows", "item_id": hashed,
            "timestamp": "hour, weekday",
            "price": "standard", "spend": "log", "rare": "standard, null flag",
            "huge": "log",
            "store": hashed, "plan": hashed, "is_new": hashed, "tags": hashed,
            "joined": "weekday",
            "like_count_30d": hashed, "user.age": hashed, "user_age": hashed,
            **dict.fromkeys(
                ("label", "click", "weight", "codes", "request", "email", "same",
                 "empty", "paid_at", "twice", "is_buy", "revenue", "label_7d",
                 "shape", "blob"), "left out"),
        }.items()},
        ("catalogue", "title"): "left out",
        ("catalogue", "category"): hashed,
        ("catalogue", "released"): "weekday, month, year",
        ("catalogue", "cost"): "standard",
        **{("log", name): use for name, use in past.items()},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("column", "reason"),
    [
        ("label", "a label"),
        ("weight", "the weight of the row"),
        ("codes", "a list of numbers"),
        ("request", "hardly a value repeats"),
        ("email", "one value for each user"),
        ("title", "one value for each item"),
        ("same", "the same value in every sampled row"),
        ("empty", "null in every sampled row"),
        ("paid_at", "tells 'label' almost surely"),
        ("twice", "tells 'label' almost surely (AUC 1"),
        ("is_buy", "named like an outcome"),
        ("label_7d", "named like an outcome"),
        ("shape", "no feature reads struct<w: int64>"),
        ("blob", "no feature reads binary"),
        ("rare", "a number, null in 29"),
        ("user_past_events", "buy of the user before the impression"),
        ("item_past_rate_ctr", "labels (click) of the item before the impression"),
    ],
)
def test_every_choice_has_its_reason(derived, column, reason):
    found = {choice.column: choice.reason for choice in derived.choices}
    assert reason in found[column]


def test_what_is_derived_can_be_encoded(derived, shop):
    dataset = open_dataset(f"parquet:{shop}")
    lookups = open_lookups(dataset, derived.config, TASKS, ["buy"])
    encoder = Encoder(derived.config, TASKS, None, "file", lookups)
    rows = encoder(dataset.impressions)
    assert rows.dense.shape == (ROWS, derived.config.dense_width)
    assert np.isfinite(rows.dense).all()
    assert rows.dense.std(axis=0).min() > 0
    for feature in derived.config.sparse:
        values = rows.sparse[feature.name].values
        assert 0 <= values.min() < values.max() < feature.table_rows


def test_nothing_outside_the_training_interval_is_seen(derived):
    price = next(f for f in derived.config.dense if f.column == "price")
    assert price.transform == "standard"
    assert price.mean == pytest.approx(5, abs=0.2)
    assert price.std == pytest.approx(2, abs=0.1)


def test_it_is_saved_and_the_same_in_memory_and_again(derived, shop):
    body = json.loads(json.dumps(configs.to_dict(derived.config)))
    assert configs.from_dict(FeaturesConfig, body, "saved") == derived.config
    dataset = open_dataset(f"parquet:{shop}")
    assert dataset.items.num_rows + dataset.interactions.num_rows
    assert dataset.impressions.num_rows
    again = derive_features(dataset, SPLIT, TASKS, ["buy"])
    assert again.config == derived.config


def test_names_of_features_differ(derived):
    names = {f.column: f.name for f in derived.config.sparse if "age" in f.column}
    assert names == {"user.age": "user_age", "user_age": "user_age_2"}


def test_a_bare_name_gets_what_derivation_would_choose(derived):
    named = FeaturesConfig(
        sparse=("user_id", "email", IndexedFeature(column="store", num_embeddings=9)),
        dense=("spend", "store", DenseFeature(column="price", transform="none")),
    )
    mine = derived.with_settings(named)
    assert mine.config.sparse == (
        HashedFeature(column="user_id", num_embeddings=4096),
        HashedFeature(column="email", num_embeddings=4096),
        IndexedFeature(column="store", num_embeddings=9),
    )
    assert [f.transform for f in mine.config.dense] == ["log", "standard", "none"]
    assert mine.config.dense[1].mean == pytest.approx(3, abs=0.2)
    uses = {choice.column: (choice.use, choice.reason) for choice in mine.choices}
    assert uses["email"] == ("hash, 4,096 rows", "as set")
    assert uses["item_id"] == ("left out", "as set")
    assert uses["label"] == ("left out", "a label")
    assert uses["store"] == ("index, 9 rows, standard", "as set")
    assert derived.with_settings(derived.config) == derived


def test_buckets_get_quantiles_as_boundaries(derived):
    feature = BucketizedFeature(column="price", buckets=4)
    with pytest.raises(UserError, match="bucketized 'price' has no boundaries; give"):
        feature.encode(impressions(), "file")
    mine = derived.with_settings(FeaturesConfig(sparse=("user_id", feature)))
    cut = mine.config.sparse[1]
    assert cut.boundaries == pytest.approx([3.65, 5, 6.35], abs=0.2)
    assert cut.table_rows == 4
    same = BucketizedFeature(column="same", buckets=4)
    mine = derived.with_settings(FeaturesConfig(sparse=("user_id", same)))
    assert mine.config.sparse[1].boundaries == (3.0,)
    given = BucketizedFeature(column="price", boundaries=(1.0,))
    assert derived.with_settings(FeaturesConfig(sparse=(given,))).config.sparse == (
        given,
    )


def test_a_shared_table_is_as_large_as_its_owners(derived):
    shared = {"column": "store", "table": "user_id"}
    mine = derived.with_settings(FeaturesConfig(sparse=("user_id", shared)))
    assert [feature.table_rows for feature in mine.config.sparse] == [4096, 4096]
    alone = derived.with_settings(FeaturesConfig(sparse=("user_id", "store")))
    assert alone.config.sparse[1].table_rows != 4096


def test_the_table_is_aligned(derived):
    lines = derived.table().splitlines()
    assert lines[0].split() == ["column", "from", "used", "as", "because"]
    assert len(lines) == len(derived.choices) + 1
    at = lines[0].index("because")
    assert all(line[at - 1] == " " != line[at] for line in lines)


def test_past_counts_of_a_log_too_large_for_memory_are_left_out(shop, monkeypatch):
    monkeypatch.setattr(derive_module, "MAX_PAST_ROWS", 2 * ROWS - 1)
    dataset = open_dataset(f"parquet:{shop}")
    derived = derive_features(dataset, SPLIT, TASKS, ["buy"])
    assert not any("past" in feature.column for feature in derived.config.dense)
    found = next(c for c in derived.choices if c.column == "user_past_events")
    assert found.use == "left out"
    assert "8,000 rows, more than 7,999" in found.reason


def test_an_interval_without_impressions_is_refused(shop):
    nothing = SplitTimes(towers_until=90 * DAY, test_from=99 * DAY)
    dataset = open_dataset(f"parquet:{shop}")
    first, last = dataset.impression_times.min(), dataset.impression_times.max()
    with pytest.raises(UserError, match="no impression lies between split") as caught:
        derive_features(dataset, nothing, TASKS, ["buy"])
    spans = [np.datetime64(int(one), "s") for one in (90 * DAY, 99 * DAY, first, last)]
    message = str(caught.value)
    assert (
        "({}+00:00 and {}+00:00); they run from {}+00:00 to {}+00:00".format(*spans)
        in message
    )


@pytest.mark.parametrize("wanted", [5, 50, 999, 3000, 5000])
def test_a_sample_is_spread_over_the_rows(tmp_path, wanted):
    table = pa.table({"x": np.arange(3000)})
    pq.write_table(table, tmp_path / "x.parquet", row_group_size=700)
    for source in (RowGroups(tmp_path), TableRows(table, None, "x")):
        found = sample_rows(source, wanted)["x"].to_numpy()
        assert len(found) == min(wanted, 3000) or 0.5 < len(found) / wanted < 2
        assert (np.diff(found) > 0).all()
        assert len(np.unique(found // 700)) >= min(len(source), wanted)
        assert found[-1] >= 2400
        again = sample_rows(source, wanted)["x"].to_numpy()
        assert np.array_equal(found, again)


def profile(values, sampled=1.0):
    return ColumnProfile(
        name="x", origin="impressions", values=pa.array(values), sampled=sampled
    )


def test_cardinality_is_estimated_from_what_was_seen_once_and_twice():
    # Chao's estimate by hand: 5 distinct, 3 of them once, 1 twice: 5 + 3 * 2 / (2 * 2).
    values = ["a", "b", "c", "d", "d", "e", "e", "e", None]
    assert profile(values, sampled=0.1).cardinality == 6
    assert profile(values).cardinality == 5
    random = np.random.default_rng(0)
    sample = profile(random.integers(0, 5000, 10_000), sampled=0.01)
    assert sample.cardinality == pytest.approx(5000, rel=0.03)
    every_row = profile(np.arange(100), sampled=0.5)
    assert every_row.cardinality == 200  # not more than there are rows


@pytest.mark.parametrize(
    ("count", "rows"),
    [(1, 1024), (128, 1024), (129, 2048), (70_000, 2**20), (600_000, 2**21)],
)
def test_tables_have_head_room(count, rows):
    assert profile(np.arange(count)).table_rows == rows


def test_an_auc_by_hand():
    # 1 is positive in 3 of 4 rows, 0 in 1 of 4: AUC 3/4 in either half.
    codes = (
        np.repeat([[1, 1, 1, 1, 0, 0, 0, 0]], 100, axis=0).repeat(2, axis=0).ravel("F")
    )
    labels = (
        np.repeat([[1, 1, 1, 0, 1, 0, 0, 0]], 100, axis=0).repeat(2, axis=0).ravel("F")
    )
    known = np.ones(len(codes), bool)
    assert profile(codes).auc(labels == 1, known) == pytest.approx(0.75)
    assert profile(1 - codes).auc(labels == 1, known) == pytest.approx(0.75)
    assert profile(codes[:40]).auc(labels[:40] == 1, known[:40]) == 0.5  # too few


def test_an_id_that_is_new_in_every_row_tells_nothing():
    random = np.random.default_rng(0)
    labels, known = random.random(4000) < 0.5, np.ones(4000, bool)
    assert profile(np.arange(4000)).auc(labels, known) == pytest.approx(0.5, abs=0.02)


def test_outliers_decide_neither_mean_nor_deviation():
    numbers = np.random.default_rng(0).normal(3, 2, 20_000)
    numbers[:10] = 1e9
    transform, mean, std = fit_number(numbers)
    assert transform == "standard"
    assert mean == pytest.approx(3, abs=0.1)
    assert std == pytest.approx(2, abs=0.1)


@pytest.mark.parametrize(
    "numbers",
    [[5.0], [1e300, -1e300, 1e308], [1e-320, 2e-320], [0.0] * 99 + [1.0], [7.0] * 50],
)
def test_any_numbers_can_be_fitted(numbers):
    transform, mean, std = fit_number(np.array(numbers))
    feature = DenseFeature(column="x", transform=transform, mean=mean, std=std)
    assert np.isfinite(feature.apply(np.array(numbers))).all()
