"""`evaluate-auc --stream`: what it reads in batches equals what is read at once."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from prediction_file import write

from learn_torchrec.apps import evaluate_auc
from learn_torchrec.errors import UserError
from learn_torchrec.evaluation import paired_predictions


def on_two_ranks(options: list[str]) -> subprocess.CompletedProcess[str]:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2"]
    return subprocess.run(
        [*torchrun, "--standalone", "-m", "learn_torchrec.apps.evaluate_auc", *options],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )


def test_two_ranks_stream_what_one_reads(tmp_path: Path) -> None:
    table = write(tmp_path / "p.parquet", gain=0.3)
    pq.write_table(pa.table(table), tmp_path / "p.parquet", row_group_size=60)
    out = tmp_path / "m.json"
    options = ["--predictions", f"a={tmp_path / 'p.parquet'}", "--out", str(out)]
    done = on_two_ranks(["--stream", *options])
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("predictions") == 1  # rank 0 alone prints
    streamed = json.loads(out.read_text())["ranking"]["a"]
    evaluate_auc.main(options)
    expected = json.loads(out.read_text())["ranking"]["a"]
    assert list(streamed) == list(expected)  # the cohorts as well
    for cohort, values in expected.items():
        assert streamed[cohort] == pytest.approx(values, abs=1e-12)


def same_numbers(found, expected) -> None:
    assert list(found) == list(expected)
    for key, value in expected.items():
        if isinstance(value, dict):
            same_numbers(found[key], value)
        else:
            assert found[key] == pytest.approx(value, rel=1e-9, abs=1e-12), key


@pytest.fixture
def three_files(tmp_path: Path) -> list[str]:
    """Options: three files of the same rows, in row groups of different sizes."""
    for name, gain, size in (("base", 0.0, 60), ("learn", 0.5, 37), ("x", 0.2, 200)):
        table = write(tmp_path / f"{name}.parquet", gain)
        table["item_id"] = np.arange(200)
        if name == "learn":  # cohorts are any file's
            del table["user_activity"]
        path = tmp_path / f"{name}.parquet"
        labels = pa.array(table["label"], mask=np.arange(200) % 9 == 0)
        columns = table | {"label": labels}
        pq.write_table(pa.table(columns), path, row_group_size=size)
    names = ("base", "learn", "x")
    return ["--predictions", *(f"{n}={tmp_path / n}.parquet" for n in names)]


def test_a_stream_compares_files_as_in_memory(
    tmp_path: Path,
    three_files: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(paired_predictions, "_BATCH_ROWS", 23)
    out = tmp_path / "m.json"
    gate = ["--gate=auc.low@user_others>-1", "--all", "--out", str(out)]
    evaluate_auc.main([*three_files, *gate, "--intervals=influence"])
    expected, printed = json.loads(out.read_text()), capsys.readouterr().out
    evaluate_auc.main([*three_files, *gate, "--stream"])
    same_numbers(json.loads(out.read_text()), expected)
    assert capsys.readouterr().out == printed
    assert list(expected["ranking_difference"]) == ["learn-base", "x-base"]
    assert expected["gates"][0]["passed"]
    with pytest.raises(SystemExit):
        evaluate_auc.main([*three_files, *gate, "--stream", "--gate=auc>0.9"])
    with pytest.raises(UserError, match="no cohort nobody"):
        evaluate_auc.main(
            [*three_files, "--out", str(out), "--stream", "--gate=auc@nobody>0"]
        )
    with pytest.raises(UserError, match="--intervals bootstrap: needs all rows"):
        evaluate_auc.main([*three_files, *gate, "--stream", "--intervals=bootstrap"])


def test_two_ranks_compare_what_one_does(
    tmp_path: Path, three_files: list[str]
) -> None:
    out = tmp_path / "m.json"
    command = [*three_files, "--out", str(out)]
    done = on_two_ranks([*command, "--stream", "--gate=auc>0.9"])
    assert done.stdout.count("FAILS") == 2  # of two comparisons, by rank 0 alone
    found = json.loads(out.read_text())
    evaluate_auc.main([*command, "--intervals=influence"])
    expected = json.loads(out.read_text())
    for part in ("ranking", "ranking_difference"):
        same_numbers(found[part], expected[part])


@pytest.mark.parametrize(
    ("column", "row", "message"),
    [
        ("user_id", 150, "user_id differs from row 150"),
        ("label", 150, "label differs from row 150"),
        ("item_id", 150, "item_id differs from row 150"),
        ("score", 150, "score: not finite in row 150"),
        ("user_activity", 150, "user_activity: negative count in row 150"),
    ],
)
def test_streaming_different_rows_is_refused(
    tmp_path: Path, column: str, row: int, message: str
) -> None:
    table = write(tmp_path / "a.parquet", gain=0.0) | {"item_id": np.arange(200)}
    pq.write_table(pa.table(table), tmp_path / "a.parquet", row_group_size=60)
    wrong = {"score": np.nan, "user_activity": -1, "label": 1 - table["label"][row]}
    table[column] = table[column].copy()
    table[column][row] = wrong.get(column, 777)
    pq.write_table(pa.table(table), tmp_path / "b.parquet", row_group_size=45)
    files = [f"{name}={tmp_path / name}.parquet" for name in "ab"]
    command = ["--predictions", *files, "--out", "unused.json", "--stream"]
    with pytest.raises(UserError, match=message):
        evaluate_auc.main(command)


def test_streaming_files_of_other_lengths_or_labels_is_refused(tmp_path: Path) -> None:
    table = write(tmp_path / "a.parquet", gain=0.0)
    command = [f"{name}={tmp_path / name}.parquet" for name in "ab"]
    command = ["--predictions", *command, "--out", "unused.json", "--stream"]
    pq.write_table(pa.table(table).slice(1), tmp_path / "b.parquet")
    with pytest.raises(UserError, match="199 against 200 rows"):
        evaluate_auc.main(command)
    labels = pa.array(table["label"], mask=np.arange(200) == 7)
    pq.write_table(pa.table(table | {"label": labels}), tmp_path / "b.parquet")
    with pytest.raises(UserError, match="labels are missing in different rows"):
        evaluate_auc.main(command)
