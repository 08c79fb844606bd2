"""Codes as features of the ranker: looked up by item, derived, of one codebook."""

import json
import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from learn_torchrec.apps import main as command_line
from learn_torchrec.apps.common.warm_start import refuse_other_codebook
from learn_torchrec.artifact import read_manifest
from learn_torchrec.content.codes import ContentCodes, codebook_fingerprint
from learn_torchrec.content.store import KIND, ContentStore, write_content_store
from learn_torchrec.datasets import open_dataset
from learn_torchrec.errors import UserError
from learn_torchrec.publish import write_artifact
from learn_torchrec.ranker.features import (
    FeaturesConfig,
    HashedFeature,
    IndexedFeature,
)
from learn_torchrec.ranker.features.codes import CodeColumns
from learn_torchrec.ranker.features.lookups import find_columns, open_lookups
from learn_torchrec.ranker.tasks import TaskConfig

ONE = (TaskConfig(),)
SIZE = 4


@pytest.fixture
def codes(store, tmp_path):
    """Codes of items 100 to 139: three levels of four."""
    return encode(tmp_path, "codes", store.directory)


def encode(tmp_path, name, content, *options):
    directory = tmp_path / name
    settings = [] if options else [f"--set=codes.codes_per_level={SIZE}"]
    arguments = [f"--content={content}", f"--out={directory}", *settings, *options]
    command_line.main(["encode-codes", *arguments])
    return directory


@pytest.fixture
def run(market, tmp_path):
    """Runs a stage on the market and returns its artefact's directory."""

    def command(name, out, *options):
        data = [f"--data=parquet:{market}", f"--out={tmp_path / out}"]
        settings = ["ranker.training.batch_size=64", "ranker.features.dense=hour"]
        command_line.main([name, *data, "--set", *settings, *options])
        return tmp_path / out

    return command


def saved_features(ranker):
    sparse = read_manifest(ranker, "ranker").config["ranker"]["features"]["sparse"]
    return {
        each["column"]: (each["ids"], each.get("num_embeddings")) for each in sparse
    }


def test_codes_are_looked_up_by_item(codes, market):
    path = market / "impressions.parquet"
    table = pq.read_table(path)
    items = table["item_id"].to_numpy().copy()
    items[::7] = 999  # an item without codes
    place = table.column_names.index("item_id")
    pq.write_table(table.set_column(place, "item_id", pa.array(items)), path)
    dataset = open_dataset(f"parquet:{market}")
    names = ("content_code_3", "content_code_1_2", "content_code_1_3")
    features = FeaturesConfig(sparse=("item_id", *names, "category"))
    columns = CodeColumns(ContentCodes.open(codes))
    origins = find_columns(dataset, features, ONE, columns)
    assert origins.codes == names
    assert origins.items == ("category",)
    assert origins.added == {*names, "category"}
    lookups = open_lookups(dataset, features, ONE, ["like"], columns)
    added = pickle.loads(pickle.dumps(lookups)).add_to(dataset.impressions, "file")
    stored = np.load(codes / "codes.npy").tolist()
    ids = ContentCodes.open(codes).index.ids.to_pylist()
    known = dict(zip(ids, stored, strict=True))
    for row in range(50):
        item = items[row]
        if item == 999:
            expected = [None] * 3
        else:
            first, second, third = known[item]
            expected = [third, first * SIZE + second, first * SIZE + third]
        assert [added[name][row].as_py() for name in names] == expected
    words = dataset.impressions.set_column(
        place, "item_id", pa.array(items.astype("U"))
    )
    with pytest.raises(UserError, match="ids are string, but int64 in the codes"):
        open_lookups(dataset, FeaturesConfig(sparse=names), ONE, [], columns).add_to(
            words, "file"
        )


def test_features_are_added_or_completed(codes):
    columns = CodeColumns(ContentCodes.open(codes))
    plain = FeaturesConfig(sparse=("user_id", "item_id"))
    assert columns.add_features(plain).sparse[2:] == tuple(
        IndexedFeature(column=f"content_code_{level}", num_embeddings=SIZE)
        for level in (1, 2, 3)
    )
    own = IndexedFeature(column="content_code_2", num_embeddings=9)
    named = FeaturesConfig(
        sparse=("user_id", own, HashedFeature(column="content_code_1_2", name="pair"))
    )
    user, second, pair = columns.add_features(named).sparse
    assert user == HashedFeature(column="user_id")
    assert second == own
    assert pair == IndexedFeature(
        column="content_code_1_2", name="pair", num_embeddings=SIZE**2
    )


@pytest.mark.parametrize(
    ("given", "name", "hint"),
    [
        (False, "content_code_1", "are read with --codes DIR, see encode-codes"),
        (True, "content_code_4", "has content_code_1, content_code_2, content_code_3"),
        (True, "content_code_2_1", "which can be joined"),
    ],
)
def test_codes_that_do_not_exist_have_a_hint(codes, market, given, name, hint):
    dataset = open_dataset(f"parquet:{market}")
    columns = CodeColumns(ContentCodes.open(codes)) if given else None
    with pytest.raises(UserError, match=f"sparse: no column '{name}'.*{hint}"):
        find_columns(dataset, FeaturesConfig(sparse=("user_id", name)), ONE, columns)


def test_a_ranker_learns_and_scores_with_codes(run, codes, store, tmp_path, capsys):
    option = f"--codes={codes}"
    ranker = run("train-ranker", "ranker", option)
    line = "ranker.features.sparse: of --codes content_code_1 (4 rows), content_code_2"
    assert line in capsys.readouterr().err
    added = {f"content_code_{n}": ("index", SIZE) for n in (1, 2, 3)}
    assert saved_features(ranker).items() >= added.items()
    manifest = read_manifest(ranker, "ranker")
    assert manifest.facts["nulls"] == manifest.facts["missing_vectors"] == {}
    predictions = run("predict", "scores", f"--ranker={ranker}", option)
    table = pq.read_table(predictions / "predictions.parquet")
    assert np.isfinite(table["score"].to_numpy()).all()
    assert not [name for name in table.column_names if "code" in name]
    # Codes of a grown catalogue are of the same codebook; other ones are refused.
    vectors = np.concatenate([np.asarray(store.vectors), np.ones((5, 12))])
    with write_artifact(tmp_path / "new", kind=KIND, config={}, inputs={}) as out:
        write_content_store(
            out, pa.array([*range(100, 140), *range(900, 905)]), vectors
        )
    more = encode(tmp_path, "more", tmp_path / "new", f"--codebook={codes}")
    again = run("predict", "again", f"--ranker={ranker}", f"--codes={more}")
    same = pq.read_table(again / "predictions.parquet")
    assert same["score"].equals(table["score"])
    other = encode(tmp_path, "other", store.directory, "--set=codes.seed=5")
    for given, message in (
        ([f"--codes={other}"], "was trained with other codebook than --codes gives"),
        ([], "codes of content are read with --codes DIR"),
    ):
        with pytest.raises(SystemExit):
            run("predict", "refused", f"--ranker={ranker}", *given)
        assert message in capsys.readouterr().err
    # A warm start keeps the meaning of the tables.
    warm = (f"--codes={other}", f"--warm-start={ranker}")
    with pytest.raises(SystemExit):
        run("train-ranker", "refused", *warm)
    assert "was trained with codes of another codebook" in capsys.readouterr().err
    for given in ({}, {"codebook": codebook_fingerprint(more)}):
        refuse_other_codebook(ranker, given)


def test_named_codes_are_the_only_ones_and_null_without_any(run, codes, tmp_path):
    half = ContentStore.open(tmp_path / "content")
    with write_artifact(tmp_path / "half", kind=KIND, config={}, inputs={}) as out:
        write_content_store(out, half.item_ids[:20], half.vectors[:20])
    some = encode(tmp_path, "some", tmp_path / "half", f"--codebook={codes}")
    sparse = "--set=ranker.features.sparse=user_id,content_code_1_2_3"
    ranker = run("train-ranker", "ranker", f"--codes={some}", sparse)
    assert saved_features(ranker)["content_code_1_2_3"] == ("index", SIZE**3)
    assert len(saved_features(ranker)) == 2
    facts = json.loads((ranker / "manifest.json").read_text())["facts"]
    nulls = facts["nulls"]["content_code_1_2_3"]
    assert nulls / facts["rows"] == pytest.approx(0.5, abs=0.1)
