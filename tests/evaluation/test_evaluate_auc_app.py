import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from apps import evaluate_auc
from learn_torchrec.errors import UserError
from learn_torchrec.evaluation.auc import evaluate_auc as metrics_of


def write(path: Path, gain: float, first_user: int = 0) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    labels = random.integers(2, size=200)
    table = {
        "user_id": random.integers(10, size=200) + first_user,
        "label": labels,
        "score": (random.random(200) + gain * labels) / (1 + gain),
        "user_activity": random.integers(1, 60, size=200),
    }
    path.parent.mkdir(exist_ok=True)
    pq.write_table(pa.table(table), path)
    return table


def test_one_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = write(tmp_path / "run" / "predictions.parquet", gain=0.2)
    out = tmp_path / "new" / "metrics.json"
    evaluate_auc.main(["--predictions", f"base={tmp_path / 'run'}", "--out", str(out)])
    body = json.loads(out.read_text())
    assert list(body) == ["ranking"]
    assert list(body["ranking"]["base"]) == [
        "all",
        "user_cold",
        "user_long_tail",
        "user_others",
    ]
    expected = metrics_of(table["user_id"], table["label"], table["score"])
    assert body["ranking"]["base"]["all"] == vars(expected)
    assert body["ranking"]["base"]["user_cold"]["auc"] is None
    header, first, *_ = capsys.readouterr().out.splitlines()
    assert header.split()[:5] == ["predictions", "cohort", "rows", "users_kept", "auc"]
    assert first.split()[:4] == ["base", "all", "200", "10/10"]
    assert first.split()[4] == f"{expected.auc:.4f}"


def test_later_files_are_compared_with_the_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, gain in (("base", 0.0), ("learn", 0.5), ("worse", -0.5)):
        write(tmp_path / f"{name}.parquet", gain)
    names = ("base", "learn", "worse")
    files = [f"{name}={tmp_path / name}.parquet" for name in names]
    out = tmp_path / "metrics.json"
    evaluate_auc.main(
        ["--predictions", *files, "--out", str(out), "--resamples", "100"]
    )
    body = json.loads(out.read_text())
    differences = body["ranking_difference"]
    assert list(differences) == ["learn-base", "worse-base"]
    gain = differences["learn-base"]["all"]["auc"]
    ranking = body["ranking"]
    assert gain["difference"] == pytest.approx(
        ranking["learn"]["all"]["auc"] - ranking["base"]["all"]["auc"]
    )
    assert 0 < gain["low"] < gain["high"]
    assert differences["worse-base"]["all"]["auc"]["high"] < 0
    assert differences["learn-base"]["user_cold"]["auc"]["p_value"] is None
    assert f"{100 * gain['difference']:+.2f}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["base.parquet"], "write it as NAME=FILE_OR_DIR"),
        (["=base.parquet"], "write it as NAME=FILE_OR_DIR"),
        (["a=base.parquet", "a=base.parquet"], "a is given twice"),
    ],
)
def test_unfit_names_are_refused(arguments: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        evaluate_auc.parse_names(arguments)


def test_different_rows_are_refused_and_nothing_is_written(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", gain=0.1)
    write(tmp_path / "b.parquet", gain=0.1, first_user=1)
    files = [f"{name}={tmp_path / name}.parquet" for name in "ab"]
    out = tmp_path / "metrics.json"
    with pytest.raises(UserError, match="user_id differs from row 0"):
        evaluate_auc.main(["--predictions", *files, "--out", str(out)])
    assert not out.exists()


def test_a_mistake_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    out = tmp_path / "metrics.json"
    command = [sys.executable, "-m", "apps.evaluate_auc", "--out", str(out)]
    done = subprocess.run(
        [*command, "--predictions", f"base={tmp_path}"],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert "predictions.parquet: no such file" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not out.exists()
