"""What a run's summary says of known numbers, and how it looks on a terminal."""

import json
import sys
from pathlib import Path

import pytest

from learn_torchrec.apps.evaluating import summary as app
from learn_torchrec.datasets import open_dataset
from learn_torchrec.errors import UserError
from learn_torchrec.evaluation.report.files import Metrics
from learn_torchrec.evaluation.report.parts import Report, Section, Table
from learn_torchrec.evaluation.report.render import to_html, to_markdown
from learn_torchrec.evaluation.report.retrieval_summary import distinct_targets
from learn_torchrec.evaluation.report.summary import summarise
from learn_torchrec.evaluation.report.terminal import align, columns, cut, to_text

CONTENT = {"content": {"kind": "content", "facts": {"items": 1200}}}
PREDICTIONS = {"predictions": {"kind": "predictions"}}


def counts(uauc: float | None, auc: float | None = 0.7, **changes: int) -> dict:
    usual = {"rows": 4000, "users": 90, "users_kept": 80, "positives": 300}
    return {"auc": auc, "uauc": uauc, **usual, **changes}


def difference(*parts: float | None) -> dict:
    names = ("difference", "low", "high")
    return dict(zip(names, parts, strict=True)) | {"p_value": 0.5}


def compared(cohorts: dict, **counts_of: dict) -> dict:
    """Metrics whose UAUC differences by cohort are (points, low, high) / 100."""
    ranking = {"baseline": {}, "learn": {}}
    differences = {}
    for name, parts in cohorts.items():
        ranking["baseline"][name] = counts_of.get(name, counts(0.6))
        ranking["learn"][name] = counts_of.get(name, counts(0.6 + parts[0]))
        differences[name] = {"uauc": difference(*parts)}
    return {
        "ranking": ranking,
        "ranking_difference": {"learn-baseline": differences},
    }


def sections(ranking=None, retrieval=None, manifests=None, example=None) -> list:
    metrics = Metrics({}, ranking or {}, retrieval or {}, example or {})
    return summarise(Path("run"), metrics, manifests or {})


def said(*arguments, **keywords) -> list[str]:
    return [text for one in sections(*arguments, **keywords) for text in one.text]


@pytest.mark.parametrize(
    ("parts", "sentence"),
    [
        (
            (0.012, 0.008, 0.016),
            "LEARN orders each user's impressions better than the baseline: +1.20 "
            "points of UAUC (+0.80, +1.60).",
        ),
        (
            (-0.012, -0.016, -0.008),
            "LEARN orders each user's impressions worse than the baseline: -1.20 "
            "points of UAUC (-1.60, -0.80).",
        ),
        (
            (0.0034, -0.0017, 0.0091),
            "LEARN and the baseline do not clearly differ in how they order each "
            "user's impressions: +0.34 points of UAUC, with 0 in the interval (-0.17, "
            "+0.91).",
        ),
        (
            (0.0, 0.0, 0.0),
            "LEARN and the baseline do not clearly differ in how they order each "
            "user's impressions: +0.00 points of UAUC, with 0 in the interval (+0.00, "
            "+0.00).",
        ),
        (
            (-0.012, None, None),
            "LEARN against the baseline: -1.20 points of UAUC, without an interval.",
        ),
    ],
)
def test_a_gain_a_loss_and_neither(parts: tuple, sentence: str) -> None:
    assert said(compared({"all": parts}))[0] == sentence


def test_auc_is_said_beside_uauc() -> None:
    body = compared({"all": (0.012, 0.008, 0.016)})
    found = body["ranking_difference"]["learn-baseline"]["all"]
    start = "AUC, which also compares rows of different users, "
    for parts, words in (
        ((-0.008, -0.012, -0.004), "falls: -0.80 points (-1.20, -0.40)."),
        ((0.008, 0.004, 0.012), "rises: +0.80 points (+0.40, +1.20)."),
        ((0.008, -0.4, 0.4), "does not clearly change: +0.80 points (-40.00, +40.00)."),
        ((0.008, None, None), "changes: +0.80 points."),
    ):
        found["auc"] = difference(*parts)
        assert said(body)[1] == start + words


def test_worse_than_chance_is_said() -> None:
    body = compared({"all": (0.2, 0.1, 0.3)})
    for name, value in (("baseline", 0.4), ("learn", 0.4999)):
        body["ranking"][name]["all"]["uauc"] = value
    assert said(body)[1:3] == [
        "The UAUC of baseline is 0.4000: below chance, 0.5.",
        "The UAUC of LEARN is 0.4999: below chance, 0.5.",
    ]


def test_cohorts_that_are_clearly_better_or_worse_are_named() -> None:
    better, worse, unclear = (0.03, 0.01, 0.05), (-0.02, -0.03, -0.01), (0.1, -0.1, 0.2)
    body = compared(
        {
            "all": better,
            "user_cold": better,
            "user_long_tail": unclear,
            "item_cold": better,
            "item_others": worse,
        }
    )
    (section,) = sections(body)
    assert section.text[-1] == (
        "By cohort: better for cold-start users (+3.00) and cold-start items (+3.00); "
        "worse for other items (-2.00)."
    )
    (table,) = section.tables
    assert [(row[0], row[-2], row[-1]) for row in table.rows] == [
        ("all", "(+1.00, +5.00)", "better"),
        ("cold-start users", "(+1.00, +5.00)", "better"),
        ("long-tail users", "(-10.00, +20.00)", "unclear"),
        ("cold-start items", "(+1.00, +5.00)", "better"),
        ("other items", "(-3.00, -1.00)", "worse"),
    ]
    only_unclear = compared({"all": better, "user_cold": unclear})
    assert said(only_unclear)[-1] == "By cohort: none is clearly better or worse."


def test_cohorts_that_cannot_be_judged_are_left_out() -> None:
    undefined = (0.0, None, None)
    body = compared(
        {"all": (0.1, 0.0, 0.2), **dict.fromkeys(("a", "b", "c"), undefined)},
        a=counts(None, None, rows=0, users=0, users_kept=0, positives=0),  # empty
        b=counts(None, None, users_kept=0, positives=0),  # one class
        c=counts(0.5, users_kept=9),
    )
    (section,) = sections(body)
    assert [row[0] for row in section.tables[0].rows] == ["all"]
    body = compared(
        {"all": (0.1, 0.0, 0.2), "d": (0.1, 0.05, 0.2), "b": undefined, "a": undefined},
        a=counts(None, None, rows=0, users=0, users_kept=0, positives=0),
        b=counts(None, None, users_kept=0, positives=0),
    )
    (table,) = sections(body)[0].tables
    assert [row[0] for row in table.rows] == ["all", "d"]
    assert table.note.endswith("left out with fewer than 10 users: b (0).")


def test_one_class_leaves_nothing_to_judge() -> None:
    for positives, label in ((0, "0"), (4000, "1")):
        one = counts(None, None, users_kept=0, positives=positives)
        (section,) = sections(compared({"all": (0.0, None, None)}, all=one))
        assert section.text == [
            f"All 4,000 rows have label {label}: there is no order to judge."
        ]
        assert section.tables == []
    none = counts(None, None, rows=0, users=0, users_kept=0, positives=0)
    assert said(compared({"all": (0.0, None, None)}, all=none)) == [
        "There are no rows to rank."
    ]


def test_auc_leads_where_no_user_has_both_labels() -> None:
    body = compared({"all": (0.0, None, None)}, all=counts(None, 0.7, users_kept=0))
    found = body["ranking_difference"]["learn-baseline"]["all"]
    found["auc"] = difference(0.01, 0.005, 0.015)
    assert said(body) == [
        "LEARN orders the impressions better than the baseline: +1.00 points of AUC "
        "(+0.50, +1.50).",
        "Only 0 users have both labels: too few to judge by.",
    ]


def test_without_a_comparison_the_difference_has_no_interval() -> None:
    body = compared({"all": (0.012, 0.008, 0.016)})
    del body["ranking_difference"]
    assert said(body)[0] == (
        "LEARN against the baseline: +1.20 points of UAUC, without an interval."
    )
    del body["ranking"]["learn"]
    assert said(body) == ["Only baseline was evaluated: there is nothing to compare."]


def test_what_was_not_evaluated_is_said() -> None:
    assert said(manifests=PREDICTIONS) == [
        "Not evaluated: the run's predictions were not evaluated; evaluation needs "
        "labels."
    ]
    towers = {"towers": {"kind": "towers"}}
    assert said(manifests=towers) == [
        "Not evaluated: the run has no predictions; they need impressions.",
        "Not evaluated.",
    ]
    reasons = {"ranker": "no impressions", "retrieval evaluation": "no test user"}
    found = summarise(Path("run"), Metrics({"left_out": reasons}, {}, {}, {}), towers)
    assert [(one.title, one.text) for one in found] == [
        ("Ranking", ["Not evaluated: no impressions."]),
        ("Retrieval", ["Not evaluated: no test user."]),
    ]


def test_several_tasks_share_the_screen() -> None:
    parts = {"all": (0.012, 0.008, 0.016), "user_cold": (0.012, 0.008, 0.016)}
    found = sections({"tasks": {"ctr": compared(parts), "cvr": compared(parts)}})
    assert [one.title for one in found] == [
        "Ranking (ctr): baseline against LEARN",
        "Ranking (cvr): baseline against LEARN",
    ]
    assert [[row[0] for row in one.tables[0].rows] for one in found] == [["all"]] * 2


def found_by(learn: float, popularity: float, mean: float, **changes: int) -> dict:
    rows = {"learn": learn, "popularity": popularity, "content_mean": mean}
    counted = {"users": 425, "targets": 9, **changes}
    return {
        name: {"r@20": value, "r@100": 1.0, "mrr": 0.5, **counted}
        for name, value in rows.items()
    }


def test_retrieval_beside_the_best_of_the_others() -> None:
    start = "Among its first 20 of 1,200 items, LEARN finds "
    next_ = " of what 425 users take next "
    for values, words in (
        ((0.25, 0.2, 0.1), f"more{next_}than popularity: 25.0 % against 20.0 %."),
        (
            (0.1, 0.2, 0.25),
            f"less{next_}than averaged content vectors: 10.0 % against 25.0 %.",
        ),
        ((0.2, 0.2, 0.1), f"as much{next_}as popularity: 20.0 % against 20.0 %."),
    ):
        body = {"retrieval": found_by(*values)}
        assert said(retrieval=body, manifests=CONTENT)[1:] == [start + words]
    body["tail_targets"] = found_by(0.012, 0.0, 0.073)
    assert said(retrieval=body)[-1] == (
        "Of long-tail targets it finds less than averaged content vectors: 1.2 % "
        "against 7.3 %."
    )


def test_retrieval_without_targets_says_nothing() -> None:
    body = {"retrieval": found_by(None, None, None, targets=0, users=0)}
    towers = {"towers": {"kind": "towers"}}
    assert said(retrieval=body, manifests=towers)[-1] == "Not evaluated."


def test_parts_with_the_same_numbers_are_shown_once() -> None:
    rows = found_by(0.25, 0.2, 0.1)
    rows["already_bought"] = rows["popularity"]
    body = {"retrieval": rows, "new_targets": dict(rows)}
    body["repeated_targets"] = found_by(0.0, 0.0, 0.0, targets=0)
    groups, notes = distinct_targets(body)
    assert {name: list(rows) for name, rows in groups.items()} == {
        "retrieval": ["learn", "popularity", "content_mean"]
    }
    assert notes == [
        "New targets are left out: their numbers are those of all targets.",
        "Already bought, then popularity, is left out: its numbers are those of "
        "popularity.",
    ]
    assert "already_bought" in rows  # what was read is not changed
    bought_again = {**rows, "already_bought": {**rows["popularity"], "r@20": 0.3}}
    groups, notes = distinct_targets({**body, "new_targets": bought_again})
    assert list(groups) == ["retrieval", "new_targets"]
    assert all("already_bought" in rows for rows in groups.values())
    assert notes == []


HOSTILE = "\x1b[31mred\x07\u202e <b>|x\ntwo\tthree"
SHOWN = "\ufffd[31mred\ufffd <b>|x two three"


def test_titles_are_text_on_a_terminal_and_in_a_page() -> None:
    table = Table(
        name="t", title="T", columns=["a", "b"], formats=["", ""], rows=[["1", HOSTILE]]
    )
    section = Section(name="s", title=HOSTILE, text=[HOSTILE], tables=[table])
    text = to_text([section], 80)
    assert text.splitlines() == [SHOWN, f"  {SHOWN}", "  a  b", f"  1  {SHOWN}"]
    made = Report(title="R", subtitle="", notices=[], sections=[], summary=[section])
    assert "| 1 | \ufffd\\[31mred\ufffd &#60;b>\\|x two three |" in to_markdown(made)
    page = to_html(made)
    assert "\ufffd[31mred\ufffd &lt;b&gt;|x two three</td>" in page
    assert "<b>" not in page


def test_wide_characters_take_two_columns() -> None:
    assert [columns(text) for text in ("abc", "日本", "e\u0301", "한")] == [3, 4, 1, 2]
    assert cut("日本語", 6) == "日本語"
    assert cut("日本語", 5) == "日本…"
    assert cut("日本語", 4) == "日…"  # two columns do not fit into one
    assert cut("abcdef", 4) == "abc…"
    lines = align([["日本", "x"], ["ab", "y"]], left=(0,)).splitlines()
    assert lines == ["日本  x", "ab    y"]


@pytest.mark.parametrize("width", [80, 90, 100])
def test_nothing_is_wider_than_the_terminal(width: int) -> None:
    parts = {f"cohort number {number}": (0.1, -0.1, 0.2) for number in range(20)}
    example = {
        "user": "a-very-long-user-id" * 3,
        "events": 12,
        "history_left_out": True,
        "top": [{"rank": 1, "item": "b" * 50, "title": "日本語 title " * 20}],
        "history": [{"day": "2024-01-01", "item": 7, "title": "x" * 200}] * 5,
    }
    retrieval = {"retrieval": found_by(0.25, 0.2, 0.1)}
    found = sections(
        compared({"all": (0.1, -0.1, 0.2), **parts}), retrieval, CONTENT, example
    )
    lines = to_text(found, width).splitlines()
    assert max(map(columns, lines)) <= width
    assert len(lines) < 55
    assert sum("unclear" in line for line in lines) == 10  # the rest is in the report


def test_a_damaged_example_is_refused() -> None:
    with pytest.raises(UserError, match=r"recommendations\.json: not as quickstart"):
        sections(example={"user": 1})


@pytest.fixture
def finished(shop: list[str], tmp_path: Path) -> Path:
    run = tmp_path / "a run"
    run.mkdir()
    (tmp_path / "vectors").rename(run / "vectors")
    body = compared({"all": (0.012, 0.008, 0.016)})
    (run / "ranking.json").write_text(json.dumps(body))
    return run


def test_a_run_ends_with_its_report_and_what_to_do_next(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = f"parquet:{tmp_path / 'data'}"
    app.conclude(finished, data, open_dataset(data))
    printed = capsys.readouterr().out
    assert "LEARN orders each user's impressions better" in printed
    # User 2 has one event and user 1 two: the lower of the two middle users.
    assert "Recommendations for user 2 (1 event)\n" in printed
    rows = [line.split() for line in printed.splitlines()]
    assert ["1", "11", "cup", "1970-01-02", "11", "cup"] in rows
    assert ["3", "13", "jug"] in rows
    assert f"Report: {finished / 'report.html'}" in printed
    vectors = finished / "vectors"
    assert f"recommend --data {data} --vectors '{vectors}' --user ID" in printed
    assert "predict --" not in printed  # the run has no ranker
    page = (finished / "report.html").read_text()
    for text in ("LEARN orders each user&#39;s impressions better", ">cup</td>"):
        assert text in page
    assert page.index("LEARN orders") < page.index("Ranking in detail</h2>")
    written = json.loads((finished / "report.json").read_text())
    assert written["summary"][0].startswith("LEARN orders each user's")
    app.conclude(finished, data, open_dataset(data))  # again, over its own files
    assert capsys.readouterr().out == printed


def test_without_the_drawing_library_there_is_a_summary_but_no_report(
    finished: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    data = f"parquet:{tmp_path / 'data'}"
    app.conclude(finished, data, open_dataset(data))
    printed = capsys.readouterr().out
    assert "LEARN orders each user's impressions better" in printed
    assert "No report: it needs matplotlib; pip install matplotlib." in printed
    assert not (finished / "report.html").exists()
