"""What `predict` reads: the impressions of an interval, with labels or without."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from learn_torchrec.apps import main as command_line
from learn_torchrec.apps import predict
from learn_torchrec.apps.train_ranker import training_impressions
from learn_torchrec.datasets import open_dataset
from learn_torchrec.datasets.loading.in_memory import TableRows
from learn_torchrec.datasets.loading.row_groups import RowGroups
from learn_torchrec.datasets.loading.time_range import Interval
from learn_torchrec.datasets.split import SplitTimes
from learn_torchrec.errors import UserError
from learn_torchrec.ranker.config import (
    RankerConfig,
    RankerTrainingConfig,
    StreamConfig,
)
from learn_torchrec.ranker.features import FeaturesConfig


def impressions(count):
    return pa.table(
        {
            "user_id": pa.array(np.arange(count), pa.int32()),
            "item_id": np.arange(count),
            "timestamp": np.arange(count) % 7,
            "label": np.zeros(count, np.int64),
            "row": np.arange(count, dtype=np.float32),
        }
    )


def test_memory_and_parquet_are_the_same_rows(tmp_path):
    interval = Interval("timestamp", 3, 5)
    pq.write_table(impressions(30), tmp_path / "impressions")
    there = RowGroups(tmp_path / "impressions", interval=interval)
    here = TableRows(impressions(30), interval, "memory")

    assert here.earliest == there.earliest == 3
    assert here.sizes.tolist() == there.sizes.tolist()
    for skip in (0, 5):
        one, other = (pa.concat_tables(x.pieces(0, skip)) for x in (here, there))
        assert one.equals(other)
    assert here.empty().schema == there.empty().schema


def test_an_empty_interval_has_no_rows():
    rows = TableRows(impressions(9), Interval("timestamp", 50, 60), "memory")

    assert (rows.num_rows, len(rows), rows.earliest) == (0, 0, None)


def rewrite(path, change):
    pq.write_table(change(pq.read_table(path)), path)


def with_column(name, values):
    def change(table):
        table = table.drop_columns([name] if name in table.column_names else [])
        return table.append_column(name, values)

    return change


@pytest.fixture
def run(market, tmp_path):
    """Runs a stage on the market; returns its artefact."""

    def command(name, out, *options):
        settings = ("batch_size=64", "epochs=1")
        command_line.main(
            [
                *(name, "--data", f"parquet:{market}", "--out", str(tmp_path / out)),
                *(f"--set=ranker.training.{setting}" for setting in settings),
                *("--set", "ranker.features.dense=hour"),
                *("ranker.features.sparse=user_id,item_id", *options),
            ]
        )
        return tmp_path / out

    return command


def test_rows_are_scored_with_labels_without_and_after_the_log(
    run, market, tmp_path, capsys
):
    ranker = run("train-ranker", "ranker")
    options = ["--ranker", str(ranker)]
    path = market / "impressions.parquet"
    whole = pq.read_table(path)
    expected = read(run("predict", "labelled", *options))

    rewrite(path, with_column("label", pa.nulls(3000, pa.float64())))
    assert read(run("predict", "all-null", *options))["score"] == expected["score"]
    some = pa.array(whole["label"].to_numpy(), mask=np.arange(3000) % 3 == 0)
    rewrite(path, with_column("label", some))
    partly = read(run("predict", "partly", *options))
    assert partly["score"] == expected["score"]
    rows = [whole["timestamp"].to_pylist().index(t) for t in expected["timestamp"]]
    assert partly["label"] == pc.take(some, rows).to_pylist()

    command_line.main(
        [
            *("evaluate-auc", "--predictions", f"x={tmp_path / 'partly'}"),
            *("--out", str(tmp_path / "auc.json")),
        ]
    )
    known = sum(label is not None for label in partly["label"])
    body = json.loads((tmp_path / "auc.json").read_text())["ranking"]["x"]
    assert body["all"]["rows"] == known
    nulls = len(partly["label"]) - known
    assert (
        f"{nulls} of {len(rows)} rows have no label; left out"
        in capsys.readouterr().err
    )

    # New impressions: no label column, and all of them after the log's last event.
    later = pc.add(whole["timestamp"], 90 * 86_400)
    rewrite(path, lambda table: table.drop_columns(["label"]))
    rewrite(path, with_column("timestamp", later))
    new = read(run("predict", "new", *options))
    assert new["timestamp"] == later.to_pylist()
    assert "label" not in new
    assert new["score"][-len(rows) :] == pytest.approx(expected["score"], abs=1e-6)
    date = "--set=split.test_from=1970-05-25"  # after the log, within the new rows
    some = read(run("predict", "some", *options, date))
    assert some["timestamp"] == [t for t in new["timestamp"] if t >= 144 * 86_400]
    with pytest.raises(SystemExit):
        command_line.main(
            [
                *("evaluate-auc", "--predictions", f"x={tmp_path / 'new'}"),
                *("--out", str(tmp_path / "auc.json")),
            ]
        )
    message = "new/predictions.parquet: 3000 of 3000 rows have no label (the column is"
    assert message in capsys.readouterr().err


def read(directory):
    return pq.read_table(directory / "predictions.parquet").to_pydict()


LABELS = {
    "all 0": (lambda n: np.zeros(n, np.int64), None, r"'label' is 0 in all 3000 rows"),
    "all 1": (lambda n: np.ones(n, bool), None, r"'label' is 1 in all 3000 rows"),
    "weights": (None, lambda n: np.zeros(n), "all 3000 rows to learn from have weight"),
    "one class where it counts": (
        lambda n: np.arange(n) % 2,
        lambda n: (np.arange(n) + 1) % 2,
        r"'label' is 0 in all 1500 rows",
    ),
}


@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize("case", LABELS)
def test_labels_that_teach_nothing_are_refused(market, one_rank, case, streams):
    labels, weights, message = LABELS[case]
    path = market / "impressions.parquet"
    for name, values in (("label", labels), ("weight", weights)):
        if values is not None:
            rewrite(path, with_column(name, pa.array(values(3000))))
    with pytest.raises(UserError, match=message):
        train_on(market, streams)


@pytest.mark.parametrize("streams", [False, True])
def test_rows_without_a_label_teach_nothing(market, one_rank, streams, caplog):
    path = market / "impressions.parquet"
    has_label = np.arange(3000) % 4 == 0  # most have none: no mistake
    labels = pq.read_table(path)["label"].to_numpy()
    rewrite(path, with_column("label", pa.array(labels, mask=~has_label)))
    impressions = train_on(market, streams)
    assert len(impressions) == 750
    seen = [b.labels["label"].tolist() for b in impressions.batches(epoch=0)]
    assert sum(map(sum, seen)) == labels[has_label].sum()
    said = f"{path}: 2250 of 3000 rows have no label, the first is row 1"
    assert caplog.messages.count(f"{said}; left out") == 1
    with pytest.raises(UserError, match=r"2250 of 3000 rows .*--strict"):
        train_on(market, streams, strict=True)
    rewrite(path, lambda table: table.drop_columns(["label"]))
    with pytest.raises(UserError, match="column 'label' is missing; it has: user_id"):
        train_on(market, streams)


def train_on(market, streams, strict=False):
    stream = StreamConfig(enabled=streams)
    config = RankerConfig(
        features=FeaturesConfig(sparse=("user_id",), dense=("hour",)),
        training=RankerTrainingConfig(batch_size=1, stream=stream),
    )
    times = SplitTimes(towers_until=0, test_from=2**40)
    dataset = open_dataset(f"parquet:{market}", strict)
    return training_impressions(dataset, config, times, None, ("like",))


def test_columns_named_as_what_is_added_get_a_free_name():
    names = ["score", "input_score", "input_input_score", "other"]
    table = pa.table({name: [number] for number, name in enumerate(names)})
    renamed = predict._renamed(table, {"score"})
    assert renamed.column_names[1:] == names[1:]
    assert renamed.column_names[0] == "input_input_input_score"
