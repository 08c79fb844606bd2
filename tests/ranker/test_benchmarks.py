"""The arithmetic of the ranker's benchmark and study, by hand."""

import numpy as np
import pytest

from learn_torchrec.apps.benchmarks import ranker, ranking_study
from learn_torchrec.ranker.config import RankerConfig


def test_ratios_compare_within_a_round_and_take_the_median():
    def measured(dlrm, on):
        one = {"dlrm": dlrm, "off": 2 * dlrm, "statistics": on}
        one |= {"attention": on / 2, "paper": on}
        one |= {"off_parquet": dlrm, "statistics_parquet": 0.9 * on}
        return {1: one, 2: {name: 3 * rate for name, rate in one.items()}}

    # A slow round leaves the ratios of the others alone.
    found = ranker.ratios([measured(10, 9), measured(1, 0.8), measured(100, 95)])
    assert found["off_over_dlrm"] == 2
    assert found["statistics_over_dlrm"] == pytest.approx(0.9)
    assert found["attention_over_dlrm"] == pytest.approx(0.45)
    assert found["parquet_over_memory"] == pytest.approx(0.9)
    assert found["off_parquet_over_memory"] == 0.5
    assert found["two_ranks_over_one"] == found["dlrm_two_ranks_over_one"] == 3


def test_equal_gains_have_no_spread():
    found = ranking_study.bootstrap(np.full(5, 0.01), np.arange(1.0, 6.0))
    assert found["uauc"] == pytest.approx([1, 1])
    assert found["wuauc"] == pytest.approx([1, 1])
    nobody = ranking_study.bootstrap(np.empty(0), np.empty(0))
    assert nobody == {"uauc": None, "wuauc": None}


def test_the_interval_is_of_the_mean_over_users():
    gains = np.random.default_rng(0).normal(0.02, 0.1, 400)
    low, high = ranking_study.bootstrap(gains, np.ones(400))["uauc"]
    half_width = 100 * 1.96 * gains.std() / 20
    assert (high - low) / 2 == pytest.approx(half_width, rel=0.1)
    assert (high + low) / 2 == pytest.approx(100 * gains.mean(), abs=0.1)


def test_every_draw_is_a_valid_configuration():
    space = {**ranking_study._SPACE, **ranking_study._LEARN_SPACE}
    for place in range(4):
        settings = {name: values[place % len(values)] for name, values in space.items()}
        changed = ranking_study.with_settings(RankerConfig(), settings, seed=3)
        assert changed.training.seed == 3
        assert changed.learn.paper.inputs == settings["learn.paper.inputs"]
        assert (
            changed.learn.paper.stop_gradient is settings["learn.paper.stop_gradient"]
        )
        assert changed.tables.learning_rate == settings["tables.learning_rate"]
