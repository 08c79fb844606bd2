"""The plan: every problem at once before any work, gaps said, commands that fix."""

import shlex

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from learn_torchrec import config
from learn_torchrec.apps import quickstart
from learn_torchrec.apps.planning import preflight
from learn_torchrec.apps.planning.estimates import Estimate
from learn_torchrec.datasets import open_dataset
from learn_torchrec.derived.run import derive
from learn_torchrec.errors import UserError
from learn_torchrec.locks import locked


@pytest.fixture
def arguments(market, model_dir, tmp_path):
    out = ["--out", str(tmp_path / "run"), "--ranks", "2"]
    model = [f"--set=content.encoder.model={model_dir}"]
    return ["--data", f"parquet:{market}", *out, *model]


def change(path, **columns):
    table = pq.read_table(path)
    for name, values in columns.items():
        table = table.set_column(table.column_names.index(name), name, pa.array(values))
    pq.write_table(table, path)


def checked(market, *settings, ranks=2):
    dataset = open_dataset(f"parquet:{market}")
    run = config.apply_overrides(derive(dataset).run, settings)
    return preflight.check(dataset, run, ranks)


def test_good_data_have_no_problem(market):
    found = checked(market)
    assert found.problems == []
    assert found.left_out == {}
    assert found.counts["items"] == 40
    assert found.counts["training_rows"] + found.counts["test_rows"] < 3000


def test_work_is_counted_once(market):
    """One text for items that share it, one vector for a user's events of a second."""
    items = pq.read_table(market / "items.parquet").num_rows
    change(market / "items.parquet", title=["Soap"] * items)
    log = pq.read_table(market / "interactions.parquet").to_pydict()
    days = [time // 86_400 * 86_400 for time in log["timestamp"]]
    change(market / "interactions.parquet", timestamp=days, action=["buy"] * len(days))

    found = checked(market, "content.prompt.template={title}")

    assert (found.counts["items"], found.counts["texts"]) == (items, 1)
    assert found.counts["text_letters"] == len("Soap")
    assert found.counts["snapshots"] == len(set(zip(log["user_id"], days, strict=True)))


def test_all_problems_are_listed_with_the_command_that_fixes(arguments, capsys):
    wrong = [
        "towers.training.batch_size=9999",
        "ranker.training.batch_size=129",
        "ranker.features.dense=price",
        "content.encoder.model=/absent/model",
    ]
    with pytest.raises(UserError) as caught:
        quickstart.main([*arguments, "--set", *wrong])
    first, *listed, command = str(caught.value).splitlines()
    assert first == "4 problems, nothing was started:"
    assert "content: model /absent/model" in listed[0]
    assert "towers: towers.training.batch_size=9999: must be a multiple" in listed[1]
    assert "ranker: ranker.training.batch_size=129" in listed[2]
    assert "ranker: ranker.features.dense: no column 'price'" in listed[3]
    # With the fixes only the mistakes that no setting of ours mends are left.
    words = shlex.split(command.removeprefix("then: "))
    assert words[:2] == ["learn-torchrec", "quickstart"]
    with pytest.raises(UserError) as caught:
        quickstart.main(words[2:])
    assert "2 problems" in str(caught.value)
    assert "batch_size" not in str(caught.value)
    assert "running" not in capsys.readouterr().out


def test_an_objective_that_does_not_fit_the_log_is_one_problem(arguments):
    wrong = ["split.min_events=3", "towers.sampling.min_history=70"]
    with pytest.raises(UserError, match="min_history=70: a training user has only"):
        quickstart.main([*arguments, "--dry-run", "--set", *wrong])


def test_a_dry_run_prints_and_makes_nothing(arguments, capsys, tmp_path):
    quickstart.main([*arguments, "--dry-run"])
    printed = capsys.readouterr().out
    for word in ("split", "actions=like", "batch_size=", "content", "user vectors"):
        assert word in printed
    assert not (tmp_path / "run").exists()


def test_without_impressions_the_ranker_is_left_out(market):
    (market / "impressions.parquet").unlink()
    found = checked(market)
    assert found.problems == []
    assert "no impressions" in found.left_out["ranker"]
    for command in ("train-ranker", "predict", preflight.RANKING):
        assert preflight.is_left_out(command, found.left_out)
    for command in ("train-towers", "export-vectors", preflight.RETRIEVAL):
        assert not preflight.is_left_out(command, found.left_out)


def test_users_seen_once_leave_out_retrieval_alone(market):
    """Nobody who arrives after the towers' moment has events enough for a test."""
    path = market / "interactions.parquet"
    table = pq.read_table(path)
    old = table.filter(pa.array(table["user_id"].to_numpy() < 45))
    pq.write_table(old, path)
    found = checked(market)
    assert found.problems == []
    assert list(found.left_out) == [preflight.RETRIEVAL]


@pytest.mark.parametrize("part", ["training", "test"])
def test_labels_of_one_class(market, part):
    path = market / "impressions.parquet"
    table = pq.read_table(path)
    times, labels = table["timestamp"].to_numpy(), table["label"].to_numpy().copy()
    moment = np.quantile(times, 0.8, method="lower")
    is_part = times >= moment if part == "test" else times < moment
    labels[is_part] = 0
    change(path, label=labels)
    found = checked(market)
    if part == "training":
        assert "column 'label' is 0 in all" in found.problems[0].message
    else:
        assert found.problems == []
        assert "metrics need 0 and 1" in found.left_out[preflight.RANKING]


def test_a_bad_row_is_found_before_any_work(market):
    path = market / "interactions.parquet"
    table = pq.read_table(path)
    change(path, action=[None] * table.num_rows)
    (problem,) = preflight.check_tables(open_dataset(f"parquet:{market}"))
    assert "interactions.parquet: 3000 of 3000 rows have no action" in problem.message


def test_most_events_are_of_items_without_a_text(market):
    table = pq.read_table(market / "items.parquet")
    bare = table.select(["item_id"])
    titles = [f"thing {n}" if n < 4 else " " for n in range(table.num_rows)]
    path = market / "items.parquet"
    pq.write_table(bare.append_column("title", pa.array(titles)), path)
    (problem,) = checked(market).problems
    assert (problem.step, "without a content vector" in problem.message) == (
        "towers",
        True,
    )
    titles = [""] * table.num_rows
    pq.write_table(bare.append_column("title", pa.array(titles)), path)
    assert "40 of 40 items have no text" in checked(market).problems[0].message


@pytest.mark.parametrize("row", [2_999, 1_500])  # of the test, of training
def test_a_bad_number_deep_in_the_impressions(market, row):
    path = market / "impressions.parquet"
    pq.write_table(pa.concat_tables([pq.read_table(path)] * 3), path)
    hours = pq.read_table(path)["hour"].to_pylist()
    hours[6_000 + row] = float("inf")
    change(path, hour=hours)
    found = checked(market, "ranker.features.dense=hour")
    assert ["column 'hour' is inf" in one.message for one in found.problems] == [True]


def test_a_label_that_is_missing_is_one_problem(market):
    path = market / "impressions.parquet"
    pq.write_table(pq.read_table(path).drop_columns(["label"]), path)
    (problem,) = checked(market).problems
    assert "column 'label' is missing" in problem.message


@pytest.mark.parametrize("holdout", ["time", "leave_one_out"])
def test_towers_that_learn_to_the_end_leave_no_ranker(market, holdout):
    setting = f"split.holdout={holdout}"
    found = checked(market, setting)
    assert found.problems == []
    assert list(found.left_out) == ["ranker"]
    derived = derive(open_dataset(f"parquet:{market}"), [setting])
    assert derived.run.split.holdout == holdout


def test_a_model_on_a_hub_out_of_reach(market, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    (problem,) = checked(market, "content.encoder.model=nobody/no-model").problems
    assert "neither on this machine nor on the model hub" in problem.message


def needing(memory=0.0, disk=0.0):
    return [Estimate("rankers", "rows", 1.0, memory, disk)]


def test_memory_disk_and_place(tmp_path):
    found = preflight.Plan()
    preflight.check_machine(found, tmp_path / "a" / "b", needing(1e18, 1e18))
    memory, disk = found.problems
    assert "needs about 1000000000.0 GB of memory" in memory.message
    assert memory.settings == ("ranker.training.stream.enabled=true",)
    assert "are needed; choose another --out" in disk.message
    found = preflight.Plan()
    (tmp_path / "file").write_text("")
    preflight.check_machine(found, tmp_path / "file" / "b", needing())
    assert "is a file; choose another --out" in found.problems[0].message


def test_a_second_run_on_the_same_place_touches_nothing(arguments, tmp_path):
    with locked(tmp_path / "run"), pytest.raises(UserError, match="another run"):
        quickstart.main(arguments)
    assert list((tmp_path / "run").iterdir()) == []
