"""The study: its arithmetic by hand, and the whole command on a small market."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from learn_torchrec.apps import main as command_line
from learn_torchrec.apps import study
from learn_torchrec.apps.experiments import ranker_arms
from learn_torchrec.datasets.loading.in_memory import TableRows
from learn_torchrec.errors import UserError
from learn_torchrec.evaluation.paired_seeds import bootstrap, compare_cohorts
from learn_torchrec.ranker.config import RankerConfig, RankerTrainingConfig
from learn_torchrec.ranker.features import FeaturesConfig
from learn_torchrec.ranker.impressions import Impressions


def test_equal_gains_have_no_spread():
    found = bootstrap(np.full(5, 0.01), np.arange(1.0, 6.0))
    assert found["uauc"] == pytest.approx([1, 1])
    assert found["wuauc"] == pytest.approx([1, 1])
    nobody = bootstrap(np.empty(0), np.empty(0))
    assert nobody == {"uauc": None, "wuauc": None}


def test_the_interval_is_of_the_mean_over_users():
    gains = np.random.default_rng(0).normal(0.02, 0.1, 400)
    low, high = bootstrap(gains, np.ones(400))["uauc"]
    half_width = 100 * 1.96 * gains.std() / 20
    assert (high - low) / 2 == pytest.approx(half_width, rel=0.1)
    assert (high + low) / 2 == pytest.approx(100 * gains.mean(), abs=0.1)


def test_gains_are_averaged_over_seeds_and_users():
    users = pa.array([1, 1, 2, 2, 2])
    labels = pa.array([0, 1, 0, 0, 1])
    good, bad = np.array([0.1, 0.9, 0.1, 0.2, 0.9]), np.array([0.9, 0.1, 0.1, 0.2, 0.9])
    masks = {"all": np.ones(5, bool), "one": np.array([1, 1, 0, 0, 0], bool)}
    masks["none"] = np.zeros(5, bool)
    found = compare_cohorts(users, labels, masks, [good, bad], [bad, bad])
    # User 1 gains 1 with the first seed, 0 with the second; user 2 nothing.
    assert found["all"]["uauc"]["points"] == pytest.approx(25)
    assert found["all"]["uauc"]["points_by_seed"] == pytest.approx([50, 0])
    assert found["one"]["uauc"]["interval"] == pytest.approx([50, 50])
    assert found["none"] == {"rows": 0}


def test_every_draw_is_a_valid_configuration():
    for place in range(4):
        settings = {n: v[place % len(v)] for n, v in ranker_arms._SPACE.items()}
        changed = ranker_arms.Arm(RankerConfig()).with_draw(settings)
        assert changed.tables.learning_rate == settings["tables.learning_rate"]


def test_arms():
    ranker = RankerConfig()
    given = ["fast:ranker.training.epochs=2;ranker.model.embedding_dim=64"]
    arms = ranker_arms.arms_of(ranker, given)
    assert list(arms) == ["baseline", "learn", "fast"]
    assert arms["baseline"].is_baseline
    changes = study._changes(ranker, arms["baseline"].ranker)
    assert changes == {"ranker.learn.form": "off"}
    draw = {"training.epochs": 3, "tables.learning_rate": 0.01}
    assert arms["learn"].with_draw(draw).training.epochs == 3
    fast = arms["fast"].with_draw(draw | {"model.embedding_dim": 8})
    assert (fast.training.epochs, fast.model.embedding_dim) == (2, 64)  # its own
    assert fast.tables.learning_rate == 0.01
    for wrong in ("x", "learn:ranker.training.epochs=2", ":a=b"):
        with pytest.raises(UserError, match="NAME:SETTING=VALUE"):
            ranker_arms.arms_of(ranker, [wrong])
    with pytest.raises(UserError, match=r"split\.test_from=80%: only ranker"):
        ranker_arms.arms_of(ranker, ["x:split.test_from=80%"])


@pytest.mark.usefixtures("one_rank")
def test_rows_are_encoded_once_and_alike():
    rows = pa.table(
        {
            "user_id": np.arange(64) % 7,
            "item_id": np.arange(64) % 5,
            "timestamp": np.arange(64),
            "label": np.arange(64) % 2,
        }
    )
    config = RankerConfig(
        features=FeaturesConfig(), training=RankerTrainingConfig(batch_size=16)
    )
    first = Impressions(TableRows(rows, None, "rows"), config, None)
    other = RankerConfig(
        features=FeaturesConfig(), training=RankerTrainingConfig(batch_size=8, seed=3)
    )
    list(first.batches(0))
    shared = first.with_config(other)
    fresh = Impressions(TableRows(rows, None, "rows"), other, None)
    for ours, theirs in zip(shared.batches(1), fresh.batches(1), strict=True):
        assert ours.labels["label"].equal(theirs.labels["label"])
        assert ours.sparse_features.values().equal(theirs.sparse_features.values())
    assert shared._encoded is first._encoded
    with pytest.raises(ValueError, match="features"):
        first.with_config(RankerConfig(features=FeaturesConfig(sparse=("user_id",))))


@pytest.fixture
def trained(monkeypatch):
    """Count the trainings."""
    seen, original = [], ranker_arms.train_ranker

    def train(*arguments):
        seen.append(arguments[0])
        return original(*arguments)

    monkeypatch.setattr(ranker_arms, "train_ranker", train)
    return seen


def test_the_command_studies_and_resumes(market, store, tmp_path, capsys, trained):
    out = tmp_path / "study"
    command = ["study", "--data", f"parquet:{market}", "--out", str(out)]
    command += ["--content", str(store.directory), "--trials", "2", "--seeds", "1"]
    command += ["--arm", "paper:ranker.learn.form=paper"]
    command += ["--arm", 'tasks:ranker.tasks=[{"weight": 2.0}]']
    command += ["--arm", "wide:ranker.model.embedding_dim=20"]
    of_items = "user_id,item_id,category"
    command += ["--arm", f"items:{ranker_arms._OFF};ranker.features.sparse={of_items}"]
    command += ["--set", "split.holdout=new_users", "split.towers_until=30%"]
    command += ["split.test_from=80%", "split.actions=like"]
    command += ["ranker.features.sparse=user_id,item_id", "ranker.features.dense="]
    command += ["ranker.training.epochs=1", "ranker.validation.share=0"]
    command_line.main(command)
    shown = capsys.readouterr().out
    assert "points of UAUC" in shown
    result = json.loads((out / "study.json").read_text())
    arms = result["arms"]
    assert set(arms) == {"baseline", "learn", "paper", "tasks", "wide", "items"}
    assert arms["baseline"]["cohorts"]["all"]["uauc"]["points"] == 0
    assert result["tuned"]["paper"] == result["tuned"]["learn"]
    assert len(result["tuned"]["baseline"]["validation_uauc_of_all"]) == 2
    assert "LEARN" in (out / "report.html").read_text()
    assert len(trained) == 3 * 2 + 6  # draws of three arms, a seed of six
    assert {20} == {r.model.embedding_dim for r in trained} - {8, 16, 32}

    trained.clear()
    command_line.main(command)
    assert not trained
    assert json.loads((out / "study.json").read_text()) == result

    # A damaged training is made anew, to the same scores.
    one, other, *_ = sorted((out / "trainings").glob("*.npy"))
    whole = other.read_bytes()
    one.write_bytes(whole)
    other.write_bytes(whole[:-40] + bytes([whole[-40] ^ 1]) + whole[-39:])
    command_line.main(command)
    assert len(trained) == 2
    assert other.read_bytes() == whole
    assert json.loads((out / "study.json").read_text()) == result
    trained.clear()

    # A table that only one arm reads makes only that arm anew.
    path = market / "items.parquet"
    items = pq.read_table(path)
    changed = pa.array(items["category"].to_pylist()[::-1])
    place = items.column_names.index("category")
    pq.write_table(items.set_column(place, "category", changed), path)
    command_line.main(command)
    assert len(trained) == 2 + 1
    assert all(len(ranker.features.sparse) == 3 for ranker in trained)
