"""`train-ranker` and `predict` with the switches that the quickstart does not use."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from learn_torchrec.apps import main as command_line
from learn_torchrec.apps import predict, train_ranker
from learn_torchrec.artifact import Manifest
from learn_torchrec.datasets import open_dataset
from learn_torchrec.datasets.split import SplitTimes
from learn_torchrec.errors import UserError
from learn_torchrec.ranker.config import (
    RankerConfig,
    RankerTrainingConfig,
    StreamConfig,
)
from learn_torchrec.ranker.features import FeaturesConfig
from learn_torchrec.ranker.learn.inputs import LearnInputs
from learn_torchrec.ranker.learn.vectors import LearnVectors
from learn_torchrec.vector_table import VectorTable

SETTINGS = [
    "ranker.features.dense=hour",
    "ranker.training.batch_size=64",
    'ranker.features.sparse=[{"column": "user_id", "num_embeddings": 90}]',
]


@pytest.fixture
def run(market, tmp_path):
    """Runs a command on the market with the settings, into a named directory."""

    def command(name, out, *options):
        settings = [f"--set={setting}" for setting in SETTINGS]
        directory = tmp_path / out
        data = ["--data", f"parquet:{market}", "--out", str(directory)]
        command_line.main([name, *data, *settings, *options])
        return directory

    return command


def facts(directory):
    return json.loads((directory / "manifest.json").read_text())["facts"]


def test_streamed_training_and_the_printed_plan(run, capsys):
    ranker = run(
        *("train-ranker", "streamed", "--print_sharding_plan"),
        "--set=ranker.training.stream.enabled=true",
        "--set=ranker.sharding.kind=row_wise",
    )
    plan = "t_user_id: 90 x 16, row_wise, fused: rank 0 rows 0-90 columns 0-16"
    assert plan in capsys.readouterr().out
    found = facts(ranker)
    assert found["steps"] == found["rows"] // 64 * 3
    assert found["rows"] > 500
    predictions = run("predict", "predictions", "--ranker", str(ranker))
    scored = pq.read_table(predictions / "predictions.parquet")
    assert facts(predictions)["rows"] == scored.num_rows > 500
    lines = [json.loads(line) for line in (ranker / "log.jsonl").open()]
    assert {"loss", "auxiliary_loss", "ne", "calibration"} <= set(lines[-1])
    assert 0.5 < lines[-1]["calibration"] < 2


def test_parts_and_row_groups_change_no_score(run, market, store, monkeypatch):
    content = ["--content", str(store.directory)]
    ranker = run("train-ranker", "ranker", *content)
    options = ["--ranker", str(ranker), *content]
    whole = run("predict", "whole", *options)
    monkeypatch.setattr(predict, "_PART_ROWS", 100)
    cut = run("predict", "cut", *options)
    one, other = (pq.read_table(d / "predictions.parquet") for d in (whole, cut))
    parts = pq.read_metadata(cut / "predictions.parquet" / "part-00000.parquet")
    assert parts.num_row_groups == -(-one.num_rows // 100) > 5
    for name in set(one.column_names) - {"score"}:
        assert other[name].equals(one[name])
    np.testing.assert_allclose(other["score"], one["score"], atol=1e-6)
    assert facts(cut) == facts(whole)


def test_a_bad_row_is_named_as_in_the_file(run, market, capsys):
    ranker = run("train-ranker", "ranker")
    path = market / "impressions.parquet"
    table = pq.read_table(path)
    hours = table["hour"].to_numpy().astype(np.float64)
    last = int(np.argmax(table["timestamp"].to_numpy()))
    hours[last] = np.inf
    place = table.column_names.index("hour")
    pq.write_table(
        table.set_column(place, "hour", pa.array(hours)), path, row_group_size=200
    )
    with pytest.raises(SystemExit):
        run("predict", "refused", "--ranker", str(ranker))
    assert f"'hour' is inf in row {last}" in capsys.readouterr().err
    assert not (market.parent / "refused").exists()


def test_a_ranker_needs_no_dense_feature(run):
    ranker = run("train-ranker", "ranker", "--set=ranker.features.dense=")
    assert facts(ranker)["nulls"] == {}
    predictions = run("predict", "predictions", "--ranker", str(ranker))
    scores = pq.read_table(predictions / "predictions.parquet")["score"].to_numpy()
    assert np.isfinite(scores).all()
    assert len(np.unique(scores)) > 20


def test_nulls_are_filled_counted_or_refused(run, market, capsys):
    path = market / "impressions.parquet"
    table = pq.read_table(path)
    hours = [
        None if n % 10 == 3 else h for n, h in enumerate(table["hour"].to_pylist())
    ]
    place = table.column_names.index("hour")
    pq.write_table(table.set_column(place, "hour", pa.array(hours)), path)
    ranker = run("train-ranker", "ranker")
    found = facts(ranker)
    assert found["nulls"]["hour"] == pytest.approx(found["rows"] / 10, rel=0.3)
    predictions = run("predict", "predictions", "--ranker", str(ranker))
    assert 0 < facts(predictions)["nulls"]["hour"] < facts(predictions)["rows"] / 5
    with pytest.raises(SystemExit):
        run("train-ranker", "strict", "--set=ranker.features.nulls=refuse")
    assert "impressions.parquet: feature column 'hour' is null in row" in (
        capsys.readouterr().err
    )


def test_raw_content_vectors_take_the_place_of_learns(run, store, capsys):
    content = ["--content", str(store.directory)]
    paper = ["--set", "ranker.learn.form=paper"]
    missing = facts(run("train-ranker", "paper", *content, *paper))["missing_vectors"]
    assert missing["item_vectors"] == 0
    assert missing["user_vectors"] < 200
    ranker = run("train-ranker", "ranker", *content)
    assert facts(ranker)["missing_vectors"] == {"item_vectors": 0}
    predictions = run("predict", "predictions", "--ranker", str(ranker), *content)
    scored = pq.read_table(predictions / "predictions.parquet")
    assert np.isfinite(scored["score"].to_numpy()).all()
    with pytest.raises(SystemExit) as caught:
        run("predict", "refused", "--ranker", str(ranker))
    assert caught.value.code == 2
    assert "was trained with content; add --content" in capsys.readouterr().err


def test_vectors_and_content_exclude_each_other(run, store, tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        run("train-ranker", "x", "--vectors", "v", "--content", str(store.directory))
    assert caught.value.code == 2
    assert "--vectors and --content: give one of them" in capsys.readouterr().err


def test_only_parquet_can_be_streamed(tmp_path, capsys):
    with pytest.raises(SystemExit):
        command_line.main(
            [
                *(
                    "train-ranker",
                    "--data",
                    "market:users=20,days=4,impressions=2000",
                    "--out",
                    str(tmp_path / "x"),
                ),
                "--set=ranker.training.stream.enabled=true",
                "--set=ranker.features.sparse=user_id",
                "--set=ranker.features.dense=",
            ]
        )
    assert "only `parquet:` data can be streamed" in capsys.readouterr().err


@pytest.mark.parametrize("streams", [False, True])
def test_training_takes_the_impressions_from_towers_until_to_before_test_from(
    streams, market, one_rank
):
    dataset = open_dataset(f"parquet:{market}")
    times = np.unique(dataset.impressions["timestamp"].to_numpy())
    first, end = int(times[100]), int(times[200])
    config = RankerConfig(
        features=FeaturesConfig(sparse=("user_id",), dense=("timestamp",)),
        training=RankerTrainingConfig(
            batch_size=1, stream=StreamConfig(enabled=streams)
        ),
    )
    split = SplitTimes(towers_until=first, test_from=end)
    impressions = train_ranker.training_impressions(
        dataset, config, split, None, ["like"]
    )
    every = dataset.impressions["timestamp"].to_numpy()
    expected = every[(every >= first) & (every < end)]  # a row lies at either bound
    found = [
        pa.concat_tables(impressions.source.pieces(group))["timestamp"].to_pylist()
        for group in range(len(impressions.source))
    ]
    assert sorted(x for group in found for x in group) == sorted(expected.tolist())
    assert impressions.source.earliest == first
    assert len(impressions) == impressions.loader.steps == len(expected)
    nothing = SplitTimes(towers_until=int(times[-1]) + 1, test_from=2**40)
    with pytest.raises(UserError, match="no impression lies between split"):
        train_ranker.training_impressions(dataset, config, nothing, None, ["like"])


def test_unknown_items_are_counted_alike_in_memory_and_streamed(market, one_rank):
    path = market / "impressions.parquet"
    table = pq.read_table(path)
    items = table["item_id"].to_numpy().copy()
    items[::7] = 999  # not in the item table, and without a vector
    place = table.column_names.index("item_id")
    pq.write_table(table.set_column(place, "item_id", pa.array(items)), path)
    users = VectorTable.build(
        ids=pa.array(range(60)),
        times=np.full(60, -1),
        vectors=np.ones((60, 2), np.float32),
    )
    known = VectorTable.build(
        ids=pa.array(range(100, 140)), times=None, vectors=np.ones((40, 2), np.float32)
    )
    vectors = LearnVectors(
        users=users,
        items=known,
        manifest=Manifest(kind="vectors", recipe="", config={}, inputs={}),
    )
    dataset = open_dataset(f"parquet:{market}")
    split = SplitTimes(towers_until=0, test_from=2**40)
    for streams in (False, True):
        config = RankerConfig(
            features=FeaturesConfig(sparse=("user_id",)),
            training=RankerTrainingConfig(
                batch_size=1, stream=StreamConfig(enabled=streams)
            ),
        )
        rows = train_ranker.training_impressions(
            dataset, config, split, LearnInputs(vectors), ["like"]
        )
        assert len(list(rows.batches(epoch=0))) == len(items)
        assert rows.report.missing == {
            "user_vectors": 0,
            "item_vectors": int((items == 999).sum()),
        }
