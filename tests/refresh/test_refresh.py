"""A refresh learns what is new on top of the served run, and serves it whole."""

import json
import logging

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from daily_market import DAY, NEW_ITEMS

from learn_torchrec.apps import refresh, rollback
from learn_torchrec.artifact import read_manifest, verify
from learn_torchrec.errors import UserError
from learn_torchrec.ranker.learn.vectors import LearnVectors
from learn_torchrec.refresh.runs import Runs


@pytest.fixture
def run(days, tmp_path, caplog):
    """Return a function that refreshes at the end of a day; its messages, and runs."""
    until, settings = days
    out = tmp_path / "daily"
    caplog.set_level(logging.INFO, logger="learn_torchrec")

    def refreshed(day, *more):
        caplog.clear()
        given = [] if (out / "config.json").exists() else settings
        if given or more:
            given = ["--set", *given, *more]
        refresh.main(["--data", until(day), "--run", str(out), *given])
        return caplog.text

    return refreshed, Runs(out)


def test_days_follow_one_another(run, caplog):
    refreshed, runs = run
    assert "run 001 is served" in refreshed(55)
    assert "nothing new since run 001" in refreshed(55)
    assert runs.numbers() == [1]
    said = refreshed(57)
    assert "run 002 is served" in said
    assert "the optimizer goes on" in said
    served = runs.directory / "current"
    for kind in ("content", "towers", "vectors", "ranker"):
        verify(served / kind, kind)
    # Only the new items were encoded, and they have vectors in this very refresh.
    assert read_manifest(served / "content", "content").facts["encoded"] == 4
    ids = LearnVectors.open(served / "vectors").items.index.ids
    assert set(NEW_ITEMS) <= set(ids.to_pylist())
    # The ranker learned from what came after the first run, and from nothing later.
    first, second = runs.plan(1), runs.plan(2)
    assert second.towers_until == first.test_from
    assert second.test_from - first.test_from == pytest.approx(2 * DAY, abs=DAY / 4)
    shown = pq.read_table(runs.directory.parent / "live" / "impressions.parquet")
    times = shown["timestamp"].to_numpy()
    fresh = (times >= first.test_from) & (times < second.test_from)
    assert read_manifest(served / "ranker", "ranker").facts["rows"] in (
        fresh.sum(),
        fresh.sum() - 1,  # two batches of an odd number
    )
    # The predictions that decided are of the newest hours alone.
    scored = pq.read_table(served / "predictions" / "predictions.parquet")
    assert scored["timestamp"].to_numpy().min() >= second.test_from
    cold = scored.filter(pc.is_in(scored["item_id"], value_set=pa.array(NEW_ITEMS)))
    assert (cold["item_activity"].to_numpy() < 10).all()
    assert json.loads((served / "gate.json").read_text())["gates"][0]["passed"]
    log = (runs.directory / "refresh.log").read_text()
    assert log.count("is served, as") == 2


def test_a_run_that_fails_is_not_served_and_can_be_left_behind(run):
    refreshed, runs = run
    refreshed(55)
    for _ in range(2):  # the same data are not judged twice
        with pytest.raises(SystemExit) as ended:
            refreshed(57, 'refresh.gate=["uauc>=1"]')
        assert ended.value.code == 1
        assert runs.current() == 1
    assert runs.numbers() == [1, 2]
    # The next day goes on from the served run, and learns both days.
    refreshed(58)
    assert runs.current() == 3
    assert runs.plan(3).base == 1
    assert runs.plan(3).towers_until == runs.plan(1).test_from
    rollback.main(["--run", str(runs.directory)])
    assert runs.current() == 1
    with pytest.raises(SystemExit):  # the same data would give the same run
        refreshed(58)
    assert runs.current() == 1
    refreshed(59)
    assert runs.current() == 4
    assert runs.plan(4).base == 1
    with pytest.raises(UserError, match="--to 3: is no run that may be served"):
        rollback.main(["--run", str(runs.directory), "--to", "3"])


def test_without_anything_to_learn_it_says_so(run, days, tmp_path):
    refreshed, runs = run
    with pytest.raises(UserError, match=r"refresh\.test_hours=2000: .* hold out fewer"):
        refreshed(55, "refresh.test_hours=2000")
    refreshed(55)
    # All rows that are not held out were learned.
    said = refreshed(55, "refresh.test_hours=20")
    assert "nothing new since run 001: no impression" in said
    assert runs.numbers() == [1]
    with pytest.raises(UserError, match="serves no run yet"):
        rollback.main(["--run", str(tmp_path)])
    with pytest.raises(UserError, match="no such folder"):
        rollback.main(["--run", str(tmp_path / "nowhere")])
    interactions = days[0](57).partition(":")[2]
    (tmp_path / "live" / "impressions.parquet").unlink()
    with pytest.raises(UserError, match="has no impressions"):
        refresh.main(
            ["--data", f"parquet:{interactions}", "--run", str(tmp_path / "x")]
        )


def test_the_same_command_every_day_keeps_what_was_derived(days, tmp_path, monkeypatch):
    until, settings = days
    runs = Runs(tmp_path / "daily")
    features = 'ranker.features.sparse=[{"column": "item_id"}]'  # of a derived size
    command = ["--run", str(runs.directory), "--set", *settings, features]
    with monkeypatch.context() as patch:
        patch.setattr("learn_torchrec.refresh.runs.Runs.serve", _killed)
        with pytest.raises(KeyboardInterrupt):
            refresh.main(["--data", until(55), *command])
    for _ in range(2):  # what was made is served, and then nothing is new
        refresh.main(["--data", until(55), *command])
        assert (runs.current(), runs.numbers()) == (1, [1])
    refresh.main(["--data", until(57), *command])
    first, second = (
        json.loads((runs.path(number) / "config.json").read_text())["ranker"]
        for number in (1, 2)
    )
    assert first["features"] == second["features"]


def test_an_interrupted_refresh_goes_on(run, monkeypatch):
    refreshed, runs = run
    refreshed(55)
    for module in ("train_towers", "export_vectors", "train_ranker", "evaluate_auc"):
        with monkeypatch.context() as patch:
            patch.setattr(f"learn_torchrec.apps.{module}.main", _killed)
            with pytest.raises(KeyboardInterrupt):
                refreshed(57)
        assert runs.current() == 1
    before = (runs.path(2) / "ranker" / "manifest.json").stat().st_mtime_ns
    said = refreshed(57)
    assert "run 002 goes on" in said
    assert runs.current() == 2
    assert (runs.path(2) / "ranker" / "manifest.json").stat().st_mtime_ns == before
    # Other data in the meantime: what still fits is kept, the rest is made again.
    with monkeypatch.context() as patch:
        patch.setattr("learn_torchrec.apps.evaluate_auc.main", _killed)
        with pytest.raises(KeyboardInterrupt):
            refreshed(58)
    refreshed(59)
    assert runs.current() == 3
    assert runs.numbers() == [1, 2, 3]
    assert runs.plan(3).test_from > runs.plan(2).test_from + 1.5 * DAY


def _killed(*_):
    raise KeyboardInterrupt
