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
from learn_torchrec.evaluation import ranking
from learn_torchrec.evaluation.auc import evaluate_auc as metrics_of
from learn_torchrec.evaluation.conventions import Convention


def test_one_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = write(tmp_path / "run" / "predictions.parquet", gain=0.2)
    out = tmp_path / "new" / "metrics.json"
    evaluate_auc.main(["--predictions", f"base={tmp_path / 'run'}", "--out", str(out)])
    body = json.loads(out.read_text())
    assert list(body) == ["ranking", "settings"]
    assert body["settings"]["convention"]["user_weight"] == "impressions"
    assert list(body["ranking"]["base"]) == [
        "all",
        "user_cold",
        "user_long_tail",
        "user_others",
    ]
    expected = metrics_of(table["user_id"], table["label"], table["score"])
    assert body["ranking"]["base"]["all"] == expected
    assert body["ranking"]["base"]["user_cold"]["auc"] is None
    header, first, *_ = capsys.readouterr().out.splitlines()
    assert header.split()[:5] == ["predictions", "cohort", "rows", "users", "auc"]
    assert first.split()[:4] == ["base", "all", "200", "10"]
    assert first.split()[4] == f"{expected['auc']:.4f}"


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
    printed = capsys.readouterr().out
    # One line a cohort: the AUCs alone, marked where the interval excludes 0; no row is
    # of a cold-start user.
    table = printed.partition("LEARN minus base: points (95 % interval)\n")[2]
    head, first, *others = table.split("\n\n")[0].splitlines()
    assert head.split() == ["cohort", "AUC", "UAUC", "WUAUC"]
    points, low, high = (f"{100 * gain[k]:+.2f}" for k in ("difference", "low", "high"))
    assert first.startswith("all  ")
    assert f"{points} ({low}, {high})*" in first
    assert [line.split("  ")[0] for line in others] == [
        "long-tail users",
        "other users",
    ]
    assert max(map(len, printed.splitlines())) <= 100

    compare_all = ["--predictions", *files, "--out", str(out), "--resamples", "100"]
    evaluate_auc.main([*compare_all, "--all"])
    printed = capsys.readouterr().out
    rows = [" ".join(line.split()) for line in printed.splitlines()]
    assert any(
        row.startswith(f"LEARN minus base all auc {points} {low} {high} ")
        for row in rows
    )
    assert "calibration" in printed
    # 24 comparisons: the least p, 2 / 101, times 24 is no evidence.
    assert "24 comparisons a pair" in printed
    assert "needs --resamples 960 to fall below 0.05" in printed
    assert gain["p_adjusted"] >= gain["p_value"]


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
    empty = tmp_path / "empty"
    empty.mkdir()
    out = tmp_path / "metrics.json"
    command = [
        sys.executable,
        "-m",
        "learn_torchrec.apps.evaluate_auc",
        "--out",
        str(out),
    ]
    done = subprocess.run(
        [*command, "--predictions", f"base={empty}"],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert "an empty folder; name a prediction file" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not out.exists()


def compare(tmp_path: Path, *options: str) -> dict:
    for name, gain in (("base", 0.0), ("learn", 0.5)):
        write(tmp_path / f"{name}.parquet", gain)
    files = [f"{name}={tmp_path / name}.parquet" for name in ("base", "learn")]
    out = tmp_path / "metrics.json"
    command = ["--predictions", *files, "--out", str(out), "--resamples", "50"]
    evaluate_auc.main([*command, *options])
    return json.loads(out.read_text())


def test_gates_that_hold(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gates = ("uauc>=+0.002", "auc.low > 0", "wuauc.p@user_others<0.9", "ne<0")
    body = compare(tmp_path, *(f"--gate={gate}" for gate in gates))
    assert [one["gate"] for one in body["gates"]] == list(gates)
    assert all(one["passed"] for one in body["gates"])
    difference = body["ranking_difference"]["learn-base"]["all"]["uauc"]["difference"]
    assert body["gates"][0]["value"] == difference
    assert "holds" in capsys.readouterr().out


def test_a_gate_that_fails_is_exit_code_1_after_everything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        compare(tmp_path, "--gate=uauc>=0.9", "--gate=auc@user_cold>0")
    assert ended.value.code == 1
    body = json.loads((tmp_path / "metrics.json").read_text())
    # No row is of a cold user: an undefined difference passes no gate.
    assert [one["passed"] for one in body["gates"]] == [False, False]
    assert capsys.readouterr().out.count("FAILS") == 2


@pytest.mark.parametrize(
    ("gate", "message"),
    [
        ("uauc", r"write \[TASK\.\]METRIC"),
        ("uauc>=high", r"write \[TASK\.\]METRIC"),
        ("uauc.mean>0", r"write \[TASK\.\]METRIC"),
        ("gauc>0", "no metric gauc; there are auc, uauc"),
        ("uauc@nobody>0", "no cohort nobody; there are all, user_cold"),
    ],
)
def test_unfit_gates_are_refused_before_anything_slow(
    tmp_path: Path, gate: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(ranking, "paired_bootstrap")
    with pytest.raises(UserError, match=message):
        compare(tmp_path, f"--gate={gate}")


def test_a_convention_holds_for_differences_too(tmp_path: Path) -> None:
    body = compare(tmp_path, "--set=convention.user_weight=positives")
    ranking = body["ranking"]
    for cohort, metrics in body["ranking_difference"]["learn-base"].items():
        before, after = (ranking[name][cohort]["wuauc"] for name in ("base", "learn"))
        if before is not None:
            gain = metrics["wuauc"]["difference"]
            assert gain == pytest.approx(after - before, abs=1e-12)


def test_a_baseline_with_the_required_columns_alone(tmp_path: Path) -> None:
    table = write(tmp_path / "new.parquet", gain=0.5)
    table["item_id"] = np.arange(200)
    pq.write_table(pa.table(table), tmp_path / "new.parquet")
    bare = {name: table[name] for name in ("user_id", "label", "score")}
    pq.write_table(pa.table(bare), tmp_path / "old.parquet")
    out = tmp_path / "metrics.json"
    files = [f"{name}={tmp_path / name}.parquet" for name in ("old", "new")]
    command = ["--predictions", *files, "--out", str(out), "--resamples", "20"]

    evaluate_auc.main([*command, "--gate=uauc @ user_others > -1"])

    body = json.loads(out.read_text())
    assert set(body["ranking"]["old"]) == set(body["ranking"]["new"])
    assert "user_others" in body["ranking_difference"]["new-old"]
    assert body["gates"][0]["passed"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([3] * 90 + [None] + [3] * 109, "user_activity: null in row 90"),
        ([3] * 150 + [-1] + [3] * 49, "user_activity: negative count in row 150"),
    ],
)
def test_streaming_checks_activity_and_names_the_row(
    tmp_path: Path, values: list, message: str
) -> None:
    table = write(tmp_path / "p.parquet", gain=0.3) | {"user_activity": values}
    pq.write_table(pa.table(table), tmp_path / "p.parquet", row_group_size=60)
    command = ["--predictions", f"a={tmp_path / 'p.parquet'}", "--out", "unused.json"]
    for options in ([], ["--stream"]):
        with pytest.raises(UserError, match=message):
            evaluate_auc.main([*command, *options])


def test_a_known_column_can_be_one_of_cohorts(tmp_path: Path) -> None:
    table = write(tmp_path / "p.parquet", gain=0.3)
    out = tmp_path / "m.json"
    command = ["--predictions", f"a={tmp_path / 'p.parquet'}", "--out", str(out)]
    evaluate_auc.main([*command, "--cohort-column=label"])
    body = json.loads(out.read_text())["ranking"]["a"]
    assert list(body)[-2:] == ["0", "1"]
    assert body["1"]["positives"] == body["1"]["rows"] == table["label"].sum()


def test_conventions_are_printed_side_by_side(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    body = compare(tmp_path, "--compare-conventions")
    table = {one["library"]: one for one in body["conventions"]["base"]}
    assert table["paper, UAUC"]["grouped_auc"] == body["ranking"]["base"]["all"]["uauc"]
    assert {"TorchRec", "TorchEasyRec", "RecBole", "FuxiCTR, gAUC", "RecIS"} < set(
        table
    )
    assert "weighted by positives" in capsys.readouterr().out


def test_a_convention_and_a_column_of_cohorts(tmp_path: Path) -> None:
    table = write(tmp_path / "p.parquet", gain=0.3)
    levels = np.where(np.arange(200) < 120, "gold", "silver")
    clicks = np.arange(200) % 3
    pq.write_table(
        pa.table(table | {"level": levels, "click": clicks}), tmp_path / "p.parquet"
    )
    out = tmp_path / "m.json"
    command = ["--predictions", f"a={tmp_path / 'p.parquet'}", "--out", str(out)]
    options = ["--cohort-column=level", "--set=convention.user_weight=clicks"]
    evaluate_auc.main([*command, *options])
    body = json.loads(out.read_text())["ranking"]["a"]
    assert list(body)[-2:] == ["gold", "silver"]
    expected = metrics_of(
        *(table[name][:120] for name in ("user_id", "label", "score")),
        clicks=clicks[:120],
        convention=Convention(user_weight="clicks"),
    )
    assert body["gold"] == expected


def test_clicks_and_cohorts_must_be_there(tmp_path: Path) -> None:
    write(tmp_path / "p.parquet", gain=0.3)
    command = ["--predictions", f"a={tmp_path / 'p.parquet'}", "--out", "unused.json"]
    with pytest.raises(UserError, match="click: no such column"):
        evaluate_auc.main([*command, "--set=convention.user_weight=clicks"])
    with pytest.raises(UserError, match="level: no such column to take cohorts from"):
        evaluate_auc.main([*command, "--cohort-column=level"])
    with pytest.raises(UserError, match="convention"):
        evaluate_auc.main([*command, "--set=convention.ties=never"])
    for option in ("--seed=-1", "--resamples=0"):
        with pytest.raises(UserError, match=option.replace("=", " ")):
            evaluate_auc.main([*command, option])
    with pytest.raises(UserError, match="--gate: compares files"):
        evaluate_auc.main([*command, "--gate=uauc>0"])
    with pytest.raises(UserError, match="--cohort-column: needs all rows in memory"):
        evaluate_auc.main([*command, "--stream", "--cohort-column=level"])
