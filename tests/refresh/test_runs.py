"""Runs that follow one another: numbers, the served one, what is kept."""

import pytest

from learn_torchrec.errors import UserError
from learn_torchrec.refresh.runs import RunPlan, Runs


def planned(runs, number, base=None):
    plan = RunPlan(
        number=number,
        base=base,
        data={"items.parquet": "a"},
        since=None,
        towers_until=10,
        test_from=20,
        settings="s",
    )
    (runs.begin(plan) / "artefact").write_text(str(number))
    runs.judge(number, True)
    return plan


@pytest.fixture
def runs(tmp_path):
    return Runs(tmp_path / "daily")


def test_a_new_folder_serves_nothing(runs):
    assert runs.current() is None
    assert runs.numbers() == []
    assert runs.served() == []


def test_a_plan_is_read_as_it_was_written(runs):
    plan = planned(runs, 1)
    assert runs.plan(1) == plan
    assert runs.path(1).name == "001"
    whole = (runs.path(1) / "run.json").read_text()
    wrong = whole.replace('"number": 1', '"number": "x"')
    for text in ("{", "", "[]", "[" * 100_000, "{}", wrong):
        (runs.path(1) / "run.json").write_text(text)
        with pytest.raises(UserError, match=r"run\.json: damaged .* refresh again"):
            runs.plan(1)
        (runs.path(1) / "verdict.json").write_text(text)
        with pytest.raises(UserError, match=r"verdict\.json: damaged; .* again"):
            runs.verdict(1)


def test_the_link_always_leads_to_a_run(runs):
    planned(runs, 1)
    runs.serve(1)
    planned(runs, 2, base=1)
    (runs.directory / ".current.tmp").symlink_to("nowhere")  # of a killed switch
    runs.serve(2)
    assert runs.current() == 2
    assert str((runs.directory / "current").readlink()) == "runs/002"  # may be moved
    assert (runs.directory / "current" / "artefact").read_text() == "2"
    assert runs.before(2) == 1


def test_what_is_no_link_to_a_run_is_refused(runs):
    planned(runs, 1)
    link = runs.directory / "current"
    link.mkdir()
    with pytest.raises(UserError, match="no link to a run"):
        runs.current()
    link.rmdir()
    link.symlink_to("elsewhere")
    with pytest.raises(UserError, match="no run of the folder"):
        runs.current()
    link.unlink()
    link.symlink_to("runs/007")
    with pytest.raises(UserError, match="is gone"):
        runs.current()


def test_the_served_run_and_the_one_before_are_kept(runs):
    for number in range(1, 7):
        planned(runs, number, base=number - 1 or None)
    runs.serve(3)
    assert runs.prune(keep=2) == [1, 4]
    assert runs.numbers() == [2, 3, 5, 6]
    assert [path.name for path in runs.path(1).parent.glob(".*")] == []
    runs.serve(6)
    assert runs.prune(keep=2) == [2, 3]


def test_only_runs_that_passed_may_be_served(runs):
    for number in (1, 2, 3):
        planned(runs, number)
    runs.judge(2, False, "no good")
    assert runs.served() == [1, 3]
    assert runs.reason(2) == "no good"
    with pytest.raises(UserError, match="is the first run"):
        runs.before(1)
