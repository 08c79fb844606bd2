"""Impressions drawn from a log: hand-made visits, a naive reference, no future."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from learn_torchrec.apps import main as command_line
from learn_torchrec.datasets import open_dataset
from learn_torchrec.datasets.generated import drawn
from learn_torchrec.datasets.generated.drawn import DrawConfig, Drawing
from learn_torchrec.errors import UserError


def write(directory: Path, events: list[tuple], arrivals: dict | None = None) -> str:
    directory.mkdir(exist_ok=True)
    names = ("user_id", "item_id", "timestamp", "action")
    log = [dict(zip(names, event, strict=True)) for event in events]
    pq.write_table(pa.Table.from_pylist(log), directory / "interactions.parquet")
    items = {"item_id": list("abcdefgh"), "title": list("ABCDEFGH")}
    if arrivals:
        items["since"] = [arrivals.get(item) for item in items["item_id"]]
    pq.write_table(pa.table(items), directory / "items.parquet")
    return f"parquet:{directory}"


def draw(spec: str, **config: Any) -> tuple[list[dict], dict[str, int]]:
    drawing = Drawing(open_dataset(spec), DrawConfig(**config))
    rows = [row for block in drawing.blocks() for row in block.to_pylist()]
    return rows, drawing.counts


EVENTS = [
    *(("u", "a", 1, "buy"), ("u", "b", 1, "buy"), ("v", "c", 2, "view")),
    *(("v", "d", 3, "buy"), ("v", "d", 9, "buy")),
    # The visit of u at 100 takes a, c, and g, which is new; c a second time.
    *(("u", "a", 100, "buy"), ("u", "c", 110, "buy"), ("u", "c", 115, "buy")),
    *(("u", "g", 120, "buy"), ("w", "e", 110, "buy")),
    ("v", "b", 131, "buy"),  # its own visit: 122 seconds later
]


def test_a_log_by_hand(tmp_path: Path) -> None:
    spec = write(tmp_path, EVENTS)
    rows, counts = draw(spec, start="50", gap=10, by="uniform", negatives=300)
    by_visit: dict[tuple, dict] = {}
    for row in rows:
        visit = by_visit.setdefault((row["user_id"], row["timestamp"]), {})
        visit[row["item_id"]] = row["label"]
    # With 300 draws every known item is drawn. At 100: a, b, c, d; w's e was new.
    assert by_visit == {
        ("u", 100): {"a": 1, "b": 0, "c": 1, "d": 0},
        ("v", 131): {"a": 0, "b": 1, "c": 0, "d": 0, "e": 0, "g": 0},
    }
    assert counts == {
        **{"visits": 2, "positives": 3, "negatives": 7},
        **{"new": 2, "crowded": 0},
    }
    assert [row["timestamp"] for row in rows] == sorted(r["timestamp"] for r in rows)


def test_rates_by_hand(tmp_path: Path) -> None:
    """At 131 six items are known; b is taken, 8 are drawn for it."""
    spec = write(tmp_path, EVENTS)
    chances = {"a": 3, "b": 2, "c": 4, "d": 3, "e": 2, "g": 2}  # 1 + earlier events
    for by, weights in (
        ("uniform", dict.fromkeys(chances, 1)),
        ("popularity", chances),
    ):
        rows, _ = draw(spec, start="130", gap=10, by=by)
        free = sum(weights.values()) - weights["b"]
        for row in rows:
            weight = weights[row["item_id"]]
            share = weight / (free + weight * row["label"])
            assert row["sampling_rate"] == pytest.approx(1 - (1 - share) ** 8, rel=1e-6)


def test_rates_are_frequencies(tmp_path: Path) -> None:
    """Of the visit at 100, which took half of what was known."""
    dataset, times = open_dataset(write(tmp_path, EVENTS)), 600
    found: Counter[str] = Counter()
    rates: dict[str, float] = {}
    for seed in range(times):
        config = DrawConfig(start="100", gap=10, negatives=1, seed=seed)
        for row in next(Drawing(dataset, config).blocks()).to_pylist():
            if row["timestamp"] == 100:
                found[row["item_id"]] += 1
                rates[row["item_id"]] = row["sampling_rate"]
    assert found.pop("a") == found.pop("c") == times
    assert set(found) == {"b", "d"}
    for item, count in found.items():
        deviation = np.sqrt(times * rates[item] * (1 - rates[item]))
        assert abs(count - times * rates[item]) < 4 * deviation, item


@pytest.mark.parametrize("by", ["uniform", "popularity"])
def test_rows_are_those_of_a_naive_reference(
    market: Path, by: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What may be drawn, and its rate, from the log before each visit alone."""
    monkeypatch.setattr(drawn, "_BLOCK", 100)
    gap, first, spec = 40_000, 20 * 86_400, f"parquet:{market}"
    config = {"start": str(first), "gap": gap, "by": by, "actions": ("like",)}
    rows, counts = draw(spec, **config, negatives=3)
    log = open_dataset(spec).interactions.to_pylist()
    likes = sorted(
        (e for e in log if e["action"] == "like"), key=lambda e: e["user_id"]
    )
    visits: dict[tuple[int, int], set[int]] = {}
    for user in {event["user_id"] for event in likes}:
        last = begin = -(2**40)
        for event in sorted(
            (e for e in likes if e["user_id"] == user), key=lambda e: e["timestamp"]
        ):
            begin = begin if event["timestamp"] - last <= gap else event["timestamp"]
            last = event["timestamp"]
            visits.setdefault((user, begin), set()).add(event["item_id"])
    seen: dict[tuple[int, int], list[dict]] = {}
    for row in rows:
        seen.setdefault((row["user_id"], row["timestamp"]), []).append(row)
    wanted = {visit for visit in visits if visit[1] >= first}
    assert seen.keys() <= wanted
    assert len(wanted) - len(seen) == counts["crowded"]
    assert counts["positives"] + counts["negatives"] == len(rows) > 3000
    for (user, time), drawn_rows in seen.items():
        known = {e["item_id"] for e in log if e["timestamp"] < time}
        weights = dict.fromkeys(known, 1)
        for event in likes if by == "popularity" else ():
            if event["timestamp"] < time:
                weights[event["item_id"]] += 1
        taken = visits[user, time] & known
        free = sum(w for item, w in weights.items() if item not in taken)
        assert {r["item_id"] for r in drawn_rows if r["label"]} == taken
        assert len({r["item_id"] for r in drawn_rows}) == len(drawn_rows)
        assert len(drawn_rows) <= len(taken) * 4
        for row in drawn_rows:
            weight = weights[row["item_id"]]  # known, or this raises
            share = weight / (free + weight * row["label"])
            rate = 1 - (1 - share) ** (3 * len(taken))
            assert row["sampling_rate"] == pytest.approx(rate, rel=1e-5)


def test_the_seed_decides_and_the_order_of_the_log_does_not(market: Path) -> None:
    spec = f"parquet:{market}"
    rows, _ = draw(spec)
    assert draw(spec)[0] == rows
    assert draw(spec, seed=1)[0] != rows
    path = market / "interactions.parquet"
    log = pq.read_table(path)
    pq.write_table(log.take(np.random.default_rng(0).permutation(3000)), path)
    assert draw(spec)[0] == rows


def test_an_item_exists_from_its_arrival_on(tmp_path: Path) -> None:
    """And after its first event, if that is earlier; g is a positive now."""
    arrivals = {"f": 100, "g": 50, "h": 101, "a": 10**9}
    spec = write(tmp_path, EVENTS, arrivals)
    config = {"gap": 10, "by": "uniform", "negatives": 300, "arrival": "since"}
    rows, counts = draw(spec, start="50", **config)
    at_100 = {r["item_id"]: r["label"] for r in rows if r["timestamp"] == 100}
    assert at_100 == {"a": 1, "b": 0, "c": 1, "d": 0, "f": 0, "g": 1}
    assert counts["new"] == 1  # e
    with pytest.raises(UserError, match=r"items\.parquet: column 'no' is missing"):
        draw(spec, arrival="no")


def test_a_visit_that_takes_nearly_everything_gets_no_rows(tmp_path: Path) -> None:
    spec = write(tmp_path, [*EVENTS, *(("x", i, 200, "buy") for i in "abcdeg")])
    _, counts = draw(spec, start="130", gap=10)
    assert (counts["visits"], counts["crowded"]) == (1, 1)
    with pytest.raises(UserError, match="no visit from then on took an item that was"):
        draw(spec, start="150")


def test_a_ranker_learns_from_what_the_command_draws(
    market: Path, store: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (market / "impressions.parquet").unlink()
    content = ["--content", str(store.directory)]
    settings = ["ranker.training.batch_size=64", "ranker.features.dense=[]"]
    settings += ["ranker.features.sparse=user_id,item_id"]
    options = [*content, *(f"--set={setting}" for setting in settings)]
    data = ["--data", f"parquet:{market}"]
    with pytest.raises(SystemExit):
        command_line.main(["train-ranker", *data, *options, "--out", f"{tmp_path}/no"])
    assert "`learn-torchrec data impressions` draws some" in capsys.readouterr().err
    out, again = tmp_path / "drawn", tmp_path / "again"
    command = ["data", "impressions", *data, "--actions", "like", "--gap", "86400"]
    command_line.main([*command, "--out", str(out)])
    said = capsys.readouterr().out
    table = pq.read_table(out / "impressions.parquet")
    labels = table["label"].to_numpy()
    assert f"{labels.sum():,} positives, {(labels == 0).sum():,} negatives" in said
    assert f"read them with --data parquet:{out}" in said
    command_line.main([*command, "--out", str(again)])
    for name in ("items", "interactions", "impressions"):
        one, other = (d / f"{name}.parquet" for d in (out, again))
        assert one.read_bytes() == other.read_bytes()
    # The moment of the drawn data set's split is the first of the drawn impressions'.
    times = open_dataset(f"parquet:{out}").times
    assert table["timestamp"].to_numpy().min() >= np.quantile(
        times, 0.5, method="lower"
    )
    data = ["--data", f"parquet:{out}", *options]
    ranker = tmp_path / "ranker"
    command_line.main(["train-ranker", *data, "--out", str(ranker)])
    command_line.main(
        ["predict", *data, "--ranker", str(ranker), "--out", f"{tmp_path}/scored"]
    )
    scored = pq.read_table(tmp_path / "scored" / "predictions.parquet")
    assert np.isfinite(scored["score"].to_numpy()).all()
    assert scored["sampling_rate"].null_count == 0
