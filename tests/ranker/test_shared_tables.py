"""Tables that several features share: who may, with which settings, from which run."""

import problem
import pytest
import torch

from learn_torchrec.config import replace
from learn_torchrec.ranker.build import (
    MODEL_DIRECTORY,
    build_ranker,
    save_ranker,
)
from learn_torchrec.ranker.features import (
    BucketizedFeature,
    FeaturesConfig,
    HashedFeature,
    IndexedFeature,
)
from learn_torchrec.ranker.warm_start import WarmStart, warm_start
from learn_torchrec.training.sharding import full_state_dict

USER = HashedFeature(column="user_id", num_embeddings=9)
ITEM = IndexedFeature(column="item_id", num_embeddings=6)
HISTORY = IndexedFeature(column="history", pooling="attention", query="item_id")


def test_who_shares_a_table_has_its_owners_settings():
    owner = replace(ITEM, embedding_dim=8, sharding="row_wise")
    features = FeaturesConfig(sparse=(USER, HISTORY, owner))
    _, history, item = features.sparse
    assert history.table_name == item.table_name == "t_item_id"
    assert history.table_rows == 6
    assert (history.embedding_dim, history.sharding) == (8, "row_wise")
    assert [f.name for f in features.sequences] == ["history", "item_id"]
    assert [f.name for f in features.pooled] == ["user_id"]
    grown = replace(owner, num_embeddings=7)
    with pytest.raises(ValueError, match=r"'history'.*'item_id', but sets num_embed"):
        replace(features, sparse=(USER, history, grown))


def test_shared_buckets_have_the_owners_boundaries():
    owner = BucketizedFeature(column="a", boundaries=(1, 2))
    shared = BucketizedFeature(column="b", buckets=3, table="a")
    features = FeaturesConfig(sparse=(shared, owner))
    assert features.sparse[0].boundaries == (1, 2)


WEIGHTED = replace(ITEM, name="b", weights="w")
ATTENDED = replace(ITEM, name="other", pooling="attention", query="item_id")


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ((HISTORY,), "'history' has the query 'item_id'; name a feature"),
        (
            (ITEM, ATTENDED, replace(HISTORY, query="other")),
            "'history' has the query 'other'; .* not itself pooled by attention",
        ),
        (
            (ITEM, USER, replace(HISTORY, table="user_id")),
            "'history' must share .* query 'item_id', 'item_id', not .* 'user_id'",
        ),
        (
            (
                USER,
                ITEM,
                HashedFeature(column="h", pooling="attention", query="item_id"),
            ),
            "'h' shares the table of 'item_id', but maps its ids to 6 rows by hash, "
            "not to 6 rows by index",
        ),
        (
            (USER, HashedFeature(column="h", table="user_id", num_embeddings=4)),
            "'h' shares the table of 'user_id', but sets num_embeddings=4, not 9",
        ),
        (
            (
                BucketizedFeature(column="a", boundaries=(1,)),
                BucketizedFeature(column="b", boundaries=(2,), table="a"),
            ),
            r"'b' shares .* 'a', but sets boundaries=\(2.0,\), not \(1.0,\)",
        ),
        (
            (
                USER,
                ITEM,
                HISTORY,
                replace(ITEM, name="b", table="item_id", weights="w"),
            ),
            "sparse: b has weights, but shares a table with attention",
        ),
        ((replace(USER, table="item_id"),), "'user_id' shares .* 'item_id'; name an"),
        (
            (USER, replace(ITEM, table="b"), replace(ITEM, name="b", table="item_id")),
            "name an ID feature that has its own table",
        ),
        ((ITEM, HISTORY), "needs at least one feature .* no attention reads"),
        (
            (
                USER,
                ITEM,
                HISTORY,
                replace(ITEM, name="b", embedding_dim=4),
                replace(HISTORY, name="c", query="b"),
            ),
            "needs one embedding_dim for all tables .* not None, 4|not 4, None",
        ),
    ],
)
def test_tables_that_cannot_be_shared_are_refused(features, message):
    with pytest.raises(ValueError, match=message):
        FeaturesConfig(sparse=features)


def started(config, earlier_config, directory, device, renamed=()):
    """Return the tables of an earlier run and of one that starts from it, and both."""
    before = build_ranker(earlier_config, None, device)
    save_ranker(before, directory)
    model = build_ranker(config, None, device)
    earlier = WarmStart(
        directory / MODEL_DIRECTORY, earlier_config.features, dict(renamed)
    )
    loaded = warm_start(model, config.features, earlier)

    def weights(model):
        return {
            name.split(".")[-2]: value
            for name, value in full_state_dict(model).items()
            if ".t_" in name
        }

    return weights(before), weights(model), loaded


def test_warm_start_with_a_table_that_becomes_shared(tmp_path, one_rank):
    base = problem.config("auto")
    apart = replace(
        base,
        features=FeaturesConfig(
            sparse=(USER, ITEM, replace(ITEM, column="history", name="history"))
        ),
    )
    shared = replace(
        base,
        features=FeaturesConfig(sparse=(USER, ITEM, HISTORY)),
        training=replace(base.training, seed=1),
    )
    old, new, loaded = started(shared, apart, tmp_path / "a", one_rank)
    assert set(new) == {"t_user_id", "t_item_id"}
    assert all(torch.equal(new[name], old[name]) for name in new)
    (left_out,) = [name for name in loaded.left_out if ".t_" in name]
    assert "t_history" in left_out
    old, new, _ = started(apart, shared, tmp_path / "b", one_rank)
    assert torch.equal(new["t_item_id"], old["t_item_id"])
    assert torch.equal(new["t_history"], old["t_item_id"])  # it was history's, too


def test_warm_start_of_a_renamed_history(tmp_path, one_rank):
    base = problem.config("auto")
    before = replace(base, features=FeaturesConfig(sparse=(USER, ITEM, HISTORY)))
    goods = replace(ITEM, name="goods")
    clicks = replace(HISTORY, name="clicks", query="goods")
    config = replace(
        before,
        features=FeaturesConfig(sparse=(USER, goods, clicks)),
        training=replace(base.training, seed=1),
    )
    renamed = {"goods": "item_id", "clicks": "history"}
    old, new, loaded = started(config, before, tmp_path, one_rank, renamed)
    assert torch.equal(new["t_goods"], old["t_item_id"])
    assert loaded.new == {}
    assert loaded.left_out == []
