"""A run's settings: what is new, at a lower rate, in batches that waste no row."""

import pytest

from learn_torchrec.apps.refreshing.settings import batch_that_fits, run_of
from learn_torchrec.config import apply_overrides
from learn_torchrec.presets import Run
from learn_torchrec.refresh.runs import RunPlan


@pytest.mark.parametrize(
    ("rows", "batch", "ranks", "wanted"),
    [(1000, 128, 1, 125), (128, 128, 1, 128), (129, 128, 1, 64), (5, 128, 2, 4)],
)
def test_batches_take_nearly_all_rows(rows, batch, ranks, wanted):
    assert batch_that_fits(rows, batch, ranks) == wanted


def plan_of(base):
    return RunPlan(
        number=2,
        base=base,
        data={},
        since=None if base is None else 100,
        towers_until=200,
        test_from=300,
        settings="",
    )


def test_the_first_run_differs_in_its_times_alone():
    shared = Run()
    run = run_of(plan_of(None), shared, rows=10_000, ranks=1)
    assert (run.split.towers_until, run.split.test_from) == ("200", "300")
    assert (run.towers, run.ranker, run.export) == (
        shared.towers,
        shared.ranker,
        shared.export,
    )


def test_later_runs_learn_what_is_new():
    shared = apply_overrides(
        Run(),
        [
            *("refresh.learning_rate=0.1", "refresh.replay_users=0.25"),
            *("ranker.validation.share=0.1", "ranker.training.epochs=9"),
        ],
    )
    run = run_of(plan_of(1), shared, rows=10_000, ranks=1)
    assert run.towers.training.active_from == "100"
    assert run.towers.training.replay == 0.25
    assert run.export.since == "200"
    assert (run.ranker.training.epochs, run.ranker.validation.share) == (1, 0.0)
    assert run.ranker.training.decay == "constant"
    for changed, before in (
        (run.ranker.optimizer, shared.ranker.optimizer),
        (run.ranker.tables, shared.ranker.tables),
        (run.towers.optimizer, shared.towers.optimizer),
    ):
        assert changed.learning_rate == pytest.approx(0.1 * before.learning_rate)
