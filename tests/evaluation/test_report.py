"""The report of a small run, read as files."""

import base64
import dataclasses
import hashlib
import html
import json
import re
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import jinja2
import markdown
import markdown_it
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from report_run import HOSTILE, make_predictions, manifest, retrieval_rows

from learn_torchrec.apps import evaluate_ab, evaluate_auc, report
from learn_torchrec.errors import UserError
from learn_torchrec.evaluation.predictions import Predictions
from learn_torchrec.evaluation.report.calibration import calibration_bins
from learn_torchrec.evaluation.report.outcomes import SIMULATED
from learn_torchrec.evaluation.report.parts import Report, Section, Table
from learn_torchrec.evaluation.report.render import to_html, to_json, to_markdown
from learn_torchrec.evaluation.report.run import read_run
from learn_torchrec.evaluation.report.vectors import (
    item_groups,
    mean_cosine,
    neighbours_kept,
    two_dimensions,
)


def test_every_part_of_the_run_is_there(page: Path, finished_run: Path) -> None:
    body = json.loads(page.with_suffix(".json").read_text())
    metrics = json.loads((finished_run / "ranking.json").read_text())
    first = body["tables"]["ranking-metrics"][0]
    assert first["uauc"] == metrics["ranking"]["baseline"]["all"]["uauc"]  # unrounded
    difference = metrics["ranking_difference"]["learn-baseline"]["all"]["auc"]
    row = body["tables"]["difference-learn-baseline"][0]
    assert row["points"] == 100 * difference["difference"]
    assert row["p (Holm)"] == difference["p_adjusted"]
    hits = {
        name: [(row["ranked by"], row["h@50"], row["targets"]) for row in rows]
        for name, rows in body["tables"].items()
        if name.startswith(("retrieval", "new", "repeated", "tail"))
    }
    assert hits == {
        "retrieval-metrics": [("LEARN", 0.25, 9), ("popularity", 0.0625, 9)],
        "new_targets-metrics": [("LEARN", 0.125, 4), ("popularity", 0.0625, 4)],
        "repeated_targets-metrics": [("LEARN", 0.25, 5), ("popularity", 0.0625, 5)],
    }  # no target is of the tail
    assert {"predictions_learn", "predictions_baseline"} == {
        row["predictions"] for row in body["tables"]["calibration-bins"]
    }
    facts = {(r["stage"], r["fact"]): r["value"] for r in body["tables"]["facts"]}
    assert facts["predictions_learn", "coverage.item_vectors"] == "0.7500"
    text = page.read_text()
    for part in ("lift-learn-baseline-uauc", "curve-towers-training-loss"):
        assert f'id="{part}"' in text
    for part in ("map-before", "map-after", "calibration-curve", "ab-days"):
        assert f'id="{part}"' in text
    assert "&#34;test_from&#34;: &#34;80%&#34;" in text  # the resolved configuration


def test_html_markdown_and_json_hold_the_same_numbers(page: Path) -> None:
    body = json.loads(page.with_suffix(".json").read_text())
    value = body["tables"]["ranking-metrics"][3]["wuauc"]
    assert f">{value:.4f}</td>" in page.read_text()
    assert f"| {value:.4f} |" in page.with_suffix(".md").read_text()


def test_a_simulated_test_says_so_in_every_format(page: Path) -> None:
    assert json.loads(page.with_suffix(".json").read_text())["notices"] == [SIMULATED]
    for text in (page.read_text(), page.with_suffix(".md").read_text()):
        assert SIMULATED in text
        assert "A/B test, simulated" in text


class _References(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.outside: list[str] = []
        self.inside: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[str] = []

    def handle_starttag(self, tag, attrs) -> None:
        self.tags.append(tag)
        self.attributes += [name for name, _ in attrs]
        for name, value in attrs:
            if name == "id":
                self.ids.append(value)
            elif name in ("src", "href", "xlink:href"):
                inside = value.startswith(("#", "data:"))
                (self.inside if inside else self.outside).append(value)


def test_the_page_needs_no_network_and_no_id_twice(page: Path) -> None:
    text = page.read_text()
    found = _References()
    found.feed(text)
    assert found.outside == []
    assert "@import" not in text
    assert len(found.ids) == len(set(found.ids))
    targets = {link[1:] for link in found.inside if link.startswith("#")}
    assert targets <= set(found.ids)
    for target in re.findall(r"url\(#([^)]*)\)", text):
        assert target in found.ids
    assert "my &lt;b&gt;run" in text  # a name is text, never markup
    assert "<b>run" not in text


def test_what_users_name_reaches_the_page_as_text_only(tmp_path: Path) -> None:
    run = tmp_path / "<script>alert(3)"
    run.mkdir()
    random = np.random.default_rng(0)
    labels = random.integers(2, size=400)
    rows = {
        "user_id": random.integers(20, size=400),
        "label": labels,
        "cohort": [HOSTILE[row % 4] for row in range(400)],
    }
    files = []
    for name, gain in ((HOSTILE[0], 0.1), ("$x$ <b>", 0.5)):
        scores = (random.random(400) + gain * labels) / (1 + gain)
        path = run / f"{len(files)}.parquet"
        pq.write_table(pa.table(rows | {"score": scores}), path)
        files.append(f"{name}={path}")
    make_predictions(run / "<img src=x onerror=alert(4)>", 0.5)
    out = ["--out", str(run / "ranking.json"), "--resamples=20"]
    evaluate_auc.main(["--predictions", *files, *out, "--cohort-column=cohort"])
    outcomes = {
        "user_id": range(400),
        "arm": ["control", "treatment"] * 200,
        "day": [0] * 400,
        "impressions": [1] * 400,
        "conversions": labels,
        "revenue": labels,
        "cohort": [HOSTILE[row // 2 % 4] for row in range(400)],
    }
    pq.write_table(pa.table(outcomes), tmp_path / "ab.parquet")
    ab = tmp_path / "ab.json"
    command = ["--outcomes", str(tmp_path / "ab.parquet"), "--out", str(ab)]
    columns = ["--user-cohort-column=cohort", "--set", "ab.resamples=20"]
    evaluate_ab.main([*command, *columns])
    page = tmp_path / "report.html"
    report.main(["--run", str(run), "--ab", str(ab), "--out", str(page)])

    text = page.read_text()
    found = _References()
    found.feed(text)
    assert found.tags.count("script") == 1  # the page's own
    assert not {"img", "b"} & set(found.tags)
    assert not any(name.startswith("on") for name in found.attributes)
    assert len(found.ids) == len(set(found.ids))
    assert all(re.fullmatch(r"[\w.-]+", name, re.ASCII) for name in found.ids)
    for name in HOSTILE[:3]:
        assert html.escape(name, quote=False) in text  # in a drawing
        assert str(markup_of(name)) in text  # and in a table
    assert "$a_b$ {{ 7 * 7 }} url(#x)" in text
    drawings = re.findall(r"<svg.*?</svg>", text, re.DOTALL)
    assert len(drawings) > 4
    for drawing in drawings:
        assert "<script" not in drawing
        ElementTree.fromstring(drawing)  # well-formed: "\x07" would not be


def markup_of(text: str) -> str:
    return jinja2.Environment(autoescape=True).from_string("{{ x }}").render(x=text)


def test_the_page_allows_no_script_but_its_own(page: Path) -> None:
    text = page.read_text()
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy[1]
    assert "default-src 'none'" in policy[1]
    (style,) = re.findall(r"<style>(.*?)</style>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert f"style-src 'sha256-{digest}'" in policy[1]
    assert "unsafe" not in policy[1]
    assert " style=" not in text


def rendered(text: str) -> Iterator[str]:
    """Yield Markdown as HTML by two libraries, neither of which cleans it."""
    yield markdown_it.MarkdownIt("gfm-like", {"html": True, "linkify": False}).render(
        text
    )
    yield markdown.markdown(text, extensions=["tables", "fenced_code"])


HOSTILE_MARKDOWN = [
    *HOSTILE,
    *("[x](javascript:alert(1))", "![x](http://evil/x.png)", "<http://evil/>"),
    *("a | b", "```\n<script>alert(1)</script>\n```", "# x", "1. x", "> x", "***x***"),
    *("a\n\n<script>alert(1)</script>", "&lt;b&gt;", "[x]: http://evil", "_x_ `x`"),
    *("\x1b[2J\u202e\ud800", "    code", "- x", "x\n===", "\\<b>", "|---|", "<!-- x"),
]


@pytest.mark.parametrize("name", HOSTILE_MARKDOWN)
def test_what_users_name_is_text_in_markdown_too(name: str) -> None:
    table = Table(
        name=name, title=name, columns=[name, "b"], formats=["", ""], rows=[[name, 1]]
    )
    plain = dataclasses.replace(table, name="x", title="x", columns=["x", "b"])
    plain = dataclasses.replace(plain, rows=[["x", 1]])

    def tags(text: str, one: Table) -> list[list[str]]:
        section = Section(
            name=text, title=text, text=[text, text], tables=[one], code=text
        )
        made = Report(
            title=text,
            subtitle=text,
            notices=[text],
            sections=[section],
            left_out=[text],
        )
        assert to_html(made).encode()
        found = []
        for page in rendered(to_markdown(made)):
            parser = _References()
            parser.feed(page)
            found.append([*parser.tags, *parser.attributes])
        return found

    assert tags(name, table) == tags("x", plain)


def test_markdown_shows_the_text_itself() -> None:
    for text in ("a_b *c* [d](e) <f> g|h", "1. p < 0.05", "-0.5 &amp; `x` \\y"):
        made = Report(title=text, subtitle=text, notices=[], sections=[])
        page, _ = rendered(to_markdown(made))
        assert page == (
            f"<h1>{html.escape(text, quote=False)}</h1>\n"
            f"<p>{html.escape(text, quote=False)}</p>\n"
        )


@pytest.mark.parametrize(
    "name",
    [
        "predictions_learn/predictions.parquet",
        "vectors/items/vectors-00000.npy",
        "content/id_keys.npy",
        "predictions_baseline/config.json",
        "towers/manifest.json",
    ],
)
def test_what_is_not_what_was_written_is_refused(
    finished_run: Path, tmp_path: Path, name: str
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    read_run(run)
    path = run / name
    body = bytearray(path.read_bytes())
    body[len(body) // 2] ^= 1
    path.write_bytes(body)
    with pytest.raises(UserError, match=path.name):
        read_run(run)


def test_tasks_have_sections_of_their_own(tmp_path: Path) -> None:
    metrics = {"auc": 0.5, "undcg": 0.75, "rows": 2, "users_kept": 1}
    gain = {"difference": 0.1, "low": 0.0, "high": 0.2, "p_value": 0.5}
    body = {
        "ranking": {"learn": {"all": metrics, "user_cold": metrics}},
        "ranking_difference": {"learn-old": {"all": {"undcg": gain}}},
    }
    ranked = {"tasks": {"cvr": body, "ctr": body}, "settings": {}}
    (tmp_path / "ranking.json").write_text(json.dumps(ranked))
    made = read_run(tmp_path)
    assert [one.title for one in made.sections] == [
        *("Ranking in detail: cvr", "Ranking in detail: ctr")
    ]
    tables = to_json(made)["tables"]
    rows = tables["ranking-metrics-ctr"]
    assert [row["cohort"] for row in rows] == ["all", "cold-start users"]
    assert rows[0]["undcg"] == 0.75
    assert tables["difference-learn-old-cvr"][0]["points"] == pytest.approx(10)
    drawn = [one.name for section in made.sections for one in section.figures]
    assert drawn == ["lift-learn-old-undcg-cvr", "lift-learn-old-undcg-ctr"]


def test_calibration_of_every_task(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    rows = {
        "user_id": np.arange(50),
        "click": random.integers(2, size=50),
        "label": random.integers(2, size=50),
        "score_ctr": random.random(50),
        "score_cvr": random.random(50),
    }
    stage = tmp_path / "predictions"
    stage.mkdir()
    pq.write_table(pa.table(rows), stage / "predictions.parquet")
    tasks = [
        {"name": "ctr", "label": "click", "score": "score_ctr"},
        {"name": "cvr", "label": "label", "score": "score_cvr"},
    ]
    manifest(stage, "predictions", {"tasks": tasks})
    rows_drawn = to_json(read_run(tmp_path))["tables"]["calibration-bins"]
    names = [row["predictions"] for row in rows_drawn]
    assert names == ["predictions, ctr"] * 10 + ["predictions, cvr"] * 10
    mean = np.mean(
        [row["mean score"] for row in rows_drawn if row["predictions"].endswith("ctr")]
    )
    assert mean == pytest.approx(rows["score_ctr"].mean())


def test_predictions_without_labels_have_no_calibration(tmp_path: Path) -> None:
    rows = {"user_id": [1, 2], "item_id": [1, 2], "score": [0.1, 0.9]}
    for name, labels in (("none", {}), ("null", {"label": pa.nulls(2, pa.int64())})):
        (tmp_path / name).mkdir()
        pq.write_table(pa.table(rows | labels), tmp_path / name / "predictions.parquet")
        manifest(tmp_path / name, "predictions", {})
    made = read_run(tmp_path)
    assert [section.name for section in made.sections] == ["data"]
    assert "No section on calibration: the run lacks predictions with labels." in (
        made.left_out
    )
    assert made.summary[0].text == [
        "Not evaluated: the run's predictions were not evaluated; evaluation needs "
        "labels."
    ]


def test_a_directory_that_is_no_run_is_refused_with_a_hint(
    finished_run: Path, tmp_path: Path
) -> None:
    out = str(tmp_path / "r.html")
    for directory, hint in (
        (finished_run.parent, f"name {finished_run}"),
        (finished_run / "content", "it is an artefact of one stage"),
        (tmp_path, "name what `quickstart --out` made"),
    ):
        with pytest.raises(UserError) as caught:
            report.main(["--run", str(directory), "--out", out])
        assert str(caught.value).startswith(f"{directory}: no metrics.json, ranking")
        assert hint in str(caught.value)


def test_an_empty_and_a_damaged_run_are_refused(tmp_path: Path) -> None:
    out = str(tmp_path / "r.html")
    with pytest.raises(UserError, match=r"no metrics.json, ranking.json or retr"):
        report.main(["--run", str(tmp_path), "--out", out])
    (tmp_path / "metrics.json").write_text("{")
    with pytest.raises(UserError, match=r"metrics.json: not valid JSON"):
        report.main(["--run", str(tmp_path), "--out", out])
    with pytest.raises(UserError, match=r"name an .html file"):
        report.main(["--run", str(tmp_path), "--out", str(tmp_path / "r.pdf")])
    with pytest.raises(UserError, match="no such directory"):
        report.main(["--run", str(tmp_path / "none"), "--out", out])


def test_a_report_never_takes_the_place_of_what_it_is_made_from(
    finished_run: Path, page: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    (run / "metrics.json").write_text('{"seconds": {}}')
    ab = run / "ab.json"
    shutil.copy(page.parent / "ab.json", ab)
    (tmp_path / "link").symlink_to(run)
    before = contents(run)
    for out in (
        run / "ab.html",
        run / "metrics.html",
        run / "ranking.htm",
        tmp_path / "link" / "retrieval.html",
        run / "towers" / "manifest.html",
        run / "predictions_learn" / "config.html",
    ):
        command = ["--run", str(run), "--ab", str(ab), "--out", str(out)]
        refused = r"\.json: is an input \(a file of --run: |lies inside the artefact"
        with pytest.raises(UserError, match=refused):
            report.main(command)
    assert contents(run) == before
    for _ in range(2):  # an older report is no part of the run
        report.main(["--run", str(run), "--out", str(run / "report.html")])
    assert set(contents(run)) - set(before) == {
        run / f"report.{suffix}" for suffix in ("html", "md", "json")
    }


def contents(directory: Path) -> dict[Path, bytes]:
    files = (path for path in directory.rglob("*") if path.is_file())
    return {path: path.read_bytes() for path in files}


def test_another_json_is_no_ab_test(finished_run: Path, tmp_path: Path) -> None:
    out = ["--run", str(finished_run), "--out", str(tmp_path / "r.html")]
    other = tmp_path / "ab.json"
    for body in ("{}", (finished_run / "ranking.json").read_text()):
        other.write_text(body)
        with pytest.raises(UserError, match=r"ab\.json: no 'sample_ratio' in it; name"):
            report.main([*out, "--ab", str(other)])


def test_what_is_undefined_everywhere_is_not_drawn(tmp_path: Path) -> None:
    columns = {
        "user_id": [1, 2, 3, 4],
        "arm": ["control", "control", "treatment", "treatment"],
        "day": [0] * 4,
        "impressions": [1] * 4,
        "conversions": [0, 0, 1, 1],
        "revenue": [0.0, 0.0, 5.0, 5.0],
    }
    pq.write_table(pa.table(columns), tmp_path / "ab.parquet")
    files = ["--outcomes", str(tmp_path / "ab.parquet"), "--out"]
    ab = tmp_path / "ab.json"
    evaluate_ab.main([*files, str(ab), "--set", "ab.resamples=5"])
    # One row a user: no user has both classes, so only the pooled AUC is defined.
    rows = {"user_id": [1, 2, 3], "label": [0, 1, 0], "score": [0.1, 0.9, 0.5]}
    for name in ("a", "b"):
        pq.write_table(pa.table(rows), tmp_path / f"{name}.parquet")
    named = [f"{name}={tmp_path / name}.parquet" for name in ("a", "b")]
    ranking_path = str(tmp_path / "ranking.json")
    evaluate_auc.main(
        ["--predictions", *named, "--out", ranking_path, "--resamples=20"]
    )
    made = read_run(tmp_path, ab)
    drawn = {part.name: [one.name for one in part.figures] for part in made.sections}
    assert drawn == {"ranking": ["lift-b-a-auc"], "ab": []}
    assert "–" in to_markdown(made)


def test_a_stage_that_ran_again_is_newer_than_the_summary(tmp_path: Path) -> None:
    def one(value: float) -> dict:
        values = dict.fromkeys(
            ("auc", "uauc", "wuauc", "ne", "log_loss", "calibration"), value
        )
        return {"learn": {"all": {"rows": 2, "users_kept": 1, **values}}}

    summary = {"ranking": one(0.5), "retrieval": retrieval_rows(targets=1, learn=0.5)}
    zero = {"difference": 0.0, "low": 0.0, "high": 0.0, "p_value": 1.0}
    summary["ranking_difference"] = {
        "learn-old": {"all": dict.fromkeys(("auc", "uauc", "wuauc"), zero)}
    }
    (tmp_path / "metrics.json").write_text(json.dumps(summary))
    tables = to_json(read_run(tmp_path))["tables"]
    assert tables["ranking-metrics"][0]["auc"] == 0.5
    assert tables["retrieval-metrics"][0]["h@50"] == 0.5
    (tmp_path / "ranking.json").write_text(json.dumps({"ranking": one(0.75)}))
    newer = {"retrieval": retrieval_rows(targets=1, learn=0.75)}
    (tmp_path / "retrieval.json").write_text(json.dumps(newer))
    tables = to_json(read_run(tmp_path))["tables"]
    assert tables["ranking-metrics"][0]["auc"] == 0.75
    assert tables["retrieval-metrics"][0]["h@50"] == 0.75
    assert "difference-learn-old" not in tables  # it was of the older predictions


def test_the_report_says_how_the_numbers_were_counted(tmp_path: Path) -> None:
    rows = {"user_id": [1, 1, 2], "label": [0, 1, 0], "score": [0.1, 0.9, 0.5]}
    pq.write_table(pa.table(rows), tmp_path / "a.parquet")
    out = tmp_path / "ranking.json"
    command = ["--predictions", f"a={tmp_path / 'a.parquet'}", "--out", str(out)]

    def said() -> str:
        return read_run(tmp_path).sections[0].text[0]

    evaluate_auc.main(command)
    usual = said()
    assert usual.endswith(
        "WUAUC weights it by impressions. Ties count one half, users of one class are "
        "left out."
    )
    names = ("user_weight=positives", "ties=negative", "single_class=half")
    evaluate_auc.main([*command, *(f"--set=convention.{name}" for name in names)])
    assert said().endswith(
        "WUAUC weights it by positives. Ties go to the negative row, users of one "
        "class count as one half."
    )
    body = json.loads(out.read_text())
    del body["settings"]  # older metrics
    out.write_text(json.dumps(body))
    assert said() == usual


def test_items_are_grouped_by_the_bounds_of_the_run(tmp_path: Path) -> None:
    stage = tmp_path / "predictions"
    stage.mkdir()
    rows = {
        "user_id": [1, 1, 2, 2],
        "item_id": [1, 2, 3, 3],
        "item_activity": [0, 5, 30, 40],
        "label": [0, 1, 0, 1],
        "score": [0.1, 0.9, 0.5, 0.5],
    }
    pq.write_table(pa.table(rows), stage / "predictions.parquet")

    def groups(bounds: dict) -> dict[str, list[int]]:
        made = {"predictions": {"kind": "predictions", "config": {"cohorts": bounds}}}
        masks = item_groups(tmp_path, made, [1, 2, 3, 4])
        return {name: [*np.flatnonzero(mask) + 1] for name, mask in masks.items()}

    names = ("cold-start items", "long-tail items", "other items", "not in the test")
    usual = dict(zip(names, ([1], [2], [3], [4]), strict=True))
    assert groups({}) == usual  # the last activity of item 3 is 40
    wider = dict(zip(names, ([1, 2], [3], [], [4]), strict=True))
    assert groups({"item_long_tail_from": 6, "item_others_from": 50}) == wider
    with pytest.raises(UserError, match=r"manifest.json: unknown name item_from"):
        groups({"item_from": 1})


def test_parts_that_are_missing_have_no_section(tmp_path: Path) -> None:
    (tmp_path / "towers").mkdir()
    (tmp_path / "towers" / "config.json").write_text("{}")
    manifest(tmp_path / "towers", "towers", {"items": 3})
    made = read_run(tmp_path)
    assert [section.name for section in made.sections] == ["data", "configuration"]
    assert "–" in to_markdown(made)  # the seconds of a stage that no one measured


def test_bars_in_cells_do_not_break_markdown() -> None:
    table = Table(
        name="t", title="T", columns=["a", "b"], formats=["", ".1f"], rows=[["x|y", 2]]
    )
    section = Section(name="s", title="S", tables=[table], code="{}")
    made = Report(title="R", subtitle="", notices=[], sections=[section])
    assert "| x\\|y | 2.0 |" in to_markdown(made)
    assert "<details" in to_html(made)


def test_calibration_bins_by_hand() -> None:
    scores = np.repeat([0.1, 0.6], [30, 10])
    labels = np.concatenate([np.ones(6), np.zeros(24), np.ones(9), np.zeros(1)])
    columns = {"source": "", "user_ids": pa.array([1] * 40), "labels": labels}
    bins = calibration_bins(Predictions(scores=scores, **columns))
    assert bins == [
        (pytest.approx(0.1), pytest.approx(0.2), 30),
        (pytest.approx(0.6), pytest.approx(0.9), 10),
    ]
    rates = np.where(np.arange(40) < 30, 0.5, 1.0)  # 24 of the negatives stand for 48
    sampled = calibration_bins(
        Predictions(scores=scores, sampling_rates=rates, **columns)
    )
    assert sampled == [(pytest.approx(0.1), pytest.approx(6 / 54), 30), bins[1]]
    assert calibration_bins(Predictions(scores=scores + 1, **columns)) == []
    for padding in (-1.0, np.nan):
        padded = Predictions(
            source="",
            user_ids=pa.array([1] * 41),
            labels=np.append(labels, 1),
            scores=np.append(scores, padding),
            weights=np.append(np.ones(40), 0),
        )
        assert calibration_bins(padded) == bins
    nothing_left = Predictions(scores=scores, weights=np.zeros(40), **columns)
    assert calibration_bins(nothing_left) == []


def test_what_is_said_of_vectors_by_hand() -> None:
    assert mean_cosine(np.array([[1.0, 0], [2, 0], [0, 3]])) == pytest.approx(1 / 3)
    corners = np.array([[0.0, 0], [0, 1], [9, 9], [9, 10]])
    assert neighbours_kept(corners, corners, 1) == 1
    swapped = corners[[0, 2, 1, 3]]
    assert neighbours_kept(corners, swapped, 1) == 0
    flat = two_dimensions(np.outer(np.arange(5.0), [1, 1, 1]))
    assert np.abs(flat[:, 1]).max() < 1e-9
    ends, steps = abs(flat[0, 0] - flat[4, 0]), abs(flat[0, 0] - flat[1, 0])
    assert ends == pytest.approx(4 * steps)
