"""Every command refuses an --out that would destroy something, before it works."""

import json
import os
import shutil
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from learn_torchrec.apps import main
from learn_torchrec.publish import write_artifact

ROWS = {"user_id": [1, 1], "item_id": [1, 2], "timestamp": [5, 6], "label": [0, 1]}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a data set, predictions, outcomes, a run and an artefact."""
    monkeypatch.chdir(tmp_path)
    data = tmp_path / "data"
    data.mkdir()
    write(data / "items.parquet", item_id=[1, 2], title=["a", "b"])
    events = {**ROWS, "action": ["buy", "buy"]}
    write(data / "interactions.parquet", **events)
    write(data / "impressions.parquet", **ROWS)
    write(tmp_path / "predictions.parquet", **ROWS, score=[0.1, 0.9])
    (tmp_path / "parts").mkdir()
    shutil.copy("predictions.parquet", "parts/part-0.parquet")
    (tmp_path / "outcomes.csv").write_text("user_id,arm,day,impressions\n")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "ranking.json").write_text('{"ranking": {}}')
    (tmp_path / "run" / "metrics.json").write_text("{}")
    with write_artifact(tmp_path / "made", kind="towers", config={}, inputs={}):
        pass
    return tmp_path


def write(path, **columns):
    pq.write_table(pa.table(columns), path)


COMMANDS = {
    "evaluate-auc": ["--predictions", "a=predictions.parquet"],
    "evaluate-retrieval": [
        *("--data", "parquet:data", "--content", "made", "--towers", "made")
    ],
    "evaluate-ab": ["--outcomes", "outcomes.csv"],
    "recommend": ["--data", "parquet:data", "--vectors", "made"],
    "embed-items": [
        *("--items", "data/items.parquet", "--towers", "made", "--content", "made")
    ],
    "report": ["--run", "run"],
    "study": ["--data", "parquet:data", "--content", "made"],
    "study-retrieval": ["--data", "parquet:data", "--content", "made"],
    "quickstart": ["--data", "parquet:data"],
    "prepare": ["--data", "parquet:data"],
}


def refused(capsys, command, out, *more):
    with pytest.raises(SystemExit) as ended:
        main.main([command, *COMMANDS[command], *more, "--out", str(out)])
    error = capsys.readouterr().err
    lines = [line for line in error.splitlines() if line.startswith("error: ")]
    assert (ended.value.code, len(lines)) == (2, 1), error
    return lines[0]


def state(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize(
    ("command", "out"),
    [
        ("evaluate-auc", "predictions.parquet"),
        ("evaluate-retrieval", "data/items.parquet"),
        ("evaluate-retrieval", "data/impressions.parquet"),
        ("evaluate-ab", "outcomes.csv"),
        ("recommend", "data/interactions.parquet"),
        ("recommend", "made/manifest.json"),
        ("embed-items", "data/items.parquet"),
    ],
)
@pytest.mark.parametrize("link", [None, os.symlink, os.link])
def test_an_input_is_no_output(command, out, link, folder, capsys):
    if link is not None:
        link(folder / out, folder / "other")
        out = "other"
    before = state(folder)
    said = refused(capsys, command, out)
    assert " an input (" in said or "lies inside the artefact" in said
    assert state(folder) == before


def test_a_folder_that_is_not_there_hides_nothing(folder, capsys):
    before = state(folder)
    for command in COMMANDS:
        out = "absent/../data/items.parquet"
        if command == "report":
            out = "absent/../run/ranking.html"
        refused(capsys, command, out)
    assert state(folder) == before
    assert not (folder / "absent").exists()


def test_the_root_is_no_output(folder, capsys):
    for command in COMMANDS:
        said = refused(capsys, command, "/")
        assert "/" in said


def test_a_simulation_replaces_no_file(folder, capsys):
    before = state(folder)
    said = refused(
        *(capsys, "evaluate-ab", "ab.json", "--simulate"),
        *("--outcomes", "absent/../outcomes.csv"),
    )
    assert "outcomes.csv exists" in said
    assert state(folder) == before


@pytest.mark.parametrize("ranks", ["0", "9" * 20])
def test_a_refresh_has_ranks_that_a_machine_can_hold(ranks, folder, capsys):
    with pytest.raises(SystemExit) as ended:
        main.main(
            ["refresh", "--data", "parquet:data", "--run", "daily", "--ranks", ranks]
        )
    assert ended.value.code == 2
    assert f"--ranks {ranks}: use from 1 to 1024" in capsys.readouterr().err


@pytest.mark.parametrize("place", ["made", "made/daily", "absent/../made"])
def test_a_refresh_writes_into_no_artefact(place, folder, capsys):
    before = state(folder)
    with pytest.raises(SystemExit) as ended:
        main.main(["refresh", "--data", "parquet:data", "--run", place])
    assert ended.value.code == 2
    assert "choose another --run" in capsys.readouterr().err
    assert state(folder) == before


@pytest.mark.parametrize("out", ["run/ranking.html", "run/metrics.htm"])
def test_a_report_does_not_replace_what_it_is_made_from(out, folder, capsys):
    before = state(folder)
    assert " an input (" in refused(capsys, "report", out)
    assert state(folder) == before


@pytest.mark.parametrize("command", COMMANDS)
def test_nothing_is_written_into_an_artefact(command, folder, capsys):
    before = state(folder)
    said = refused(capsys, command, "made/deep/out.html")
    assert "lies inside the artefact" in said
    assert state(folder) == before


@pytest.mark.parametrize(
    "command", ["evaluate-auc", "evaluate-ab", "report", "recommend", "embed-items"]
)
@pytest.mark.parametrize("name", ["thesis.html", "thesis.json"])
def test_somebody_else_s_file_is_not_replaced(command, name, folder, capsys):
    if command == "report" and name != "thesis.html":
        name = "thesis.htm"
    (folder / name).write_text("years of work")
    said = refused(capsys, command, name)
    assert f"{name}: exists and is not a" in said
    assert (folder / name).read_text() == "years of work"


def test_a_readme_beside_a_new_report_is_not_replaced(folder, capsys):
    (folder / "README.md").write_text("years of work")
    assert "README.md: exists and is not a" in refused(capsys, "report", "README.html")
    assert not (folder / "README.html").exists()


@pytest.mark.parametrize("command", ["quickstart", "study", "study-retrieval"])
def test_a_folder_keeps_what_is_not_of_a_run(command, folder, capsys):
    (folder / "mine").mkdir()
    for name in ("config.json", "study.json"):
        (folder / "mine" / name).write_text('{"my": "settings"}')
    before = state(folder)
    assert "exists and is not" in refused(capsys, command, "mine")
    assert state(folder) == before


def test_own_results_are_replaced(folder):
    out = folder / "out.json"
    out.touch()  # as `mktemp` leaves it
    options = ["--predictions", "a=predictions.parquet", "--out", str(out)]
    for _ in range(2):
        main.main(["evaluate-auc", *options])
        assert "ranking" in json.loads(out.read_text())


def test_an_output_behind_a_link_is_written_where_it_leads(folder):
    (folder / "real").mkdir()
    (folder / "out.json").symlink_to("real/out.json")
    options = ["--predictions", "a=predictions.parquet", "--out", "out.json"]
    main.main(["evaluate-auc", *options])
    assert (folder / "out.json").is_symlink()
    assert "ranking" in json.loads((folder / "real" / "out.json").read_text())


@pytest.mark.parametrize("command", sorted({*COMMANDS} - {"recommend"}))
def test_a_command_that_cannot_share_its_work_refuses_ranks(
    command, folder, capsys, monkeypatch
):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "start it alone, not on 2 ranks" in refused(capsys, command, "new.html")


WORK = """
import sys; from pathlib import Path; from learn_torchrec.apps.common import program
def main(argv):
    for _ in range(100_000):
        print("still here")
    Path(sys.argv[1]).write_text("done")
program.run(main, [])
"""


def test_work_goes_on_when_nobody_reads_its_progress(tmp_path):
    code = [sys.executable, "-c", WORK, str(tmp_path / "result")]
    run = subprocess.Popen(code, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    run.stdout.readline()
    run.stdout.close()
    assert (run.wait(60), run.stderr.read()) == (141, b"")
    assert (tmp_path / "result").read_text() == "done"
