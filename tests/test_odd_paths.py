"""Paths with signs that SQL, globs, URIs, shells or terminals interpret."""

import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from learn_torchrec.apps import main as command_line
from learn_torchrec.artifact import verify
from learn_torchrec.datasets.loading.location import Location
from learn_torchrec.datasets.preparation.prepared import KIND
from learn_torchrec.errors import UserError

ODD = {
    "quotes": "it's \"a\" 'b'); DROP TABLE log; --",
    "globs": "x*y[a]{b}",
    "percent": "100% %41 %%",
    "shell": "$$ ${app_id} `id` ;&|<>",
    "control": " a\nerror: b\t\x1b[31m ",
    "other scripts": "日本 \u202e é e\u0301",
}
NOT_FOR_DUCKDB = ["a\\b\\", "what?x=1"]


def run(*arguments: object) -> None:
    command_line.main([str(one) for one in arguments])


def fails(capfd, *arguments: object) -> str:
    with pytest.raises(SystemExit) as ended:
        run(*arguments)
    assert ended.value.code == 2
    lines = capfd.readouterr().err.splitlines()
    assert lines[-1].startswith("error: ")
    assert sum(line.startswith("error: ") for line in lines) == 1
    return lines[-1]


@pytest.fixture
def odd(market: Path, request) -> Path:
    """A folder with an odd name that holds the market."""
    folder = market.parent / request.param
    folder.mkdir()
    return market.rename(folder / "market")


@pytest.mark.parametrize("odd", ODD.values(), ids=list(ODD), indirect=True)
def test_stages_read_and_write_under_odd_names(odd: Path) -> None:
    folder, data = odd.parent, ["--data", f"parquet:{odd}"]
    run("prepare", *data, "--out", folder / "prepared")
    verify(folder / "prepared", KIND)
    run("data", "impressions", *data, "--out", folder / "drawn")
    ab = folder / "ab.json"
    small = ["--set", "replay.users=500", "ab.resamples=10"]
    outcomes = folder / "outcomes.parquet"
    run("evaluate-ab", "--simulate", "--outcomes", outcomes, "--out", ab, *small)
    rows = pq.read_table(odd / "impressions.parquet")
    pq.write_table(rows.append_column("score", rows["hour"]), folder / "scores.parquet")
    files = [f"{folder.name}={folder / 'scores.parquet'}", "--out", folder / "x.json"]
    run("evaluate-auc", "--predictions", *files)


@pytest.mark.parametrize("odd", NOT_FOR_DUCKDB, indirect=True)
def test_what_duckdb_mistakes_is_read_but_not_written(odd, tmp_path, capfd):
    data = ["--data", f"parquet:{odd}"]
    run("prepare", *data, "--out", tmp_path / "prepared")
    out = odd.parent / "prepared"
    line = fails(capfd, "prepare", *data, "--out", out)
    assert line == (
        f"error: --out {odd.parent}: DuckDB cannot write to a path with a question "
        "mark or a backslash; choose another --out, or use --engine spark"
    )
    assert not out.exists()
    run("data", "impressions", *data, "--out", odd.parent / "drawn")


@pytest.mark.parametrize("name", ["it's=a b", "x*y?=1", "k=%27); --", 'q"=\\'])
def test_folders_of_partitions_may_be_called_anything(market, tmp_path, name):
    file = market / "interactions.parquet"
    table = pq.read_table(file)
    file.unlink()
    (file / name).mkdir(parents=True)
    pq.write_table(table, file / name / "part.parquet")
    run("prepare", "--data", f"parquet:{market}", "--out", tmp_path / "x")
    assert (tmp_path / "x" / "manifest.json").exists()


def test_a_name_that_is_no_utf_8_is_one_line(market, tmp_path, capfd):
    data, bad = ["--data", f"parquet:{market}"], "caf\udce9"
    line = fails(capfd, "prepare", *data, "--out", tmp_path / bad)
    assert line.endswith("caf\\udce9': is not UTF-8; rename the file or folder")
    (tmp_path / bad).mkdir()
    for option in (["--data", f"parquet:{tmp_path / bad}"], ["--data", f"csv:{bad}"]):
        assert "caf\\udce9" in fails(capfd, "prepare", *option, "--out", tmp_path / "x")
    folder = market / "interactions.parquet.parts"
    folder.mkdir()
    shutil.copy(market / "interactions.parquet", folder / f"{bad}.parquet")
    (market / "interactions.parquet").unlink()
    folder.rename(market / "interactions.parquet")
    line = fails(capfd, "prepare", *data, "--out", tmp_path / "x")
    assert "interactions.parquet: the name of a file in it is not UTF-8" in line
    with pytest.raises(UserError, match="is not UTF-8; rename"):
        Location.of(bad)
