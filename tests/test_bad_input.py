"""A user's mistake ends in one line and exit code 2, and leaves nothing behind."""

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from learn_torchrec.apps import main as command_line
from learn_torchrec.evaluation.report.run import _log_lines


def change(path: Path, name: str, row: int, value: object) -> None:
    table = pq.read_table(path)
    values = table[name].to_pylist()
    values[row] = value
    index = table.column_names.index(name)
    kind = table.schema.field(name).type
    column = pa.array(values, None if isinstance(value, list) else kind)
    pq.write_table(table.set_column(index, name, column), path)


def drop(path: Path, name: str) -> None:
    pq.write_table(pq.read_table(path).drop_columns([name]), path)


def fails(capsys, *arguments: object) -> str:
    with pytest.raises(SystemExit) as caught:
        command_line.main([str(argument) for argument in arguments])
    assert caught.value.code == 2
    lines = [
        line
        for line in capsys.readouterr().err.splitlines()
        if line.startswith("error: ")
    ]
    assert len(lines) == 1, lines
    return lines[0]


@pytest.fixture
def out(tmp_path):
    (tmp_path / "results").mkdir()
    path = tmp_path / "results" / "out"
    yield path
    left = [p.name for p in path.parent.iterdir() if p.name != "logs"]
    assert left == [], "something half written was left behind"


def test_content(capsys, market, out, tmp_path):
    arguments = ("encode-content", "--data", f"parquet:{market}", "--out", out)
    line = fails(capsys, *arguments, "--set=content.encoder.model=/absent/model")
    assert "/absent/model" in line
    line = fails(capsys, *arguments, "--set=content.encoder.layer=3")
    assert "unknown name 'layer'; known here: model, revision, pooling, layers" in line
    items = market / "items.parquet"
    change(items, "title", 4, None)
    change(items, "category", 4, " ")
    line = fails(capsys, *arguments, "--strict")
    assert "1 of 40 items have no text and get no content vector: 104; correct" in line
    drop(items, "item_id")
    assert "items.parquet: column 'item_id'" in fails(capsys, *arguments)
    line = fails(
        capsys, "encode-content", "--data", f"parquet:{tmp_path / 'no'}", "--out", out
    )
    assert "no such directory" in line


def test_towers(capsys, market, store, out):
    arguments = ("train-towers", "--data", f"parquet:{market}", "--out", out)
    line = fails(capsys, *arguments, "--content", market)
    assert "no content artefact here" in line
    arguments = (*arguments, "--content", store.directory)
    line = fails(capsys, *arguments, "--set=split.actions=buy")
    assert "no interaction has such an action; name some of " in line
    line = fails(capsys, *arguments, "--set=split.min_events=1000")
    assert "no train user has split.min_events=1000 events" in line
    line = fails(capsys, *arguments, "--set=towers.sampling.min_history=500")
    assert "towers.sampling.min_history=500: a training user has" in line
    line = fails(capsys, *arguments, "--set=towers.training.batch_size=5000")
    assert "batch_size=5000 is more than the" in line
    interactions = market / "interactions.parquet"
    change(interactions, "user_id", 3, None)
    line = fails(capsys, *arguments, "--strict")
    assert "1 of 3000 rows have no user_id, the first is row 3; correct" in line
    drop(interactions, "user_id")
    assert "column 'user_id' (int64 or string) is missing" in fails(capsys, *arguments)


def test_an_interaction_with_an_unknown_item(capsys, market, store, out):
    change(market / "interactions.parquet", "item_id", 9, 7)
    line = fails(
        capsys,
        *("train-towers", "--data", f"parquet:{market}"),
        *("--content", store.directory, "--out", out, "--strict"),
    )
    assert "1 of 3000 events are of items that" in line
    assert "items.parquet lacks: 7; correct them" in line


def test_ranker(capsys, market, out):
    arguments = ("train-ranker", "--data", f"parquet:{market}", "--out", out)
    line = fails(capsys, *arguments, "--set=ranker.features.sparse=age")
    assert "ranker.features.sparse: no column 'age'; the impressions have" in line
    line = fails(capsys, *arguments, "--set=split.test_from=tomorrow")
    assert "split.test_from=tomorrow: write a share such as 80%" in line
    path = market / "impressions.parquet"
    pq.write_table(pq.read_table(path).slice(0, 0), path)
    assert "impressions.parquet: has no rows" in fails(capsys, *arguments)


def test_a_column_with_the_name_of_row_numbers(capsys, market, out):
    path = market / "impressions.parquet"
    table = pq.read_table(path)
    pq.write_table(table.append_column("_row_number", table["label"]), path)
    line = fails(capsys, "train-ranker", "--data", f"parquet:{market}", "--out", out)
    assert line.endswith(
        "impressions.parquet: has a column '_row_number', a name that reading needs "
        "for itself; rename or drop it"
    )


@pytest.mark.parametrize(
    "command",
    [
        ["prepare", "--data", "parquet:.", "--out", "x", "--config", "pipe"],
        ["report", "--run", ".", "--out", "x.html"],
        ["embed-items", "--towers", ".", "--content", ".", "--items", "pipe.csv"],
        ["evaluate-auc", "--predictions", "a=pipe", "--out", "x.json"],
        ["evaluate-ab", "--outcomes", "pipe.csv", "--out", "x.json"],
    ],
)
def test_a_pipe_is_not_waited_for(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("pipe", "pipe.csv", "metrics.json"):
        os.mkfifo(name)
    (tmp_path / "items.parquet").touch()
    with pytest.raises(SystemExit) as ended:
        command_line.main(command)
    assert ended.value.code == 2
    assert "is no plain file; copy what it gives into one" in capsys.readouterr().err


def test_a_log_that_is_no_text_is_no_reason_to_have_no_report(tmp_path):
    (tmp_path / "towers").mkdir()
    (tmp_path / "towers" / "log.jsonl").write_bytes(b'\xff\xfe\n{"step": 1}\n')
    assert [*_log_lines(tmp_path, "towers")] == [{"step": 1}]
