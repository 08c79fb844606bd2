"""Another version takes over without a failed request; a bad one does not."""

import threading
import time

import pytest
import shop

from learn_torchrec.serving.deployment import Places


@pytest.fixture
def linked(places: Places, tmp_path):
    """The shop behind a link `current`, which tests switch to another run."""
    runs = tmp_path / "runs"
    for name, text in (("a", "up"), ("b", "down"), ("bad", "broken")):
        (runs / name).mkdir(parents=True)
        shop.write_bundle(runs / name, text)
    (runs / "current").symlink_to("a")
    (runs / "data").symlink_to(places.index.parent / "data")
    return Places(
        bundles={"it": runs / "current"}, index=places.index, vectors=places.vectors
    )


def switch(places: Places, name: str) -> None:
    current = places.bundles["it"]
    new = current.with_name("new")
    new.symlink_to(name)
    new.replace(current)


def score(client) -> float:
    answer = client.post("/rank", json={"user": 99, "candidates": [shop.FIRST + 100]})
    assert answer.status_code == 200
    return answer.json()["scores"]["cvr"][0]


def reload(client):
    headers = {"authorization": f"Bearer {shop.TOKEN}"}
    return client.post("/admin/reload", headers=headers)


@pytest.fixture
def client(serve, linked):
    client = serve(linked, limits={"token": shop.TOKEN})
    client.headers["authorization"] = f"Bearer {shop.TOKEN}"
    return client


def test_a_switched_link_is_loaded(client, linked) -> None:
    assert score(client) == pytest.approx(0.1)
    assert reload(client).json()["changed"] is False
    first = client.get("/ready").json()["version"]
    switch(linked, "b")
    answer = reload(client).json()
    assert answer["changed"] is True
    assert answer["version"] == client.get("/ready").json()["version"] != first
    assert score(client) == pytest.approx(-0.1)


def test_a_damaged_version_does_not_take_over(client, linked) -> None:
    switch(linked, "bad")
    assert reload(client).status_code == 503
    assert score(client) == pytest.approx(0.1)
    assert client.get("/ready").json()["reload_error"] is True
    linked.bundles["it"].unlink()  # nothing there at all
    assert reload(client).status_code == 503
    assert score(client) == pytest.approx(0.1)
    linked.bundles["it"].symlink_to("b")
    assert reload(client).status_code == 200
    assert client.get("/ready").json()["reload_error"] is False
    text = client.get("/metrics").text
    assert 'reloads_total{outcome="failed"} 2.0' in text
    assert 'reloads_total{outcome="done"} 1.0' in text


def test_no_request_fails_while_versions_change(client, linked) -> None:
    statuses: list[int] = []
    stop = threading.Event()

    def ask() -> None:
        body = {"user": 3, "candidates": [shop.FIRST]}
        while not stop.is_set():
            statuses.append(client.post("/rank", json=body).status_code)
            statuses.append(client.post("/retrieve", json={"user": 3}).status_code)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for turn in range(6):
        switch(linked, "ba"[turn % 2])
        assert reload(client).json()["changed"] is True
        time.sleep(0.05)
    stop.set()
    for thread in threads:
        thread.join()
    assert len(statuses) > 50
    assert set(statuses) == {200}


def test_requests_in_flight_end_with_the_version_they_began_with(serve, linked) -> None:
    def load():
        deployment = shop.load_shop(linked)
        ranker = deployment.rankers["it"]
        answer = ranker.rank
        ranker.rank = lambda requests: (time.sleep(0.5), answer(requests))[1]
        return deployment

    client = serve(linked, limits={"token": shop.TOKEN}, load=load)
    client.headers["authorization"] = f"Bearer {shop.TOKEN}"
    found: list[float] = []
    thread = threading.Thread(target=lambda: found.append(score(client)))
    thread.start()
    time.sleep(0.1)
    switch(linked, "b")
    old = client.app_state.live.current
    assert reload(client).json()["changed"] is True
    assert client.app_state.live.current is not old
    thread.join()
    assert found == [pytest.approx(0.1)]
    for _ in range(100):
        if old.ranking._worker.done():
            break
        time.sleep(0.02)
    assert old.ranking._worker.done()  # drained and let go


def test_the_watcher_finds_the_change(serve, linked, caplog) -> None:
    client = serve(linked, watch_seconds=0.05)
    switch(linked, "bad")
    time.sleep(0.5)
    assert score(client) == pytest.approx(0.1)
    said = [r for r in caplog.records if "not reloaded" in r.message]
    assert len(said) == 1  # not every time it looks
    switch(linked, "b")
    for _ in range(100):
        if score(client) < 0:
            break
        time.sleep(0.05)
    assert score(client) == pytest.approx(-0.1)
