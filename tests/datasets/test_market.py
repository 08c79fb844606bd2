"""The generated market: known probabilities, fully determined by its seed."""

import hashlib

import numpy as np
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import roc_auc_score

from learn_torchrec.apps import data
from learn_torchrec.datasets import open_dataset
from learn_torchrec.datasets.generated.market import Market, MarketConfig
from learn_torchrec.errors import UserError

UNROUNDED = ("user_id", "item_id", "timestamp", "label", "click", "action", "title")
SIZE = ["--users=400", "--items=300", "--days=6", "--impressions=60000"]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    out = tmp_path_factory.mktemp("written") / "market"
    data.main(["market", *SIZE, "--out", str(out)])
    return out


def columns(out, *names):
    table = open_dataset(f"parquet:{out}").impressions
    return [table[name].to_numpy() for name in names]


def test_it_is_a_data_set(written):
    dataset = open_dataset(f"parquet:{written}")
    assert dataset.items.num_rows == 300
    assert dataset.impressions.num_rows == 60_000
    click, label, price = columns(written, "click", "label", "revenue")
    assert dataset.interactions.num_rows == click.sum() + label.sum()
    assert (label <= click).all()
    assert ((price > 0) == (label == 1)).all()
    times = dataset.impressions["timestamp"].to_numpy()
    assert (np.diff(times) >= 0).all()


def test_it_follows_from_its_seed(written, tmp_path):
    for name, seed in (("same", 0), ("other", 1)):
        data.main(["market", *SIZE, f"--seed={seed}", "--out", str(tmp_path / name)])
    part = "impressions.parquet/day-00003.parquet"
    wanted = pq.read_table(written / part)
    assert pq.read_table(tmp_path / "same" / part).equals(wanted)
    assert not pq.read_table(tmp_path / "other" / part).equals(wanted)


def test_the_oracle_is_true_and_ranks_best(written):
    label, oracle, price = columns(written, "label", "oracle", "log_price")
    assert label.mean() == pytest.approx(oracle.mean(), abs=0.005)
    low = oracle < np.median(oracle)
    assert label[low].mean() == pytest.approx(oracle[low].mean(), abs=0.005)
    assert roc_auc_score(label, oracle) > 0.7 > roc_auc_score(label, -price)


def test_new_users_and_items_arrive_every_day(written):
    users, items, times, age = columns(
        written, "user_id", "item_id", "timestamp", "item_age_days"
    )
    days = (times - times.min()) // 86_400
    latest = [(users[days == d].max(), items[days == d].max()) for d in range(6)]
    assert (np.diff(latest, axis=0) > 0).all()
    assert (age >= 0).all()
    assert (age[days == 5] == 0).any()


def test_the_subject_says_what_an_item_new_today_is_worth():
    """Planted content effect: topics of interest convert more, even for new items."""
    market = Market(MarketConfig(users=500, items=400, days=4))
    for _, chunks in market.days():
        (table,) = chunks
    new = table["item_age_days"].to_numpy() == 0
    near = np.einsum(
        "nk,nk->n",
        market.interests(3)[table["user_id"].to_numpy()],
        market.item_vectors[table["item_id"].to_numpy()],
    )
    label = table["label"].to_numpy()
    assert label[new & (near > 0.5)].mean() > 2 * label[new & (near < 0)].mean()


def test_interests_drift():
    market = Market(MarketConfig(users=50, items=20, days=4, drift=0.1))
    first, later = market.interests(0), market.interests(10)
    angle = np.arccos(np.clip((first * later).sum(axis=1), -1, 1))
    assert angle == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--users=0", "users: must be greater than 0"),
        ("--days=x", "days: must be a valid integer"),
        ("--seed=-1", "seed: must be greater than or equal to 0"),
        ("--drift=-0.1", "drift: must be greater than or equal to 0"),
    ],
)
def test_bad_sizes_are_refused(tmp_path, option, message):
    with pytest.raises(UserError, match=message):
        data.main(["market", option, "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_in_memory_it_is_what_is_written(written):
    settings = ",".join(size.removeprefix("--") for size in SIZE)
    made, read = open_dataset(f"market:{settings}"), open_dataset(f"parquet:{written}")
    for name in ("items", "interactions", "impressions"):
        assert getattr(made, name).equals(getattr(read, name))
        file = f"{name}.parquet"
        other = open_dataset(f"market:{settings},seed=1")
        assert made.fingerprint(file) == open_dataset(f"market:{settings}").fingerprint(
            file
        )
        assert made.fingerprint(file) != other.fingerprint(file)


def test_the_generator_makes_the_same_rows_in_every_version():
    """Integers and texts of an earlier version, which rounding cannot change."""
    dataset = open_dataset("market:users=400,items=300,days=6,impressions=6000")
    digest = hashlib.sha256()
    for table in (dataset.items, dataset.interactions, dataset.impressions):
        for name in table.column_names:
            if name in UNROUNDED:
                digest.update(repr((name, table[name].to_pylist())).encode())
    assert digest.hexdigest()[:32] == "7a10a69449b1701b47a7867d76e22e02"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("users", "write 'users' as NAME=VALUE"),
        ("color=3", "unknown name color; known here: users, items, days"),
        ("users=0", "users: must be greater than 0, not '0'"),
        ("days=9,impressions=8", "impressions: at least one a day"),
        ("seed=-1", "seed: must be greater than or equal to 0"),
        ("users=many", "users: must be a valid integer"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        open_dataset(f"market:{settings}")
