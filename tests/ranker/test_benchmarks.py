"""The arithmetic of the ranker's benchmark, by hand."""

import pytest

from learn_torchrec.apps.benchmarks import ranker


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
