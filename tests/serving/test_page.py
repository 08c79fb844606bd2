"""The page in a real browser: mouse and keyboard, wide and narrow, hostile titles."""

import contextlib
import functools
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import shop
from test_report_browser import CONTRAST

from learn_torchrec.datasets.adapters import open_dataset
from learn_torchrec.serving.events import open_events
from learn_torchrec.serving.http.app import Settings, create_app
from learn_torchrec.serving.http.guard import Limits
from learn_torchrec.serving.seed import seed


@contextlib.contextmanager
def listening(places, folder: Path, **limits) -> Iterator[str]:
    """Serve the shop from a thread of this process."""
    import uvicorn

    store = open_events(str(folder / "events.sqlite"))
    seed(store, open_dataset(f"parquet:{places.index.parent / 'data'}"), None)
    app = create_app(
        functools.partial(shop.load_shop, places),
        places.version,
        store,
        Settings(limits=Limits(**limits), watch_seconds=0, seconds=30),
    )
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://localhost:{port}"
    finally:
        server.should_exit = True
        thread.join()
        store.close()


@pytest.fixture(scope="module")
def url(places, tmp_path_factory) -> Iterator[str]:
    with listening(places, tmp_path_factory.mktemp("page")) as address:
        yield address


class Opened:
    """The page in one window, with all that it complained about or asked for."""

    def __init__(self, browser, url: str, width: int = 1280, scheme: str = "light"):
        viewport = {"width": width, "height": 800}
        context = browser.new_context(viewport=viewport, color_scheme=scheme)
        self.tab = context.new_page()
        self.tab.set_default_timeout(30_000)
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.tab.on("console", lambda message: self.complaints.append(message.text))
        self.tab.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.tab.on("request", lambda request: self.requests.append(request.url))
        self.tab.goto(url)

    def shown(self, user: str) -> "Opened":
        self.tab.get_by_role("heading", name=f"User {user}", exact=True).wait_for()
        return self


@pytest.mark.parametrize(
    ("width", "scheme"), [(1280, "light"), (1280, "dark"), (390, "light")]
)
def test_a_user_is_shown(browser, url: str, width: int, scheme: str) -> None:
    opened = Opened(browser, f"{url}/#user=3", width, scheme).shown("3")
    tab = opened.tab
    assert tab.locator(".cohort").inner_text() == "long-tail user, 5 events"
    titles = tab.locator(".history .title").all_inner_texts()
    assert titles == [f"thing <b>{shop.FIRST + 25 - n}</b>" for n in range(5)]
    for place, model in enumerate(("up", "down")):
        card = tab.locator(".model").nth(place)
        assert card.locator("h2").inner_text() == f"Recommended by {model}"
        assert card.locator(".found > li").count() == 10
        assert card.locator(".near").count() >= 10
    up = tab.locator(".model").first.locator(".found > li")
    first = up.first.inner_text()
    assert "cvr" in first
    assert "199 above its place by down" in first
    # Titles are text: none of their markup became an element.
    assert tab.locator(".title b, .near b b").count() == 0
    assert opened.complaints == []
    assert all(request.startswith(url) for request in opened.requests)
    assert tab.evaluate("document.documentElement.scrollWidth") == width
    assert tab.evaluate(CONTRAST, "body") > 7
    sizes = tab.locator("main *").evaluate_all(
        "all => all.map(one => parseFloat(getComputedStyle(one).fontSize))"
    )
    assert min(sizes) >= 14
    if width < 500:  # large enough for a thumb
        boxes = tab.locator("form#ask button, form#ask input#user, form#ask select")
        heights = [box.bounding_box()["height"] for box in boxes.all()]
        assert min(heights) >= 44


def test_by_keyboard(browser, url: str) -> None:
    tab = Opened(browser, f"{url}/#user=3").shown("3").tab
    tab.keyboard.press("Tab")
    assert tab.evaluate("document.activeElement.innerText") == "Skip to the results"
    tab.keyboard.press("Tab")
    assert tab.evaluate("document.activeElement.id") == "user"
    tab.keyboard.press("Control+A")
    tab.keyboard.type("99999")
    tab.keyboard.press("Enter")
    tab.get_by_role("heading", name="User 99999", exact=True).wait_for()
    assert "cold user, 0 events" in tab.locator(".cohort").inner_text()
    assert "what is popular" in tab.locator(".person").inner_text()
    assert tab.url.endswith("#user=99999")
    reached = set()
    for _ in range(6):
        tab.keyboard.press("Tab")
        reached.add(tab.evaluate("document.activeElement.id"))
    assert {"count", "another", "again"} <= reached


def test_other_choices(browser, url: str) -> None:
    from playwright.sync_api import expect

    tab = Opened(browser, f"{url}/#user=3").shown("3").tab
    tab.select_option("#count", "5")
    expect(tab.locator(".found > li")).to_have_count(10)
    tab.get_by_role("button", name="Another user").click()
    expect(tab.locator("#status")).to_contain_text("for")
    assert tab.locator(".model").count() == 2


def test_what_is_wrong_is_said(browser, url: str) -> None:
    opened = Opened(browser, f"{url}/#user=%3Cimg%20src=x%20onerror=alert(1)%3E")
    tab = opened.tab
    tab.locator("#status.wrong").wait_for()
    said = tab.locator("#status").inner_text()
    assert said.startswith("user: '<img src=x onerror=alert(1)>' is no int64")
    assert tab.locator("#status img").count() == 0


def test_a_token_is_asked_for(browser, places, tmp_path: Path) -> None:
    with listening(places, tmp_path, token=shop.TOKEN) as address:
        tab = Opened(browser, f"{address}/#user=3").tab
        tab.locator("#status.wrong").wait_for()
        assert tab.evaluate("document.activeElement.id") == "token"
        tab.keyboard.type(shop.TOKEN)
        tab.keyboard.press("Enter")
        tab.get_by_role("heading", name="User 3", exact=True).wait_for()
        assert shop.TOKEN not in tab.url
