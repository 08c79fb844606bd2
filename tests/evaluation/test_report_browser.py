"""The report of a small run, looked at in a real browser."""

from pathlib import Path

import pytest
from report_run import HOSTILE

from learn_torchrec.evaluation.report import figures
from learn_torchrec.evaluation.report.parts import Report, Section, Table
from learn_torchrec.evaluation.report.render import write_report
from learn_torchrec.text import printable


class Opened:
    """The page in one window, with all that it complained about or asked for."""

    def __init__(self, browser, path: Path, width: int, scheme: str) -> None:
        viewport = {"width": width, "height": 800}
        context = browser.new_context(viewport=viewport, color_scheme=scheme)
        self.tab = context.new_page()
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.tab.on("console", lambda message: self.complaints.append(message.text))
        self.tab.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.tab.on("request", lambda request: self.requests.append(request.url))
        self.tab.goto(path.as_uri())


@pytest.mark.parametrize(
    ("width", "scheme"), [(1200, "light"), (1200, "dark"), (360, "light")]
)
def test_it_renders(browser, page: Path, width: int, scheme: str) -> None:
    opened = Opened(browser, page, width, scheme)
    tab = opened.tab
    assert opened.complaints == []
    assert [url for url in opened.requests if not url.startswith("data:")] == [
        page.as_uri()
    ]
    # Nothing but a table's own box scrolls sideways, on a phone too.
    assert tab.evaluate("document.documentElement.scrollWidth") == width
    figures = tab.locator("figure")
    assert figures.count() >= 8
    for number in range(figures.count()):
        box = figures.nth(number).locator("svg").bounding_box()
        assert box["width"] > 200
        assert box["height"] > 120
        label = figures.nth(number).get_by_role("img").get_attribute("aria-label")
        assert len(label) > 20
    # Text stands out from the page in both schemes, in drawings as well.
    for chosen in ("body", "figure svg text"):
        ratio = tab.evaluate(CONTRAST, chosen)
        assert ratio > 7, chosen


@pytest.mark.parametrize("width", [1280, 390])
def test_it_opens_with_the_summary(browser, page: Path, width: int) -> None:
    tab = Opened(browser, page, width, "light").tab
    first = tab.locator("main section").first
    assert first.locator("h2").inner_text() == "Ranking: baseline against LEARN"
    lead = first.locator("p.lead")
    assert lead.inner_text().startswith("LEARN orders each user's impressions better")
    assert lead.bounding_box()["y"] < 700  # seen without scrolling, on a phone too
    for chosen in ("p", "td", ".note"):
        sizes = tab.locator(chosen).evaluate_all(
            "all => all.map(one => parseFloat(getComputedStyle(one).fontSize))"
        )
        assert min(sizes) >= 14, chosen


def test_hostile_names_do_nothing_in_a_browser(browser, tmp_path: Path) -> None:
    names = [*HOSTILE, "</title><script>alert(5)</script>", "javascript:alert(6)"]
    series = {name: ([1.0, 2.0], [0.5, n / 9]) for n, name in enumerate(names)}
    rows = [[name, 0.5] for name in names]
    sections = [
        Section(
            name=name,
            title=name,
            text=[name],
            code=name,
            tables=[
                Table(
                    name=f"{name}.",
                    title=name,
                    columns=[name, "x"],
                    formats=["", ".1f"],
                    rows=rows,
                    note=name,
                )
            ],
            figures=[figures.curves(f"{name}!", name, series, (name, name), name)],
        )
        for name in names
    ]
    made = Report(title=names[4], subtitle=names[1], notices=names, sections=sections)
    path = tmp_path / "report.html"
    write_report(made, path)
    opened = Opened(browser, path, 1200, "light")
    assert opened.complaints == []  # a breach of the page's policy would be one
    assert [url for url in opened.requests if not url.startswith("data:")] == [
        path.as_uri()
    ]
    tab = opened.tab
    assert tab.title() == names[4]
    for kind in ("script", "style", "title"):
        assert tab.locator(kind).count() == 1, kind
    assert tab.locator("img, iframe, object, foreignObject, image, b").count() == 0
    tab.locator("th button").first.click()  # the page's own script works
    assert tab.locator("th[aria-sort=ascending]").count() == 1
    cells = tab.locator("tbody").first.locator("td:first-child").all_inner_texts()
    assert sorted(cells) == sorted(map(printable, names))


def test_an_injected_script_would_be_stopped(browser, page: Path, tmp_path) -> None:
    """The policy holds even where an escape were forgotten."""
    path = tmp_path / "report.html"
    inside = "<script>document.title='mine'</script><p id=x style='color:red'>x</p>"
    body = page.read_text().replace(
        "<main", f"{inside}<img src=x onerror=alert(1)><main"
    )
    path.write_text(body)
    opened = Opened(browser, path, 1200, "light")
    assert opened.tab.title() != "mine"
    ink = opened.tab.evaluate("getComputedStyle(document.querySelector('#x')).color")
    assert ink != "rgb(255, 0, 0)"
    said = " ".join(opened.complaints)
    for directive in ("script-src", "style-src", "img-src"):
        assert directive in said


CONTRAST = """(chosen) => {
  const light = (text) => text.match(/[0-9.]+/g).slice(0, 3).map((part) => {
    const value = part / 255;
    return value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
  }).reduce((sum, part, place) => sum + part * [0.2126, 0.7152, 0.0722][place], 0);
  const element = document.querySelector(chosen);
  const style = getComputedStyle(element);
  const ink = light(chosen === "body" ? style.color : style.fill);
  const page = light(getComputedStyle(document.body).backgroundColor);
  return (Math.max(ink, page) + 0.05) / (Math.min(ink, page) + 0.05);
}"""


def test_tables_sort_by_mouse_and_by_keyboard(browser, page: Path) -> None:
    tab = Opened(browser, page, 1200, "light").tab
    table = tab.get_by_role("region", name="Metrics by cohort").locator("table")
    column = table.locator("th").all_inner_texts().index("auc")
    cells = table.locator(f"tbody tr td:nth-child({column + 1})")
    before = cells.all_inner_texts()
    undefined = before.count("–")
    head = table.locator("th").nth(column)
    button = head.get_by_role("button")

    def numbers() -> list[float]:
        texts = cells.all_inner_texts()
        assert sorted(texts) == sorted(before)
        assert texts[len(texts) - undefined :] == ["–"] * undefined
        return [float(text) for text in texts[: len(texts) - undefined]]

    button.click()
    assert head.get_attribute("aria-sort") == "ascending"
    assert numbers() == sorted(numbers())
    button.focus()
    tab.keyboard.press("Enter")
    assert head.get_attribute("aria-sort") == "descending"
    assert numbers() == sorted(numbers(), reverse=True)


def test_the_keyboard_reaches_everything(browser, page: Path) -> None:
    tab = Opened(browser, page, 1200, "light").tab
    tab.keyboard.press("Tab")
    assert tab.evaluate("document.activeElement.innerText") == "Skip to the content"
    reached = set()
    for _ in range(400):
        tab.keyboard.press("Tab")
        kind = tab.evaluate("document.activeElement.tagName")
        reached.add(kind)
        if kind == "SUMMARY":
            break
    assert {"A", "BUTTON", "DIV", "SUMMARY"} <= reached  # links, heads, tables' boxes
    tab.keyboard.press("Enter")
    assert tab.locator("details").first.get_attribute("open") is not None
