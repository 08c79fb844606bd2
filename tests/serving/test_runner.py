"""The runner scores requests as the training code scores rows."""

import json
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from exported import Exported

from learn_torchrec.errors import UserError
from learn_torchrec.serving.fixed_rows import requests_of
from learn_torchrec.serving.request import RankRequest

ROWS = 300


def test_requests_get_the_scores_of_training_code(exported):
    runner = exported.runner()
    rows = exported.latest(ROWS, runner.as_of).sort_by("user_id")
    expected = exported.trained_scores(rows)["score"]
    assert expected.std() > 0.02

    requests = requests_of(rows, list(runner.required_context))
    found = np.concatenate(runner.rank(requests))

    assert runner.tasks == ("cvr",)
    assert found.shape == (ROWS, 1)
    np.testing.assert_allclose(found[:, 0], expected, atol=2e-6)


def test_requests_do_not_see_each_other(exported):
    runner = exported.runner()
    rows = exported.latest(60, runner.as_of)
    requests = requests_of(rows.sort_by("user_id"), ["hour"])

    together = runner.rank(requests)
    alone = [runner.rank([request])[0] for request in requests]

    for one, other in zip(together, alone, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_the_runner_imports_no_training_code(exported):
    code = (
        "import json, sys\n"
        "from learn_torchrec.serving.runner import Runner\n"
        "from learn_torchrec.serving.request import RankRequest\n"
        "runner = Runner.load(sys.argv[1])\n"
        "request = RankRequest(3, [100, 139, 7], runner.as_of, {'hour': 1.0})\n"
        "scores = runner.rank([request])[0]\n"
        "names = ('torchrec', 'torchx', 'transformers', 'learn_torchrec.training',\n"
        "         'learn_torchrec.towers', 'learn_torchrec.apps')\n"
        "found = [m for m in sys.modules if any(\n"
        "    m == name or m.startswith(name + '.') for name in names)]\n"
        "print(json.dumps([found, scores.shape]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, str(exported.bundle)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout.splitlines()[-1]) == [[], [3, 1]]


def test_unknown_users_and_items_take_the_cold_path(exported):
    runner = exported.runner()
    now = runner.as_of
    requests = [
        RankRequest(10**9, [100, 10**9], now),
        RankRequest(3, [], now),
        RankRequest(3, [10**9, 101], now, {"hour": [1.0, None]}),
    ]

    cold, none, warm = runner.rank(requests)

    assert none.shape == (0, 1)
    for scores in (cold, warm):
        assert scores.shape == (2, 1)
        assert ((scores > 0) & (scores < 1)).all()


def test_later_events_count_as_if_they_were_in_the_log(exported, tmp_path):
    """A user bought two items after the export: as a log with these two says."""
    runner = exported.runner()
    now = runner.as_of
    events = [(105, now + 10, "like"), (111, now + 5, "like"), (111, now, "skip")]
    request = RankRequest(7, [105, 111, 112], now + 100, {"hour": 2.0}, events)
    before = RankRequest(7, [105, 111, 112], now + 100, {"hour": 2.0})
    found, without = (each[:, 0] for each in runner.rank([request, before]))
    assert np.abs(found - without).max() > 1e-4

    longer = tmp_path / "market"
    longer.mkdir()
    for name in ("items", "impressions"):
        (longer / f"{name}.parquet").symlink_to(exported.market / f"{name}.parquet")
    log = pq.read_table(exported.market / "interactions.parquet")
    names = ("item_id", "timestamp", "action")
    added = {n: [event[place] for event in events] for place, n in enumerate(names)}
    added = pa.table({"user_id": [7] * len(events), **added}).select(log.column_names)
    log = pa.concat_tables([log, added.cast(log.schema)])
    pq.write_table(log, longer / "interactions.parquet")
    rows = pa.table(
        {
            "user_id": [7] * 3,
            "item_id": [105, 111, 112],
            "timestamp": [now + 100] * 3,
            "hour": pa.array([2.0] * 3, pa.float32()),
        }
    )
    there = Exported(longer, exported.ranker, exported.content, exported.bundle)
    expected = there.trained_scores(rows)["score"]

    # Of an item that nobody bought since then all is known.
    np.testing.assert_allclose(found[2], expected[2], atol=2e-6)
    # Others' view of an item is the bundle's: the item's own count does not grow.
    assert np.abs(found - expected).max() < np.abs(without - expected).max() / 4


def test_bad_requests_say_what_is_wrong(exported):
    runner = exported.runner()
    now = runner.as_of
    for request, message in (
        (RankRequest("3", [100], now), "user_id: '3' is no int"),
        (RankRequest(3, ["a"], now), "item_id: 'a' is no int"),
        (RankRequest(3, [2**70], now), "item_id: an id does not fit int64"),
        (RankRequest(3, [True], now), "item_id: True is no int"),
        (RankRequest(3, [100], now * 10**6), "timestamp: .* give unix seconds"),
        (RankRequest(3, [100], 1.5), "timestamp: 1.5 is no integer"),
        (RankRequest(3, [100], now, {"hours": 1}), "did you mean 'hour'"),
        (RankRequest(3, [100], now, {"hour": [1, 2]}), "2 values for 1 candidates"),
        (RankRequest(3, [100], now, {"hour": "noon"}), "no float"),
        (RankRequest(3, [100], now, {}, [("x", now, "like")]), "events: 'x' is no int"),
    ):
        with pytest.raises(UserError, match=message):
            runner.rank([request])


def test_threads_get_the_scores_of_one(exported):
    runner = exported.runner()
    rows = exported.latest(200, runner.as_of).sort_by("user_id")
    requests = requests_of(rows, ["hour"])
    expected = runner.rank(requests)

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: runner.rank(requests), range(24)))

    for answer in answers:
        for one, other in zip(answer, expected, strict=True):
            np.testing.assert_array_equal(one, other)


def test_the_example_of_the_page_runs(exported):
    page = Path(__file__).parents[2] / "docs" / "pages" / "bundle.md"
    (code,) = re.findall(r"```py\n(.*?)```", page.read_text(), re.DOTALL)
    found = {}

    exec(code.replace("runs/bundle", str(exported.bundle)), found)

    assert found["scores"].shape == (3, 1)


def test_events_before_the_moment_are_those_of_the_log(exported):
    """A known user's are in the bundle already; an unknown user's count."""
    runner = exported.runner()
    now = runner.as_of
    earlier = [(105, now - 10, "like"), (111, now - 5, "like")]
    later = [(105, now, "like")]

    def ask(user, events):
        return RankRequest(user, [105, 111], now + 1, {"hour": 1.0}, events)

    plain, told, news, cold, not_cold = runner.rank(
        [ask(7, ()), ask(7, earlier), ask(7, later), ask(777, ()), ask(777, earlier)]
    )

    np.testing.assert_array_equal(told, plain)
    assert np.abs(news - plain).max() > 1e-4
    assert np.abs(not_cold - cold).max() > 1e-4


def test_what_is_not_before_the_request_does_not_count(exported):
    runner = exported.runner()
    now = runner.as_of
    events = [(105, now + 5, "like"), (111, now + 9, "like")]

    def ask(given):
        return RankRequest(7, [105, 111], now + 5, {}, given)

    plain, same = runner.rank([ask(()), ask(events)])

    np.testing.assert_array_equal(same, plain)
