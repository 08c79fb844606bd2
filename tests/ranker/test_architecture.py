"""What a feature may ask for beyond a table of the common dim and a sum."""

import dataclasses
import json

import numpy as np
import problem
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torchrec import (
    EmbeddingBagCollection,
    EmbeddingBagConfig,
    EmbeddingCollection,
    EmbeddingConfig,
    KeyedJaggedTensor,
)

from learn_torchrec.apps import main as command_line
from learn_torchrec.config import replace
from learn_torchrec.errors import UserError
from learn_torchrec.evaluation.auc import evaluate_auc
from learn_torchrec.ranker.batch import collate
from learn_torchrec.ranker.build import (
    build_ranker,
    load_ranker,
    save_ranker,
)
from learn_torchrec.ranker.features import (
    FeaturesConfig,
    HashedFeature,
    IndexedFeature,
    ManagedCollisionFeature,
)
from learn_torchrec.ranker.scoring import score
from learn_torchrec.ranker.sparse import SparseArch
from learn_torchrec.ranker.training import train_ranker
from learn_torchrec.training.sharding import full_state_dict

ITEM = IndexedFeature(column="item_id", num_embeddings=6)
HISTORY = IndexedFeature(column="history", pooling="attention", query="item_id")


def bag(name, dim, features):
    return EmbeddingBagConfig(
        name=name, embedding_dim=dim, num_embeddings=3, feature_names=features
    )


def numbered(collection):
    """Make row r of every table r + 1 everywhere."""
    with torch.no_grad():
        for table in collection.parameters():
            table.copy_(torch.arange(1.0, len(table) + 1).unsqueeze(1).expand_as(table))
    return collection


def test_sums_means_shared_tables_and_projections_by_hand():
    torch.manual_seed(0)
    arch = SparseArch(
        numbered(
            EmbeddingBagCollection(
                tables=[bag("t_a", 4, ["a", "b"]), bag("t_c", 8, ["c"])]
            )
        ),
        embedding_dim=4,
        embedding_collection=numbered(
            EmbeddingCollection(
                tables=[
                    EmbeddingConfig(
                        name="t_d",
                        embedding_dim=4,
                        num_embeddings=3,
                        feature_names=["d", "e", "f"],
                    )
                ]
            )
        ),
        means=["b", "e"],
        queries={"f": "d"},
    )
    assert arch.names == ("a", "b", "c", "d", "e", "f")
    pooled = KeyedJaggedTensor(
        keys=["b", "c", "a"],  # in another order than the tables
        values=torch.tensor([1, 0, 1, 2, 0, 1, 2]),
        lengths=torch.tensor([1, 3, 1, 0, 2, 0]),
    )
    jagged = KeyedJaggedTensor(
        keys=["d", "e", "f"],
        values=torch.tensor([0, 2, 0, 2, 1, 1]),
        lengths=torch.tensor([1, 1, 0, 2, 0, 2]),
    )
    embedded = arch(pooled, None, jagged)
    projection = arch.projections["f_c"]
    assert embedded.shape == (2, 6, 4)
    assert embedded[:, 0, 0].tolist() == [5, 0]  # rows 1 and 2; nothing
    assert embedded[:, 1, 0].tolist() == [2, 2]  # row 1; the mean of rows 0, 1, 2
    expected = projection(torch.tensor([[1.0] * 8, [0.0] * 8]))
    torch.testing.assert_close(embedded[:, 2], expected)
    assert embedded[:, 3, 0].tolist() == [1, 3]
    assert embedded[:, 4, 0].tolist() == [0, 2]  # nothing; the mean of rows 0 and 2
    attention = arch.attention["f_f"]
    expected = attention(
        torch.tensor([[1.0] * 4, [3.0] * 4]),
        torch.full((2, 4), 2.0),
        torch.tensor([0, 2]),
    )
    torch.testing.assert_close(embedded[:, 5], expected)
    assert list(arch.projections) == ["f_c"]


def encoded(feature, lists):
    bags = feature.encode(pa.table({"history": lists}), "file", nulls="fill")
    return np.split(bags.values, bags.offsets[1:-1]), bags


def test_padding_is_dropped_and_the_last_ids_are_kept():
    feature = replace(HISTORY, padding=0, max_length=2, num_embeddings=6)
    lists = [[0, 0, 3], [], [1, 2, 0, 3], None, [5, 4, 7, 9]]
    rows, bags = encoded(feature, lists)
    assert [row.tolist() for row in rows] == [[3], [], [2, 3], [], []]
    assert bags.left_out.tolist() == [0, 0, 0, 0, 2]
    assert bags.has_null.tolist() == [False, False, False, True, False]
    text = HashedFeature(column="history", padding="", num_embeddings=1000)
    plain = HashedFeature(column="history", num_embeddings=1000)
    padded, _ = encoded(text, [["", "x"], ["y"]])
    expected, _ = encoded(plain, [["x"], ["y"]])
    assert [r.tolist() for r in padded] == [r.tolist() for r in expected]
    number = replace(plain, padding="0")
    assert [r.tolist() for r in encoded(number, [[0], [0, 0]])[0]] == [[], []]
    with pytest.raises(UserError, match="'history' is int64, which padding='none' is"):
        encoded(replace(plain, padding="none"), [[1]])


def test_weights_follow_their_ids():
    feature = HashedFeature(
        column="ids", weights="w", padding=0, max_length=2, num_embeddings=1000
    )
    table = pa.table({"ids": [[1, 0, 2, 3], [0]], "w": [[1.0, 2.0, 3.0, 4.0], [5.0]]})
    bags = feature.encode(table, "file")
    assert bags.weights.tolist() == [3.0, 4.0]
    assert bags.lengths.tolist() == [2, 0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pooling": "attention"}, "query: attention needs one"),
        ({"query": "item_id"}, "query: .* other poolings have none"),
        ({"pooling": "mean", "weights": "w"}, "weights: are of a sum, not of mean"),
        ({"embedding_dim": 6}, "multiple of 4"),
    ],
)
def test_settings_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        HashedFeature(column="x", **options)


def test_managed_collision_has_no_attention():
    with pytest.raises(ValueError, match=r"pooling: managed_collision .* attention"):
        ManagedCollisionFeature(column="x", pooling="attention", query="y")


def test_a_table_that_attention_reads_is_not_replicated(one_rank):
    config = problem.architecture("row_wise/sgd")
    pinned = dataclasses.replace(
        config, sharding=replace(config.sharding, kind="data_parallel")
    )
    with pytest.raises(UserError, match=r"cannot replicate the table of .*'item_id'"):
        build_ranker(pinned, problem.SHAPE, one_rank)


def test_gradients_reach_every_table_and_layer(one_rank):
    config = problem.architecture("auto")
    task = problem.unsharded(config)
    batch = next(problem.impressions(config).batches(epoch=0))
    task(batch)[0].backward()
    names = [name for name, _ in task.named_parameters()]
    arch = "ranker.sparse_arch"
    for name in (
        f"{arch}.embedding_bag_collection.embedding_bags.t_tags.weight",
        f"{arch}.embedding_collection.embeddings.t_item_id.weight",
        f"{arch}.attention.f_history.score.weight",
        f"{arch}.projections.f_user_id.weight",
        "ranker.inter_arch.crossnet.W_kernels.1",
    ):
        assert name in names
    assert not [name for name in names if "t_history" in name or "t_like" in name]
    for name, parameter in task.named_parameters():
        assert (parameter.grad != 0).any(), name


def test_the_history_alone_trains_the_shared_table(one_rank):
    config = problem.architecture("auto")
    task = problem.unsharded(config)
    impressions = problem.impressions(config)
    rows = impressions.encoder()(problem.table()).take(np.arange(8))
    task(collate(rows, impressions.learn))[0].backward()
    items, history = (
        set(rows.sequences[name].values.tolist()) for name in ("item_id", "history")
    )
    table = task.ranker.sparse_arch.embedding_collection.embeddings["t_item_id"]
    changed = (table.weight.grad != 0).any(dim=1).nonzero().squeeze(1).tolist()
    assert len(history - items) > 4
    assert set(changed) == items | history


def test_what_is_saved_scores_alike(tmp_path, one_rank):
    config, log = problem.architecture("auto"), problem.Recorder()
    rows = problem.impressions(config)
    model, *_ = train_ranker(config, rows, one_rank, log)
    expected = score(model, rows, 50, one_rank)["score"]
    save_ranker(model, tmp_path)
    again = build_ranker(config, problem.SHAPE, one_rank)
    assert (score(again, rows, 50, one_rank)["score"] != expected).mean() > 0.9
    load_ranker(again, tmp_path)
    np.testing.assert_array_equal(score(again, rows, 50, one_rank)["score"], expected)


def test_managed_tables_can_be_shared_and_averaged(one_rank):
    users = ManagedCollisionFeature(column="user_id", num_embeddings=64)
    friends = ManagedCollisionFeature(column="tags", table="user_id", pooling="mean")
    base = problem.config("row_wise/sgd", managed=True)
    config = replace(base, features=FeaturesConfig(sparse=(ITEM, users, friends)))
    rows, log = problem.impressions(config), problem.Recorder()
    model, *_ = train_ranker(config, rows, one_rank, log)
    batch = rows.encoder()(problem.table()).take(np.arange(50))
    known = batch.managed["user_id"].values
    twice = KeyedJaggedTensor(
        keys=["user_id", "tags"],
        values=torch.from_numpy(np.r_[known, known.repeat(2)]),
        lengths=torch.tensor([1] * 50 + [2] * 50),
    )
    arch = model.module.ranker.sparse_arch.eval()
    items = collate(batch, rows.learn).sparse_features
    embedded = arch(items, twice)
    assert arch.names == ("item_id", "user_id", "tags")
    torch.testing.assert_close(embedded[:, 1], embedded[:, 2])
    assert len(embedded[:, 1].unique(dim=0)) == len(np.unique(known)) > 10
    state = full_state_dict(model)
    assert len([name for name in state if name.endswith("t_user_id.weight")]) == 1
    assert not [name for name in state if "t_tags" in name]


def test_attention_finds_the_candidate_in_the_history(market, tmp_path):
    path = market / "impressions.parquet"
    rows, random = pq.read_table(path), np.random.default_rng(0)
    items = rows["item_id"].to_numpy()
    clicked = random.choice(np.unique(items), (len(items), 4))
    clicked[::2, 1] = items[::2]
    label = (clicked == items[:, None]).any(axis=1).astype(np.int64)
    rows = rows.set_column(rows.column_names.index("label"), "label", pa.array(label))
    padded = [[0, *ids] for ids in clicked.tolist()]
    pq.write_table(rows.append_column("clicked", pa.array(padded)), path)
    history = {"column": "clicked", "pooling": "attention", "query": "item_id"}
    options = ["--data", f"parquet:{market}", "--set", "ranker.training.epochs=8"]
    options += ["ranker.training.batch_size=32", "ranker.optimizer.learning_rate=0.01"]
    features = ["user_id", "item_id", history | {"padding": 0}]
    options += [f"ranker.features.sparse={json.dumps(features)}"]
    ranker, out = str(tmp_path / "ranker"), str(tmp_path / "predictions")
    command_line.main(["train-ranker", "--out", ranker, *options])
    data = ["--data", f"parquet:{market}"]
    command_line.main(["predict", "--ranker", ranker, "--out", out, *data])
    found = pq.read_table(f"{out}/predictions.parquet")
    users, labels, scores = (found[name] for name in ("user_id", "label", "score"))
    learned = evaluate_auc(users.combine_chunks(), labels.to_numpy(), scores.to_numpy())
    assert learned["auc"] > 0.9
