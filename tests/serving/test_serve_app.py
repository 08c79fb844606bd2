"""The server as a process: a real bundle, its end, its address and its token."""

import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import redis_server
import server
import shop
from exported import Exported

from learn_torchrec.apps import serve
from learn_torchrec.errors import UserError
from learn_torchrec.serving.request import Event, RankRequest


@pytest.fixture(scope="module")
def running(exported: Exported, tmp_path_factory):
    """A server of a real bundle, with its log in the store of events."""
    folder = tmp_path_factory.mktemp("served")
    shutil.copytree(exported.bundle, folder / "bundle")
    options = ["--bundle", str(folder / "bundle"), "--clock", "data"]
    options += ["--events", str(folder / "events.sqlite")]
    options += ["--data", f"parquet:{exported.market}"]
    with server.running(folder, *options, "--watch-seconds=0.2") as started:
        started.folder = folder
        yield started


def latest(exported: Exported, user) -> list[Event]:
    log = pq.read_table(exported.market / "interactions.parquet").to_pylist()
    log.sort(key=lambda row: row["timestamp"])
    return [
        Event(row["item_id"], row["timestamp"], row["action"])
        for row in log
        if row["user_id"] == user
    ]


def test_served_scores_are_the_runners(running, exported: Exported) -> None:
    runner = exported.runner()
    rows = pq.read_table(exported.market / "impressions.parquet").to_pylist()[-20:]
    for row in rows:
        user, items = row["user_id"], [row["item_id"], rows[0]["item_id"]]
        context = {name: row[name] for name in runner.required_context}
        time_ = int(row["timestamp"])
        body = {"user": user, "candidates": items, "time": time_, "context": context}
        status, answer = running.ask("/rank", body)
        events = latest(exported, user)
        request = RankRequest(user, items, time_, context, events)
        expected = runner.rank([request])[0]
        served = np.stack([answer["scores"][task] for task in runner.tasks], axis=1)
        assert status == 200
        assert np.abs(served - expected).max() < 1e-6


def test_unknown_users_and_items_are_ranked(running, exported: Exported) -> None:
    row = pq.read_table(exported.market / "impressions.parquet").to_pylist()[0]
    context = {name: row[name] for name in exported.runner().required_context}
    is_text = isinstance(row["user_id"], str)
    unknown = "nobody" if is_text else 10**15
    item = "nothing" if isinstance(row["item_id"], str) else 10**15
    body = {"user": unknown, "candidates": [item], "context": context}
    status, answer = running.ask("/rank", body)
    assert status == 200
    assert all(0 < scores[0] < 1 for scores in answer["scores"].values())


def test_a_new_bundle_in_its_place_is_served(running) -> None:
    before = running.ask("/ready")[1]["version"]
    manifest = running.folder / "bundle" / "manifest.json"
    manifest.write_text(manifest.read_text() + "\n")  # the same, newly written
    for _ in range(200):
        if running.ask("/ready")[1]["version"] != before:
            break
        time.sleep(0.1)
    assert running.ask("/ready")[1]["version"] != before


def test_slow_heads_and_bodies_are_not_waited_for(running) -> None:
    host, port = running.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(b"POST /rank HTTP/1.1\r\nhost: localhost\r\nx: ")
        connection.settimeout(30)
        assert connection.recv(100) == b""
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(
            b"POST /rank HTTP/1.1\r\nhost: localhost\r\ncontent-length: 50\r\n\r\n{"
        )
        connection.settimeout(30)
        assert connection.recv(100).startswith(b"HTTP/1.1 408")


@pytest.mark.parametrize(
    "raw",
    [
        b"\x00\x01\x02\r\n\r\n",
        b"GET\r\n\r\n",
        b"POST /rank HTTP/1.1\r\nhost: localhost\r\ncontent-length: -5\r\n\r\n",
        b"POST /rank HTTP/1.1\r\nhost: localhost\r\ncontent-length: x\r\n\r\n",
        b"GET /" + b"a" * 200_000 + b" HTTP/1.1\r\nhost: localhost\r\n\r\n",
    ],
)
def test_what_is_no_http_ends_the_connection_alone(running, raw: bytes) -> None:
    host, port = running.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.settimeout(30)
        try:
            connection.sendall(raw)
            said = connection.recv(1000)
        except ConnectionError:
            said = b""
        assert said == b"" or said.split(b" ")[1][:1] == b"4"
    assert running.ask("/health")[0] == 200


def test_sigterm_answers_first_and_ends_well(exported: Exported, tmp_path) -> None:
    row = pq.read_table(exported.market / "impressions.parquet").to_pylist()[0]
    context = {name: row[name] for name in exported.runner().required_context}
    body = {"user": row["user_id"], "candidates": [row["item_id"]] * 500}
    body["context"] = context
    options = ["--bundle", str(exported.bundle), "--max-wait-ms=700", "--timeout=20"]
    options += ["--events", str(tmp_path / "events.sqlite")]
    with server.running(tmp_path, *options) as started:
        answers: list[int] = []
        threads = [
            threading.Thread(
                target=lambda: answers.append(started.ask("/rank", body)[0])
            )
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        time.sleep(0.4)
        started.process.send_signal(signal.SIGTERM)
        for thread in threads:
            thread.join()
        assert answers == [200] * 4
        assert started.process.wait(30) == 0
    log = (tmp_path / "serve.log").read_text()
    assert "Traceback" not in log


def test_a_token_and_redis(exported: Exported, tmp_path: Path) -> None:
    (tmp_path / "token").write_text(f"{shop.TOKEN}\n")
    with redis_server.running(tmp_path) as url:
        options = ["--bundle", str(exported.bundle), "--events", url]
        options += ["--token-file", str(tmp_path / "token")]
        with server.running(tmp_path, *options) as started:
            event = {"user": 1, "item": 2, "action": "like"}
            body = {"events": [event]}
            assert started.ask("/events", body)[0] == 401
            status, answer = started.ask("/events", body, shop.TOKEN)
            if status == 422:  # ids are texts here
                body["events"][0] |= {"user": "1", "item": "2"}
                status, answer = started.ask("/events", body, shop.TOKEN)
            assert (status, answer) == (200, {"stored": 1})
            assert started.ask("/admin/reload", {}, shop.TOKEN)[0] == 200


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to serve; give --bundle, --index or both"),
        (["--bundle", "nowhere"], "nowhere/manifest.json: cannot be read"),
        (["--bundle", "{bundle}", "--host", "0.0.0.0"], "others could use this server"),
        (["--bundle", "{bundle}", "--port", "70000"], "--port 70000: use at most"),
        (["--bundle", "{bundle}", "--timeout", "0"], "--timeout 0.0: use 1 or more"),
        (["--bundle", "{bundle}", "--compare", "x"], "x/manifest.json: cannot be read"),
        (["--compare", "{bundle}"], "--compare: give --bundle too"),
        (["--index", "{bundle}"], "--index: needs users' vectors"),
        (
            ["--bundle", "{bundle}", "--towers", "x"],
            "--towers and --content: give both",
        ),
        (["--bundle", "{bundle}", "--events", "ftp://x"], "give the path of a file"),
        (["--bundle", "{bundle}", "--token-file", "{short}"], "at least 16 characters"),
        (["--bundle", "{bundle}", "--token-file", "none"], "none: cannot be read"),
        (["--bundle", "{bundle}", "--port", "{taken}"], "cannot be bound"),
        (["--run", "{short}"], "--run: give --data too"),
    ],
)
def test_bad_options_are_one_line(exported, tmp_path, arguments, message) -> None:
    (tmp_path / "short").write_text("short")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        names = {
            "bundle": exported.bundle,
            "short": tmp_path / "short",
            "taken": taken.getsockname()[1],
        }
        given = [argument.format(**names) for argument in arguments]
        if "--events" not in given:
            given += ["--events", str(tmp_path / "events.sqlite")]
        with pytest.raises(UserError, match=message.replace("(", r"\(")):
            serve.main(given)


def test_a_missing_package_is_named(tmp_path: Path) -> None:
    code = (
        "import sys\nsys.modules['fastapi'] = None\n"
        "from learn_torchrec.apps import main\n"
        "main.main(['serve', '--bundle', 'x'])"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 2
    assert "pip install 'learn-torchrec[serve]'" in ended.stderr
    assert "Traceback" not in ended.stderr
