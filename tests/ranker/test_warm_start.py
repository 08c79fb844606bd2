"""A ranker starts from an earlier one by name, and says what became of everything."""

import pytest
import torch

from learn_torchrec.apps import train_ranker
from learn_torchrec.errors import UserError
from learn_torchrec.ranker.build import MODEL_DIRECTORY, build_ranker, save_ranker
from learn_torchrec.ranker.config import (
    RankerConfig,
    RankerModelConfig,
    RankerTrainingConfig,
)
from learn_torchrec.ranker.features import (
    FeaturesConfig,
    HashedFeature,
    IndexedFeature,
)
from learn_torchrec.ranker.warm_start import WarmStart, warm_start
from learn_torchrec.training.distributed import process_group
from learn_torchrec.training.optimizer_state import OPTIMIZER_DIRECTORY
from learn_torchrec.training.sharding import full_state_dict

SHAPE = RankerModelConfig(embedding_dim=4, dense_layers=(3,), over_layers=(5,))
BAGS = "ranker.sparse_arch.embedding_bag_collection.embedding_bags"


def table(name):
    return f"{BAGS}.t_{name}.weight"


def configured(*sparse, seed=0):
    features = FeaturesConfig(sparse=sparse, dense=("x",))
    training = RankerTrainingConfig(seed=seed)
    return RankerConfig(features=features, model=SHAPE, training=training)


EARLIER = configured(
    IndexedFeature(column="user", num_embeddings=6),
    HashedFeature(column="item", num_embeddings=9),
    HashedFeature(column="shop", num_embeddings=5),
)


@pytest.fixture
def earlier(tmp_path):
    with process_group() as device:
        model = build_ranker(EARLIER, None, device)
        save_ranker(model, tmp_path)
        return tmp_path, full_state_dict(model)


def started(config, earlier, renamed=()):
    """Return the state before and after, and what was loaded."""
    directory = earlier[0] / MODEL_DIRECTORY
    source = WarmStart(directory, EARLIER.features, dict(renamed))
    with process_group() as device:
        model = build_ranker(config, None, device)
        before = full_state_dict(model)
        loaded = warm_start(model, config.features, source)
        return before, full_state_dict(model), loaded


def test_tables_are_matched_renamed_grown_and_left_out(earlier):
    config = configured(
        IndexedFeature(column="user", num_embeddings=8),
        HashedFeature(column="goods", num_embeddings=9),
        HashedFeature(column="city", num_embeddings=5),
        seed=1,
    )
    before, after, loaded = started(config, earlier, {"goods": "item"})
    old = earlier[1]
    assert torch.equal(after[table("goods")], old[table("item")])
    assert torch.equal(after[table("user")][:6], old[table("user")])
    assert torch.equal(after[table("user")][6:], before[table("user")][6:])
    assert torch.equal(after[table("city")], before[table("city")])
    assert loaded.resized == {table("user"): (6, 8)}
    assert list(loaded.new) == [table("city")]
    assert loaded.left_out == [f"model.{table('shop')}"]
    dense = [name for name in after if BAGS not in name]
    assert len(dense) > 4
    assert all(torch.equal(after[name], old[name]) for name in dense)
    assert set(loaded.matched) == {table("goods"), *dense}


def test_rows_that_mean_something_else_are_not_loaded(earlier):
    config = configured(
        HashedFeature(column="user", num_embeddings=6),  # hashed now
        HashedFeature(column="item", num_embeddings=12),  # hashed to another size
        HashedFeature(column="shop", num_embeddings=5),
        seed=1,
    )
    before, after, loaded = started(config, earlier, {"shop": ""})
    for name in ("user", "item", "shop"):
        assert torch.equal(after[table(name)], before[table(name)])
    assert loaded.new == {
        table("user"): "its ids were mapped to rows by index, now by hash",
        table("item"): "[9, 4] before, [12, 4] now",
        table("shop"): "the earlier run has none",
    }


@pytest.mark.parametrize(
    ("renamed", "message"),
    [
        ({"nothing": "item"}, "this run has no ID feature 'nothing'"),
        ({"item": "nothing"}, "the earlier run has no ID feature 'nothing'"),
    ],
)
def test_unknown_names_are_refused(earlier, renamed, message):
    with pytest.raises(UserError, match=message):
        started(EARLIER, earlier, renamed)


def test_the_app_starts_from_an_earlier_run(market, tmp_path, caplog):
    options = ["--data", f"parquet:{market}", "--set", "ranker.features.dense=hour"]
    options += ["ranker.training.batch_size=64"]
    options += ['ranker.features.sparse=[{"column": "user_id", "num_embeddings": 90}]']
    train_ranker.main(["--out", str(tmp_path / "first"), *options])
    caplog.set_level("INFO", logger="learn_torchrec")
    warm = ["--warm-start", str(tmp_path / "first")]
    train_ranker.main([*warm, "--out", str(tmp_path / "second"), *options])
    assert "0 resized, 0 new, 0 dropped" in caplog.text
    with pytest.raises(UserError, match="other settings or inputs"):
        train_ranker.main(["--out", str(tmp_path / "second"), *options])
    earlier_end = [*options, "split.test_from=70%"]
    with pytest.raises(UserError, match=r"leak: .*/first learned from events up to"):
        train_ranker.main([*warm, "--out", str(tmp_path / "third"), *earlier_end])
    with pytest.raises(UserError, match="needs --warm-start"):
        train_ranker.main(
            ["--warm-start-map", "a=b", "--out", str(tmp_path / "third"), *options]
        )


def test_the_app_saves_the_optimizer_unless_told_not_to(market, tmp_path, caplog):
    options = ["--data", f"parquet:{market}", "--set", "ranker.features.dense=hour"]
    options += ["ranker.training.batch_size=64"]
    options += ['ranker.features.sparse=[{"column": "user_id", "num_embeddings": 90}]']
    lean = [*options, "ranker.training.save_optimizer=false"]
    caplog.set_level("INFO", logger="learn_torchrec")
    for name, given, says in (
        ("with", options, "the optimizer goes on where"),
        ("without", lean, "a fresh optimizer"),
    ):
        first, second = tmp_path / name, tmp_path / f"{name}_second"
        train_ranker.main(["--out", str(first), *given])
        assert (first / OPTIMIZER_DIRECTORY).exists() == (name == "with")
        caplog.clear()
        train_ranker.main(["--warm-start", str(first), "--out", str(second), *options])
        assert says in caplog.text
    caplog.clear()
    warm = ["--warm-start", str(tmp_path / "with"), "--out", str(tmp_path / "third")]
    train_ranker.main([*warm, "--fresh-optimizer", *options])
    assert "a fresh optimizer" in caplog.text
