"""What `prepare` counts once equals what a rank would count from the whole log."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from learn_torchrec.apps import main as command_line
from learn_torchrec.apps.predict import cohort_activity
from learn_torchrec.datasets import open_dataset
from learn_torchrec.datasets.adapters.base import Dataset
from learn_torchrec.datasets.moments import Moments
from learn_torchrec.datasets.preparation import day_counts
from learn_torchrec.datasets.split import SplitConfig, resolve_times, validation_from
from learn_torchrec.errors import UserError
from learn_torchrec.evaluation.cohorts import CohortConfig
from learn_torchrec.presets import Run

pytest.importorskip("duckdb")


def prepared(market: Path, out: Path, *options: str) -> Dataset:
    """Prepare the whole log, without leaving out a row."""
    settings = ("prepare.drop_repeats=false", "prepare.target_days=10")
    given = ["--data", f"parquet:{market}", "--out", str(out), "--set", *settings]
    command_line.main(["prepare", *given, *options])
    return open_dataset(f"prepared:{out}#impressions=parquet:{market}")


@pytest.fixture
def whole(market: Path) -> Dataset:
    return open_dataset(f"parquet:{market}")


@pytest.fixture
def counted(market: Path, tmp_path: Path) -> Dataset:
    return prepared(market, tmp_path / "prepared")


# --- Moments ------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["lower", "higher"])
@pytest.mark.parametrize("seed", range(3))
def test_quantiles_are_those_of_numpy(seed, method) -> None:
    random = np.random.default_rng(seed)
    times = random.integers(0, 40, random.integers(1, 200))
    moments = Moments.of(times)
    assert len(moments) == len(times)
    assert (moments.first, moments.last) == (times.min(), times.max())
    for share in [0, 0.5, 0.8, 1, 1 / 3, *random.random(50)]:
        expected = np.quantile(times, share, method=method)
        assert moments.quantile(share, method) == expected
    inside = times[(times >= 10) & (times < 20)]
    kept = moments.between(10, 20)
    assert kept.ends.tolist() == Moments.of(inside).ends.tolist()
    assert kept.seconds.tolist() == sorted(set(inside.tolist()))
    assert len(moments.between(50, 60)) == len(moments.between(5, 5)) == 0


def test_parts_are_counted_together(monkeypatch) -> None:
    monkeypatch.setattr("learn_torchrec.datasets.moments._COUNTED", 7)
    parts = [np.array(part) for part in ([5, 1, 5], [], [9, 1, 3, 3, 3], [0], [9])]
    moments = Moments.of_parts(parts)
    assert moments.seconds.tolist() == [0, 1, 3, 5, 9]
    assert moments.ends.tolist() == [1, 3, 6, 8, 10]


def test_a_share_beyond_all_is_refused() -> None:
    with pytest.raises(UserError, match=r"split.towers_until=120%: write a share"):
        resolve_times(SplitConfig(towers_until="120%"), np.arange(9))


def test_moments_are_those_of_the_log(whole, counted, monkeypatch) -> None:
    split = SplitConfig(towers_until="33%", test_from="77%")
    times = resolve_times(split, whole.times)
    cut = validation_from(whole.impression_times, times, 0.2)
    monkeypatch.setattr(type(counted), "times", None)  # nothing reads them
    monkeypatch.setattr(type(counted), "impression_times", None)
    assert resolve_times(split, counted.moments) == times
    assert validation_from(counted.impression_moments, times, 0.2) == cut
    assert isinstance(counted.moments.seconds.base, np.memmap)
    assert isinstance(counted.impression_moments.ends.base, np.memmap)


def test_other_impressions_are_counted_anew(market, counted) -> None:
    path = market / "impressions.parquet"
    pq.write_table(pq.read_table(path).slice(5), path)
    again = open_dataset(f"prepared:{counted.location}#impressions=parquet:{market}")
    assert len(again.impression_moments) == 2995
    assert len(Moments.open(Path(counted.location.path) / "impression_moments")) == 3000


# --- Activity -----------------------------------------------------------------------


@pytest.mark.parametrize("actions", [("like",), ("skip", "like"), ("none",)])
@pytest.mark.parametrize("window_days", [1, 9, 400])
@pytest.mark.parametrize("at_once", [1 << 25, 100])
def test_activity_is_that_of_the_log(
    actions, window_days, at_once, market, whole, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr(day_counts, "_SORTED", at_once)
    monkeypatch.setattr(day_counts, "_SCANNED", at_once)
    counted = prepared(market, tmp_path / "prepared")
    cohorts = CohortConfig(window_days=window_days)
    run = Run(split=SplitConfig(actions=actions), cohorts=cohorts)
    rows = whole.impressions
    expected = cohort_activity(whole, run).add_to(rows)
    monkeypatch.setattr(type(counted), "interactions", None)  # nothing reads them
    found = cohort_activity(counted, run).add_to(counted.impressions)
    for name in ("user_activity", "item_activity"):
        assert found[name].to_pylist() == expected[name].to_pylist()
    assert max(found["user_activity"].to_pylist()) > 0


def test_unknown_ids_have_no_events(counted) -> None:
    counts = counted.day_counts(["like"])
    for one, known in ((counts.users, 3), (counts.items, 105)):
        found = one.before_day([10**6, known, -1], [10**9] * 3, 100_000)
        assert found[1] > 0
        assert found[[0, 2]].tolist() == [0, 0]
        with pytest.raises(UserError, match="log"):
            one.before_day(["a"], [5], 7)


def test_a_log_that_an_earlier_version_prepared_is_counted_anew(
    counted, whole, market
) -> None:
    files = counted.manifest.files
    for name in [name for name in files if "/" in name]:
        del files[name]
    assert counted.day_counts(["like"]) is None
    assert counted.moments.ends.tolist() == whole.moments.ends.tolist()
    assert len(counted.impression_moments) == 3000


def test_a_damaged_count_is_one_line(counted) -> None:
    path = Path(counted.location.path) / "item_days" / "item_keys.npy"
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(UserError, match=r"item_keys\.npy: damaged"):
        counted.day_counts(["like"])


# --- The ranker's stages --------------------------------------------------------------


def test_predictions_are_those_of_the_log(market, tmp_path) -> None:
    prepared(market, tmp_path / "prepared")
    data = f"prepared:{tmp_path / 'prepared'}#impressions=parquet:{market}"
    settings = [
        *("--set=ranker.training.batch_size=64", "--set=ranker.training.epochs=1"),
        *("--set=ranker.features.dense=hour", "--set=ranker.validation.share=0.2"),
        "--set=ranker.features.sparse=user_id,item_id",
    ]
    tables = []
    for name, source in (("whole", f"parquet:{market}"), ("counted", data)):
        ranker, out = tmp_path / f"{name}-ranker", tmp_path / name
        command = ["--data", source, "--out", str(ranker), *settings]
        command_line.main(["train-ranker", *command])
        command = ["--data", source, "--out", str(out), "--ranker", str(ranker)]
        command_line.main(["predict", *command])
        tables.append(pq.read_table(out / "predictions.parquet"))
    assert tables[0].num_rows > 100
    assert tables[0].equals(tables[1])


def test_impressions_that_change_while_they_are_read_are_refused(
    market, counted
) -> None:
    counted.fingerprints("impressions.parquet")
    counted.refuse_changed()
    path = market / "impressions.parquet"
    pq.write_table(pq.read_table(path).slice(5), path)
    with pytest.raises(UserError, match=r"impressions\.parquet: changed while"):
        counted.refuse_changed()
