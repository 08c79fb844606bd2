"""The whole job on a small market: every app, on two ranks through torchx."""

import json
import math
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from learn_torchrec.apps import evaluate_retrieval, quickstart
from learn_torchrec.apps import main as command_line
from learn_torchrec.artifact import read_manifest
from learn_torchrec.errors import UserError
from learn_torchrec.outputs import UnwritableError

RUN = "it's $$ a ${app_id}"  # for which neither a shell nor torchx has a value
FEATURES = json.dumps(
    [
        {"column": name, "num_embeddings": rows}
        for name, rows in (("user_id", 200), ("item_id", 100))
    ]
)
SMALL = [
    "towers.model.encoder.width=16",
    "towers.model.encoder.feed_forward_dim=32",
    "towers.training.epochs=2",
    "towers.training.batch_size=16",
    "ranker.training.batch_size=128",
    "retrieval.ks=50,100",
    "ranker.features.dense=hour",
    f"ranker.features.sparse={FEATURES}",
]
COHORTS = ["all"] + [
    f"{side}_{name}"
    for side in ("user", "item")
    for name in ("cold", "long_tail", "others")
]


@pytest.fixture
def market(market):
    """The market with string ids: the other tests have integers."""
    for path in market.iterdir():
        table = pq.read_table(path)
        for name in {"user_id", "item_id"} & set(table.column_names):
            column = pa.array([f"{name[0]}-{x}" for x in table[name].to_pylist()])
            table = table.set_column(table.column_names.index(name), name, column)
        pq.write_table(table, path)
    return market


@pytest.fixture
def arguments(market, model_dir, tmp_path):
    encoder = ["content.encoder.dtype=float32", f"content.encoder.model={model_dir}"]
    settings = [f"--set={setting}" for setting in [*SMALL, *encoder]]
    data = ["--data", f"parquet:{market}"]
    return [*data, "--out", str(tmp_path / RUN), *settings]


def run_quickstart(arguments, capsys) -> str:
    """Run it on two ranks in this process, which launches others; return its output."""
    quickstart.main([*arguments, "--ranks", "2"])
    return capsys.readouterr().out


def test_the_whole_job_on_two_ranks(arguments, market, tmp_path, capsys, monkeypatch):
    """What cannot work is said first, what is done is reused, the rest is made.

    The baseline is made here, on one rank: it needs no launcher to be the same job.
    """
    out = tmp_path / RUN
    with pytest.raises(UserError) as caught:
        run_quickstart([*arguments, "--set=towers.training.batch_size=17"], capsys)
    assert "towers.training.batch_size=17: must be a multiple" in str(caught.value)
    assert "--set towers.training.batch_size=16" in str(caught.value)
    assert not out.exists()
    make_baseline(out, arguments)

    printed = run_quickstart(arguments, capsys)
    assert printed.count("done before") == 2  # the baseline's
    metrics = json.loads((out / "metrics.json").read_text())
    check_metrics(metrics)
    check_predictions(out, market)
    for text in ("Ranking: baseline against LEARN", "Recommendations for user u-"):
        assert text in printed
        assert text in (out / "report.html").read_text()
    made = {step.name for step in quickstart.STEPS if "baseline" not in step.name}
    assert set(metrics["seconds"]) == made | {"evaluation"}
    for step in quickstart.STEPS:
        assert read_manifest(out / step.name, step.stage.makes).files
    leftovers = [path.name for path in out.iterdir() if path.name.startswith(".")]
    assert leftovers == []

    printed = run_quickstart(arguments, capsys)
    assert printed.count("done before") == len(quickstart.STEPS)
    again = json.loads((out / "metrics.json").read_text())
    assert again["ranking"] == metrics["ranking"]
    check_other_number_of_ranks(out, arguments, tmp_path)

    # An evaluation is left out for what the data are, not for what a disk refuses.
    refused = UnwritableError("--out retrieval.json: cannot be written")
    monkeypatch.setattr(evaluate_retrieval, "main", Mock(side_effect=refused))
    with pytest.raises(UnwritableError):
        run_quickstart(arguments, capsys)


def make_baseline(out: Path, arguments: list[str]) -> None:
    """Make the baseline's artefacts as the quickstart would, on one rank."""
    data, settings = arguments[:2], [a for a in arguments if a.startswith("--set=")]
    ranker, predictions = out / "ranker_baseline", out / "predictions_baseline"
    command_line.main(["train-ranker", *data, "--out", str(ranker), *settings])
    given = ["--ranker", str(ranker), "--out", str(predictions)]
    command_line.main(["predict", *data, *given, *settings])


def check_metrics(metrics: dict) -> None:
    for name in ("baseline", "learn"):
        assert list(metrics["ranking"][name]) == COHORTS
        for values in metrics["ranking"][name].values():
            assert {"auc", "uauc", "wuauc", "users_kept", "rows"} <= set(values)
        assert 0.4 < metrics["ranking"][name]["all"]["auc"] < 1
    for row in ("learn", "popularity", "content_mean", "co_occurrence"):
        for name in ("h@50", "r@50", "h@100", "r@100"):
            assert 0 <= metrics["retrieval"][row][name] <= 1
    difference = metrics["ranking_difference"]["learn-baseline"]["all"]["uauc"]
    ours, theirs = (
        metrics["ranking"][name]["all"]["uauc"] for name in ("learn", "baseline")
    )
    assert math.isclose(difference["difference"], ours - theirs, abs_tol=1e-9)


def check_predictions(out: Path, market: Path) -> None:
    """Every test impression is scored once, in the order of the file."""
    predictions = pq.read_table(out / "predictions_learn" / "predictions.parquet")
    impressions = pq.read_table(market / "impressions.parquet")
    times = pq.read_table(market / "interactions.parquet")["timestamp"].to_numpy()
    test_from = np.sort(times)[int(0.8 * (len(times) - 1))]  # the derived 80 %
    test = impressions.filter(pc.greater_equal(impressions["timestamp"], test_from))
    assert predictions.num_rows == test.num_rows > 500
    for name in ("user_id", "item_id", "timestamp"):
        assert predictions[name].to_pylist() == test[name].to_pylist()
    assert predictions["label"].to_pylist() == test["label"].to_pylist()
    assert pc.all(pc.is_finite(predictions["score"])).as_py()
    check_activity(predictions, pq.read_table(market / "interactions.parquet"))


def check_activity(predictions: pa.Table, log: pa.Table) -> None:
    """The cohorts' counts know only the days before the impression's."""
    users, items = log["user_id"].to_pylist(), log["item_id"].to_pylist()
    days = log["timestamp"].to_numpy() // 86_400
    likes = np.array(log["action"].to_pylist()) == "like"
    for row in predictions.slice(0, 600).to_pylist()[::97]:
        earlier = days < row["timestamp"] // 86_400
        of_user = np.array(users) == row["user_id"]
        of_item = np.array(items) == row["item_id"]
        assert row["user_activity"] == (earlier & of_user).sum()
        assert row["item_activity"] == (earlier & of_item & likes).sum()


def check_other_number_of_ranks(out: Path, arguments: list[str], tmp_path) -> None:
    """One rank scores like two with the ranker that two ranks trained."""
    again = tmp_path / "one_rank"
    common = [a for a in arguments if a.startswith("--set=")]
    command_line.main(
        [
            "predict",
            *arguments[:2],
            *("--ranker", str(out / "ranker_learn")),
            *("--vectors", str(out / "vectors"), "--out", str(again), *common),
        ]
    )
    one, two = (
        pq.read_table(path / "predictions.parquet")["score"]
        for path in (again, out / "predictions_learn")
    )
    assert pc.max(pc.abs(pc.subtract(one, two))).as_py() < 1e-6
