"""The server's answers, and what it says to requests that it refuses."""

import asyncio
import dataclasses
import threading
import time

import clustered
import numpy as np
import pytest
import shop

from learn_torchrec.serving.batching import BatchLimits

FIRST, LAST = shop.FIRST, shop.FIRST + shop.NUM_ITEMS - 1


def rank(client, **body):
    return client.post("/rank", json={"user": 1, "candidates": [FIRST], **body})


def retrieve(client, **body):
    return client.post("/retrieve", json={"user": 1, **body})


def history(user: int) -> set[int]:
    return {item for who, item, _ in shop.EVENTS if who == user}


def test_rank(client) -> None:
    candidates = [FIRST + 5, FIRST, 9, FIRST + 299]
    answer = rank(client, candidates=candidates, context={"hour": 20}).json()
    expected = shop.rule(candidates, events=5, hour=20)
    assert answer["scores"]["cvr"] == pytest.approx(expected)
    assert answer["scores"]["ctr"] == pytest.approx(1 - expected)
    assert answer["model"] == "up"
    other = rank(client, candidates=candidates, context={"hour": 20}, model="down")
    assert other.json()["scores"]["cvr"] == pytest.approx(-expected)


def test_rank_passes_time_events_and_context_on(client) -> None:
    event = {"item": FIRST, "time": 77, "action": "buy"}
    before = time.time()
    rank(client, user="2", time=500, events=[event], context={"hour": [3.5]})
    rank(client, user=99)
    ranker = client.app_state.live.current.service.deployment.rankers["up"]
    known, unknown = ranker.requests
    assert (known.user_id, known.timestamp) == (2, 500)
    assert known.context == {"hour": [3.5]}
    assert [e.timestamp for e in known.events] == [77, 100, 101, 102, 103, 104]
    assert unknown.events == []
    assert before - 1 <= unknown.timestamp <= time.time() + 1


def test_no_candidates_have_no_scores(client) -> None:
    assert rank(client, candidates=[]).json()["scores"] == {"cvr": [], "ctr": []}


def test_retrieve_finds_the_nearest_items_beside_the_history(client) -> None:
    answer = retrieve(client, user=3, k=7).json()
    allowed = np.array([FIRST + row not in history(3) for row in range(300)])
    rows = clustered.best(shop.ITEMS, shop.USERS[3], 7, allowed)
    assert [found["item"] for found in answer["items"]] == [FIRST + r for r in rows]
    assert answer["items"][0]["title"] == f"thing <b>{FIRST + rows[0]}</b>"
    scores = shop.ITEMS[rows].astype(float) @ shop.USERS[3].astype(float)
    assert [f["score"] for f in answer["items"]] == pytest.approx(scores, abs=2e-3)
    assert answer["source"] == "vector"


def test_retrieve_can_be_narrowed(client) -> None:
    everything = retrieve(client, user=3, k=300, without_history=False).json()["items"]
    assert len(everything) == 300
    stock = [FIRST + 5, FIRST + 9, 4]
    only = retrieve(client, user=3, available=stock).json()["items"]
    assert {found["item"] for found in only} == {FIRST + 5, FIRST + 9}
    rest = retrieve(client, user=3, available=stock, exclude=[FIRST + 9]).json()
    assert [found["item"] for found in rest["items"]] == [FIRST + 5]


def test_an_unknown_user_gets_popular_items(client) -> None:
    answer = retrieve(client, user=12345, k=5).json()
    assert answer["source"] == "popular"
    counts = np.bincount([item - FIRST for _, item, _ in shop.EVENTS], minlength=300)
    popular = np.argsort(-counts, kind="stable")[:5]
    assert [found["item"] for found in answer["items"]] == [FIRST + r for r in popular]
    assert {found["score"] for found in answer["items"]} == {None}


def test_events_change_the_answer_at_once(client) -> None:
    first = retrieve(client, user=3, k=1).json()["items"][0]["item"]
    event = {"user": 3, "item": first, "action": "buy"}
    assert client.post("/events", json={"events": [event]}).json() == {"stored": 1}
    event["time"] = 5
    twice = client.post("/events", json={"events": [event, event]}).json()
    assert twice == {"stored": 1}
    found = retrieve(client, user=3, k=300).json()["items"]
    assert first not in {each["item"] for each in found}
    scores = rank(client, user=3).json()["scores"]["cvr"]
    assert scores == pytest.approx(shop.rule([FIRST], events=7))


def test_recommend_says_why(client) -> None:
    answer = client.post("/recommend", json={"user": 3, "k": 4}).json()
    assert (answer["cohort"], answer["num_events"]) == ("long_tail", 5)
    assert answer["candidates"] == 200
    times = [event["time"] for event in answer["history"]]
    assert times == [104, 103, 102, 101, 100]
    assert answer["history"][0]["title"] == f"thing <b>{FIRST + 25}</b>"
    up, down = answer["models"]
    assert (up["model"], down["model"]) == ("up", "down")
    found = retrieve(client, user=3, k=200).json()["items"]
    items = sorted((each["item"] for each in found), reverse=True)
    assert [each["item"] for each in up["items"]] == items[:4]
    assert [each["item"] for each in down["items"]] == items[-4:][::-1]
    best = up["items"][0]
    assert best["place"] == {"up": 1, "down": 200}
    assert best["scores"]["cvr"] == pytest.approx(shop.rule([items[0]], 5)[0])
    # The nearest items of the history, by plain arithmetic.
    met = [FIRST + 21 + n for n in range(5)]
    vectors = shop.ITEMS.astype(float)
    similar = vectors[[m - FIRST for m in met]] @ vectors[items[0] - FIRST]
    near = [met[n] for n in np.argsort(-similar, kind="stable") if similar[n] > 0.05]
    assert [each["item"] for each in best["near"]] == near[:3]


def test_an_unknown_user_is_cold_and_gets_an_answer(client) -> None:
    answer = client.post("/recommend", json={"user": 777}).json()
    assert (answer["cohort"], answer["source"]) == ("cold", "popular")
    assert answer["history"] == []
    assert len(answer["models"][0]["items"]) == 10


def test_users(client) -> None:
    answer = client.get("/users?start=1").json()["users"]
    assert answer == [1]
    assert len(client.get("/users?limit=3").json()["users"]) == 3


def test_health_and_readiness(client) -> None:
    assert client.get("/health").json() == {"status": "ok"}
    ready = client.get("/ready").json()
    assert (ready["status"], ready["items"]) == ("ready", 300)
    assert (ready["models"], ready["tasks"]) == (["up", "down"], ["cvr", "ctr"])
    assert ready["context"] == {"hour": "float"}
    client.app_state.live.current = None
    assert client.get("/ready").status_code == 503
    assert rank(client).status_code == 503


def test_metrics_count_by_path_and_status(client) -> None:
    rank(client)
    rank(client, candidates="none")
    client.get("/nowhere/else")
    text = client.get("/metrics").text
    for status in (200, 422):
        line = f'learn_torchrec_requests_total{{path="/rank",status="{status}"}} 1.0'
        assert line in text
    assert 'requests_total{path="other",status="404"} 1.0' in text
    assert 'batch_requests_count{queue="rank"} 1.0' in text
    assert "process_resident_memory_bytes" in text


@pytest.mark.parametrize(
    ("path", "body", "status", "text"),
    [
        ("/rank", {"user": 1}, 422, "body.candidates: Field required"),
        ("/rank", {"user": 1, "candidates": [1.5]}, 422, "candidates"),
        ("/rank", {"user": 1, "candidates": [2**63]}, 422, "candidates"),
        ("/rank", {"user": 1, "candidates": ["cup"]}, 422, "'cup' is no int64"),
        ("/rank", {"user": None, "candidates": []}, 422, "user"),
        ("/rank", {"user": 1, "candidates": [], "tim": 3}, 422, "tim: Extra inputs"),
        ("/rank", {"user": 1, "candidates": [], "time": -1}, 422, "time"),
        ("/rank", {"user": 1, "candidates": [1], "model": "no"}, 422, "has up, down"),
        ("/rank", {"user": 1, "candidates": [1], "context": {"h": 1}}, 422, "'h'"),
        ("/rank", {"user": 1, "candidates": [1] * 5001}, 413, "at most 5000"),
        ("/retrieve", {"user": 1, "k": 0}, 422, "k"),
        ("/retrieve", {"user": 1, "k": 10**6}, 422, "k"),
        ("/events", {"events": []}, 422, "events"),
        ("/events", {"events": [{"user": 1, "item": 2}]}, 422, "action"),
        ("/items", {"items": [{"item_id": 5, "title": "cup"}]}, 404, "no towers"),
        ("/admin/reload", {}, 403, "token"),
    ],
)
def test_what_cannot_be_used_is_refused(client, path, body, status, text) -> None:
    answer = client.post(path, json=body)
    assert answer.status_code == status
    assert list(answer.json()) == ["detail"]
    assert text in answer.json()["detail"]


@pytest.mark.parametrize(
    "content",
    [
        b"{",
        b"\xff\xfe",
        b"[1]",
        b'{"user": 1, "candidates": [NaN]}',
        b'{"user": "\\ud800", "candidates": []}',
        b"[" * 100_000,
        b"",
    ],
)
def test_bodies_that_are_no_json(client, content: bytes) -> None:
    answer = client.post(
        "/rank", content=content, headers={"content-type": "application/json"}
    )
    assert answer.status_code in (400, 422)
    assert list(answer.json()) == ["detail"]


def test_a_form_of_another_site_is_no_request(client) -> None:
    body = '{"events": [{"user": 1, "item": 2, "action": "buy"}]}'
    answer = client.post(
        "/events", content=body, headers={"content-type": "text/plain"}
    )
    assert answer.status_code == 422


def test_a_bug_is_one_line_without_its_cause(client, caplog) -> None:
    answer = rank(client, context={"bug": 1})
    assert answer.status_code == 500
    assert answer.json() == {"detail": "internal error; see the server's log"}
    assert "/secret/path" in caplog.text


def test_other_methods_and_paths(client) -> None:
    assert client.get("/rank").status_code == 405
    assert client.get("/docs").status_code == 404
    assert client.get("/page/../conftest.py").status_code == 404
    assert client.get("/page/%2e%2e%2fpage.html").status_code == 404


def test_a_large_body_is_refused(serve) -> None:
    client = serve(limits={"body_bytes": 1000})
    assert rank(client).status_code == 200
    assert rank(client, candidates=[FIRST] * 500).status_code == 413

    def parts():  # of unknown length
        for _ in range(100):
            yield b" " * 100

    headers = {"content-type": "application/json"}
    answer = client.post("/rank", content=parts(), headers=headers)
    assert answer.status_code == 413


def test_a_token_is_asked_for(serve) -> None:
    client = serve(limits={"token": shop.TOKEN})
    for headers in (
        {},
        {"authorization": "Bearer wrong"},
        {"authorization": shop.TOKEN},
    ):
        for path in ("/metrics", "/openapi.json", "/users", "/nowhere"):
            answer = client.get(path, headers=headers)
            assert answer.status_code == 401
            assert answer.headers["www-authenticate"] == "Bearer"
    for path in ("/health", "/ready", "/"):
        assert client.get(path).status_code == 200
    client.headers["authorization"] = f"Bearer {shop.TOKEN}"
    assert rank(client).status_code == 200
    assert client.post("/admin/reload").json()["changed"] is False


def test_other_hosts_are_refused(serve) -> None:
    client = serve(limits={"hosts": ("localhost", "[::1]")})
    for host, status in (
        ("localhost", 200),
        ("LOCALHOST:8080", 200),
        ("[::1]:80", 200),
        ("evil.example", 421),
        ("localhost.evil.example:80", 421),
        ("", 421),
    ):
        assert client.get("/health", headers={"host": host}).status_code == status


def test_headers_keep_the_page_to_itself(client) -> None:
    for path in ("/", "/health", "/nowhere"):
        headers = client.get(path).headers
        assert "default-src 'none'" in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"


def slow(places, seconds: float):
    def load():
        deployment = shop.load_shop(places)
        ranker = deployment.rankers["up"]
        answer = ranker.rank

        def rank(requests):
            time.sleep(seconds)
            return answer(requests)

        ranker.rank = rank
        return deployment

    return load


def at_once(call, count: int) -> list[int]:
    statuses: list[int] = []
    threads = [
        threading.Thread(target=lambda: statuses.append(call().status_code))
        for _ in range(count)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return statuses


def test_concurrent_requests_share_batches(serve, places) -> None:
    client = serve(load=slow(places, 0.2))
    assert at_once(lambda: rank(client), 12) == [200] * 12
    ranker = client.app_state.live.current.service.deployment.rankers["up"]
    assert sum(ranker.batches) == 12
    assert len(ranker.batches) <= 6


def test_a_full_queue_and_a_late_answer(serve, places) -> None:
    limits = BatchLimits(rows=1, queued=3)
    client = serve(load=slow(places, 0.3), batches=limits, seconds=0.7)
    statuses = at_once(lambda: rank(client), 12)
    assert set(statuses) == {200, 503, 504}
    assert statuses.count(503) >= 6


def test_too_many_at_once_are_refused(serve, places) -> None:
    client = serve(load=slow(places, 0.3), limits={"requests": 4})
    statuses = at_once(lambda: rank(client), 12)
    assert statuses.count(503) >= 4
    assert statuses.count(200) >= 4


def test_a_store_that_fails_costs_events_alone(client, monkeypatch) -> None:
    def fail(*_):
        raise OSError("gone")

    monkeypatch.setattr(client.store, "recent", fail)
    scores = rank(client).json()["scores"]["cvr"]
    assert scores == pytest.approx(shop.rule([FIRST], events=0))
    assert "missing_events_total 1.0" in client.get("/metrics").text


def test_only_available_items_are_found(serve, places, tmp_path) -> None:
    stock = tmp_path / "stock.txt"
    stock.write_text("\n".join(str(FIRST + n) for n in range(0, 300, 50)))
    client = serve(dataclasses.replace(places, available=stock))
    found = retrieve(client, user=3, k=300, without_history=False).json()["items"]
    assert {each["item"] for each in found} == {FIRST + n for n in range(0, 300, 50)}
    assert client.get("/ready").json()["items"] == 6
    popular = retrieve(client, user=999, k=300).json()["items"]
    assert {each["item"] for each in popular} <= {FIRST + n for n in range(0, 300, 50)}


def test_slow_bodies_time_out() -> None:
    from learn_torchrec.serving.http.guard import Guard, Limits
    from learn_torchrec.serving.http.metrics import Metrics

    async def app(scope, receive, send):
        raise AssertionError("not reached")

    async def ask():
        sent = []

        async def receive():
            await asyncio.sleep(60)

        async def send(message):
            sent.append(message)

        limits = Limits(body_seconds=0.05)
        scope = {"type": "http", "path": "/rank", "headers": [(b"host", b"localhost")]}
        await Guard(app, limits, Metrics())(scope, receive, send)
        return sent[0]["status"]

    assert asyncio.run(ask()) == 408
