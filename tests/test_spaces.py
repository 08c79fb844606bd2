"""Vectors of different spaces are not mixed: not in a store, a tower or a ranker."""

import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from forging import listed_anew

from learn_torchrec import spaces
from learn_torchrec.apps import (
    encode_content,
    export_vectors,
    predict,
    train_ranker,
    train_towers,
)
from learn_torchrec.artifact import read_manifest
from learn_torchrec.content.store import ContentStore
from learn_torchrec.errors import UserError
from learn_torchrec.publish import write_artifact
from learn_torchrec.ranker.learn.vectors import LearnVectors
from learn_torchrec.towers.artifact import load_towers

TOWERS = ["split.min_events=4", "towers.training.epochs=1"]
TOWERS += ["towers.training.batch_size=8", "towers.model.encoder.num_layers=1"]
TOWERS += ["towers.model.encoder.width=16", "towers.model.encoder.num_heads=2"]
RANKER = ["ranker.features.dense=hour", "ranker.training.batch_size=256"]
RANKER += ['ranker.features.sparse=[{"column": "user_id", "num_embeddings": 90}]']


@pytest.fixture
def data(market, model_dir):
    """The market with texts that the tiny model knows."""
    items = pq.read_table(market / "items.parquet")
    titles = [f"{color} mug {n}" for n in range(20) for color in ("red", "blue")]
    items = items.set_column(1, "title", pa.array(titles))
    pq.write_table(items, market / "items.parquet")
    return market, model_dir


def encode(data, out, *more, settings=()):
    market, model = data
    options = ["--data", f"parquet:{market}", "--out", str(out), *more]
    options += ["--set", f"content.encoder.model={model}", *settings]
    encode_content.main(options)
    return out


def add_items(market, titles):
    """Put new items before the others, so that every row moves."""
    items = pq.read_table(market / "items.parquet")
    new = pa.table(
        {
            "item_id": pa.array(range(len(titles)), items.schema.field(0).type),
            "title": titles,
            "category": ["red"] * len(titles),
        }
    )
    pq.write_table(pa.concat_tables([new, items]), market / "items.parquet")


def towers(data, content, out, *more):
    options = [
        "--data",
        f"parquet:{data[0]}",
        "--content",
        str(content),
        "--out",
        str(out),
    ]
    options += [*more, "--set", *TOWERS]
    train_towers.main(options)
    return out


def vectors(data, content, tower, out, *more):
    options = ["--data", f"parquet:{data[0]}", "--content", str(content)]
    options += ["--towers", str(tower), "--out", str(out), *more]
    export_vectors.main(options)
    return out


def ranker(data, vector, out, *more):
    options = [
        "--data",
        f"parquet:{data[0]}",
        "--vectors",
        str(vector),
        "--out",
        str(out),
    ]
    options += [*more, "--set", *RANKER]
    train_ranker.main(options)
    return out


def test_a_store_states_its_space(data, tmp_path):
    first = encode(data, tmp_path / "first")
    manifest = read_manifest(first, "content")
    space = spaces.space_of(manifest)
    assert set(space) == {"id", "encoder", "prompt", "dtype"}
    canaries = spaces.read_canaries(first)
    assert canaries.shape == (len(spaces.CANARY_TEXTS), ContentStore.open(first).dim)
    last = encode(data, tmp_path / "last", settings=["content.encoder.pooling=last"])
    other = spaces.space_of(read_manifest(last, "content"))
    assert other["id"] != space["id"]
    assert spaces.difference(space, other) == "another encoder, or other settings of it"


def test_an_increment_keeps_the_space_without_loading_the_model(
    data, tmp_path, monkeypatch
):
    first = encode(data, tmp_path / "first")
    items = pq.read_table(data[0] / "items.parquet")
    pq.write_table(items.slice(1), data[0] / "items.parquet")  # one has gone
    with monkeypatch.context() as patch:
        patch.setattr("learn_torchrec.content.backbone.load", None)
        second = encode(data, tmp_path / "second", "--reuse", str(first))
    one, two = (read_manifest(each, "content") for each in (first, second))
    assert spaces.space_of(one) == spaces.space_of(two)
    assert np.array_equal(spaces.read_canaries(first), spaces.read_canaries(second))


def test_a_model_that_changed_under_its_name_is_noticed(data, tmp_path):
    first = encode(data, tmp_path / "first")
    add_items(data[0], ["green plate"])
    # The same name, the same settings, other vectors.
    store = ContentStore.open(first)
    changed = tmp_path / "changed"
    with write_artifact(
        changed,
        kind="content",
        config=store.manifest.config,
        inputs=store.manifest.inputs,
        facts=store.manifest.facts,
    ) as working:
        for name in store.manifest.files:
            if name not in ("config.json", spaces.CANARIES_FILE):
                shutil.copyfile(first / name, working / name)
        canaries = spaces.read_canaries(first)
        np.save(working / spaces.CANARIES_FILE, np.roll(canaries, 1, axis=1))
    with pytest.raises(UserError, match="not what the model gives today"):
        encode(data, tmp_path / "second", "--reuse", str(changed))
    assert not (tmp_path / "second").exists()
    encode(data, tmp_path / "second", "--reuse", str(first))


@pytest.mark.parametrize(
    "canaries",
    [
        np.full((len(spaces.CANARY_TEXTS), 16), np.nan, np.float16),
        np.ones((9, 16), np.float16),
        np.ones((len(spaces.CANARY_TEXTS), 5), np.float16),
        np.ones((2, 2, 2), np.float16),
        np.ones((len(spaces.CANARY_TEXTS), 16), np.int64),
    ],
    ids=["no numbers", "more", "shorter", "three dimensions", "integers"],
)
def test_forged_canaries_are_refused(canaries, data, tmp_path):
    first = encode(data, tmp_path / "first")
    np.save(first / spaces.CANARIES_FILE, canaries)
    listed_anew(first)
    add_items(data[0], ["green plate"])
    with pytest.raises(UserError, match=r"canaries\.npy: damaged"):
        encode(data, tmp_path / "second", "--reuse", str(first))


@pytest.mark.parametrize("inputs", ["content", "content+id"])
def test_towers_read_new_items_of_their_space_only(data, tmp_path, inputs):
    """Whatever their ids know, they know by item, not by row."""
    first = encode(data, tmp_path / "first")
    ids = ["--set", f"towers.model.inputs={inputs}"]
    tower = towers(data, first, tmp_path / "towers", *ids)
    assert spaces.read_canaries(tower) is not None
    one = vectors(data, first, tower, tmp_path / "one")
    add_items(data[0], ["green plate", "a cup"])
    grown = encode(data, tmp_path / "grown", "--reuse", str(first))
    two = vectors(data, grown, tower, tmp_path / "two", "--earlier", str(one))
    before, after = LearnVectors.open(one), LearnVectors.open(two)
    for side in ("items", "content"):
        old, new = (getattr(each, side).vectors for each in (before, after))
        assert len(new) == len(old) + 2
        assert np.array_equal(new[2:], old[np.arange(len(old))])
    counts = [
        load_towers(tower, torch.device("cpu"), ContentStore.open(each))[0].popularity
        for each in (first, grown)
    ]
    assert counts[1].log_count.tolist() == [0, 0, *counts[0].log_count.tolist()]
    assert spaces.space_of(before.manifest) == spaces.space_of(after.manifest)
    refit = vectors(data, grown, tower, tmp_path / "refit")
    assert spaces.difference(
        spaces.space_of(before.manifest),
        spaces.space_of(read_manifest(refit, "vectors")),
    ) == ("otherwise reduced content")
    last = encode(data, tmp_path / "last", settings=["content.encoder.pooling=last"])
    with pytest.raises(UserError, match=r"another space \(another encoder"):
        vectors(data, last, tower, tmp_path / "three")
    with pytest.raises(UserError, match=r"another space \(another encoder"):
        towers(data, last, tmp_path / "warm", "--warm-start", str(tower))


def test_a_ranker_goes_on_in_the_space_of_its_training(data, tmp_path):
    first = encode(data, tmp_path / "first")
    tower = towers(data, first, tmp_path / "towers")
    one = vectors(data, first, tower, tmp_path / "one")
    start = ranker(data, one, tmp_path / "ranker")
    stated = json.loads((start / "manifest.json").read_text())["facts"]["space"]
    assert set(stated) >= {"encoder", "towers", "standardization", "reduction"}
    # Warm towers are of the same space, fresh ones are not.
    warm = towers(data, first, tmp_path / "warm", "--warm-start", str(tower))
    two = vectors(data, first, warm, tmp_path / "two", "--earlier", str(one))
    later = ranker(data, two, tmp_path / "later", "--warm-start", str(start))
    assert spaces.space_of(read_manifest(later, "ranker")) == stated
    fresh = towers(data, first, tmp_path / "fresh", "--set", "towers.training.seed=1")
    three = vectors(data, first, fresh, tmp_path / "three")
    with pytest.raises(UserError, match=r"another space \(other towers\)"):
        vectors(data, first, fresh, tmp_path / "four", "--earlier", str(one))
    with pytest.raises(UserError, match=r"another space \(other towers\)"):
        ranker(data, three, tmp_path / "x", "--warm-start", str(start))
    # A grown catalogue is reduced otherwise, unless --earlier says how it was.
    add_items(data[0], ["green plate", "a cup"])
    grown = encode(data, tmp_path / "grown", "--reuse", str(first))
    refit = vectors(data, grown, tower, tmp_path / "refit")
    scored = ["--data", f"parquet:{data[0]}", "--ranker", str(start)]
    scored += ["--out", str(tmp_path / "scored"), "--vectors"]
    with pytest.raises(UserError, match="otherwise reduced content"):
        predict.main([*scored, str(refit)])
    kept = vectors(data, grown, tower, tmp_path / "kept", "--earlier", str(one))
    predict.main([*scored, str(kept)])


def test_item_vectors_of_attention_do_not_move_to_other_items(data, tmp_path, caplog):
    caplog.set_level("INFO", logger="learn_torchrec")
    first = encode(data, tmp_path / "first")
    tower = towers(data, first, tmp_path / "towers")
    one = vectors(data, first, tower, tmp_path / "one")
    ids = ["--set", "ranker.learn.attention=content+id"]
    start = ranker(data, one, tmp_path / "ranker", *ids)
    table = "learn_items.weight is new (its rows were other items"
    ranker(data, one, tmp_path / "same", "--warm-start", str(start), *ids)
    assert "0 new, 0 dropped" in caplog.text
    # As many items, in another order.
    items = pq.read_table(data[0] / "items.parquet")
    turned = items.take(pa.array(range(items.num_rows - 1, -1, -1)))
    pq.write_table(turned, data[0] / "items.parquet")
    second = encode(data, tmp_path / "second", "--reuse", str(first))
    two = vectors(data, second, tower, tmp_path / "two", "--earlier", str(one))
    ranker(data, two, tmp_path / "other", "--warm-start", str(start), *ids)
    assert table in caplog.text
