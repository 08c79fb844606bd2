"""Predictions of several tasks: each with its own labels and scores."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from learn_torchrec.apps import evaluate_auc, evaluate_retrieval, quickstart
from learn_torchrec.errors import UserError
from learn_torchrec.evaluation import ranking
from learn_torchrec.evaluation.auc import evaluate_auc as metrics_of
from learn_torchrec.evaluation.report.render import to_json, to_markdown
from learn_torchrec.evaluation.report.run import read_run
from learn_torchrec.evaluation.tasks import ONLY_TASK, Task, tasks_by_name, tasks_of
from learn_torchrec.publish import write_artifact

CTR = {"name": "ctr", "label": "click", "score": "score_ctr"}
CVR = {"name": "cvr", "label": "label", "score": "score_cvr"}


def table(gain: float = 0.0, **more) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    clicks, labels = random.integers(2, size=(2, 300))
    noise = random.random((2, 300))
    return {
        "user_id": random.integers(10, size=300),
        "click": clicks,
        "label": labels,
        "score_ctr": (noise[0] + gain * clicks) / (1 + gain),
        "score_cvr": noise[1],
        "weight": random.integers(1, 4, size=300) / 2,
        "user_activity": random.integers(60, size=300),
        **more,
    }


def artefact(path: Path, columns: dict, tasks: list | None) -> Path:
    facts = {} if tasks is None else {"tasks": tasks}
    with write_artifact(
        path, kind="predictions", config={}, inputs={}, facts=facts
    ) as working:
        folder = working / "predictions.parquet"
        folder.mkdir()
        pq.write_table(pa.table(columns), folder / "part-00000.parquet")
    return path


def run(out: Path, *arguments: str) -> dict:
    evaluate_auc.main([*arguments, "--out", str(out), "--resamples=50"])
    return json.loads(out.read_text())


def expected(columns: dict, task: dict, chosen=slice(None)) -> dict:
    names = ("user_id", task["label"], task["score"], "weight")
    values = ranking.to_json(metrics_of(*(columns[name][chosen] for name in names)))
    return pytest.approx(values, abs=1e-12)


@pytest.mark.parametrize("reader", [[], ["--stream"]])
def test_each_task_is_evaluated(
    tmp_path: Path, reader: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    columns = table(gain=0.3)
    path = artefact(tmp_path / "p", columns, [CVR, CTR])
    body = run(tmp_path / "m.json", "--predictions", f"a={path}", *reader)
    assert list(body) == ["tasks", "settings"]
    assert list(body["tasks"]) == ["cvr", "ctr"]
    others = columns["user_activity"] >= 36
    for task in (CTR, CVR):
        found = body["tasks"][task["name"]]["ranking"]["a"]
        assert found["all"] == expected(columns, task)
        assert found["user_others"] == expected(columns, task, others)
    printed = capsys.readouterr().out
    assert printed.index("task cvr") < printed.index("task ctr")
    assert printed.count("long-tail users") == 2


def test_tasks_are_compared_and_gated_apart(tmp_path: Path) -> None:
    before = artefact(tmp_path / "before", table(), [CVR, CTR])
    after = artefact(tmp_path / "after", table(gain=0.5), [CVR, CTR])
    out = tmp_path / "m.json"
    files = ("--predictions", f"before={before}", f"after={after}")
    own = ("ctr.uauc>=+0.001", "ctr.auc.low>0", "cvr.uauc@long-tail users>=0")
    gates = (*own, "auc>=0")
    body = run(out, *files, *(f"--gate={gate}" for gate in gates))
    ctr, cvr = (body["tasks"][name] for name in ("ctr", "cvr"))
    assert [one["gate"] for one in ctr["gates"]] == [gates[0], gates[1], gates[3]]
    assert [one["gate"] for one in cvr["gates"]] == [gates[2], gates[3]]
    gain = ctr["ranking_difference"]["after-before"]["all"]["uauc"]
    assert ctr["gates"][0]["value"] == gain["difference"] > 0.05
    # The scores of the other task are the same in both.
    same = cvr["ranking_difference"]["after-before"]["all"]["auc"]
    assert same["difference"] == same["low"] == same["high"] == 0
    with pytest.raises(SystemExit) as ended:
        run(out, *files, "--gate=cvr.uauc>0")
    assert ended.value.code == 1
    with pytest.raises(UserError, match="no task add; there are cvr, ctr"):
        run(out, *files, "--gate=add.uauc>0")


def test_the_quickstart_and_its_report_carry_every_task(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    columns = {"baseline": table(), "learn": table(gain=0.5)}
    for name, values in columns.items():
        artefact(tmp_path / f"predictions_{name}", values, [CVR, CTR])
    monkeypatch.setattr(quickstart, "STEPS", ())
    retrieved = {"retrieval": {}}
    monkeypatch.setattr(
        evaluate_retrieval,
        "main",
        lambda given: Path(given[given.index("--out") + 1]).write_text(
            json.dumps(retrieved)
        ),
    )
    quickstart.main(["--out", str(tmp_path)])
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert list(metrics) == ["tasks", "settings", "retrieval", "left_out", "seconds"]
    (tmp_path / "ranking.json").unlink()  # so that the report reads the summary
    report = read_run(tmp_path)
    text, tables = to_markdown(report), to_json(report)["tables"]
    for task in (CTR, CVR):
        name = task["name"]
        found = metrics["tasks"][name]
        assert found["ranking"]["learn"]["all"] == expected(columns["learn"], task)
        gain = found["ranking_difference"]["learn-baseline"]["all"]["uauc"]
        assert f"## Ranking in detail: {name}" in text
        shown = tables[f"ranking-metrics-{name}"]
        assert [row["predictions"] for row in shown if row["cohort"] == "all"] == [
            *("baseline", "LEARN")
        ]
        (row,) = (
            row
            for row in tables[f"difference-learn-baseline-{name}"]
            if (row["cohort"], row["metric"]) == ("all", "uauc")
        )
        assert row["points"] == pytest.approx(100 * gain["difference"])
    assert {row["predictions"] for row in tables["calibration-bins"]} == {
        f"predictions_{run}, {task}" for run in columns for task in ("ctr", "cvr")
    }


def test_one_task_keeps_the_keys_that_it_had(tmp_path: Path) -> None:
    columns = table()
    path = artefact(tmp_path / "p", columns, [CTR])
    body = run(tmp_path / "m.json", "--predictions", f"a={path}")
    assert list(body) == ["ranking", "settings"]
    assert body["ranking"]["a"]["all"] == expected(columns, CTR)


def test_columns_by_name_for_files_of_any_make(tmp_path: Path) -> None:
    columns = table()
    pq.write_table(pa.table(columns), tmp_path / "p.parquet")
    file = f"a={tmp_path / 'p.parquet'}"
    named = ("--label=click", "--score=score_ctr")
    for reader in ([], ["--stream"]):
        body = run(tmp_path / "m.json", "--predictions", file, *named, *reader)
        assert body["ranking"]["a"]["all"] == expected(columns, CTR)
    # The options win over what an artefact lists.
    path = artefact(tmp_path / "p", columns, [CVR, CTR])
    body = run(tmp_path / "m.json", "--predictions", f"a={path}", *named)
    assert body["ranking"]["a"]["all"] == expected(columns, CTR)
    with pytest.raises(UserError, match=r"p\.parquet: no column score; predictions"):
        run(tmp_path / "m.json", "--predictions", file, "--label=click")
    bad = table(click=np.full(300, 2))
    pq.write_table(pa.table(bad), tmp_path / "p.parquet")
    for reader in ([], ["--stream"]):
        with pytest.raises(UserError, match="click: neither 0 nor 1 in rows 0, 1"):
            run(tmp_path / "m.json", "--predictions", file, *named, *reader)


def test_a_task_that_some_files_have_is_compared_among_those(tmp_path: Path) -> None:
    both = artefact(tmp_path / "both", table(), [CVR, CTR])
    only = artefact(tmp_path / "only", table(), [CVR])
    files = ("--predictions", f"only={only}", f"both={both}")
    body = run(tmp_path / "m.json", *files)
    assert list(body["tasks"]["cvr"]["ranking_difference"]) == ["both-only"]
    assert list(body["tasks"]["ctr"]) == ["ranking"]
    unnamed = table(score=table()["score_cvr"])
    pq.write_table(pa.table(unnamed), tmp_path / "old.parquet")
    old = f"old={tmp_path / 'old.parquet'}"
    body = run(tmp_path / "m.json", "--predictions", old, f"only={only}")
    assert list(body["ranking_difference"]) == ["only-old"]
    with pytest.raises(UserError, match="old: does not name its task, and other"):
        run(tmp_path / "m.json", "--predictions", old, f"both={both}")


def test_tasks_of_a_manifest(tmp_path: Path) -> None:
    assert tasks_of(tmp_path) == [ONLY_TASK]
    assert tasks_of(artefact(tmp_path / "old", table(), None)) == [ONLY_TASK]
    several = tasks_of(artefact(tmp_path / "new", table(), [CVR, CTR]))
    assert several == [Task(**CVR), Task(**CTR)]
    for number, unfit in enumerate(([], [CTR, CTR], [{"name": "ctr"}])):
        path = artefact(tmp_path / str(number), table(), unfit)
        with pytest.raises(UserError, match=r"manifest\.json: its tasks must each"):
            tasks_of(path)
    assert tasks_by_name({"a": several}) == {
        "cvr": {"a": several[0]},
        "ctr": {"a": several[1]},
    }
