"""SVG drawings by matplotlib, in the colours of the page.

matplotlib writes fixed colours; here they are placeholders that become CSS variables,
so that one drawing serves the light and the dark page.
"""

import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar
from xml.etree import ElementTree

import numpy as np

from learn_torchrec.arrays import BoolArray, Float64Array
from learn_torchrec.evaluation.report.parts import (
    SVG,
    XLINK,
    Drawing,
    Figure,
    anchor,
)
from learn_torchrec.text import printable

_SIZE = (4.2, 3.0)  # inches: the width of a phone, so that text is not scaled down
_INK, _GRID = "#010203", "#040506"
_SERIES = ("#0a0b01", "#0a0b02", "#0a0b03", "#0a0b04")
_VARIABLES = {_INK: "ink", _GRID: "grid"} | {
    colour: f"series-{number}" for number, colour in enumerate(_SERIES, start=1)
}
_MARKERS = ("o", "s", "^", "D")  # series differ in shape too, not in colour alone
_MOST_POINTS = 1500
_SHAPES = {
    f"{{{SVG}}}{name}"
    for name in ("g", "defs", "clipPath", "path", "rect", "text", "tspan", "use")
}

_Value = TypeVar("_Value")
Curve = tuple[Sequence[float], Sequence[float]]


def curves(
    name: str,
    title: str,
    series: Mapping[str, Curve],
    labels: tuple[str, str],
    alternative: str,
) -> Figure:
    """Draw lines."""
    figure, axes = _axes(labels)
    for number, (label, (x, y)) in enumerate(_printable_keys(series).items()):
        style = ("-", "--", "-.", ":")[number % 4]
        axes.plot(x, y, style, color=_SERIES[number % 4], label=label, linewidth=1.6)
    if len(series) > 1:
        _legend(axes)
    return _figure(name, title, figure, alternative)


def intervals(
    name: str,
    title: str,
    rows: Sequence[tuple[str, float, float, float]],
    label: str,
    alternative: str,
) -> Figure:
    """Draw one (label, value, low, high) per row, the first row on top."""
    figure, axes = _axes((label, ""))
    places = np.arange(len(rows))[::-1]
    values, lows, highs = np.array([row[1:] for row in rows], dtype=float).T
    reach = np.abs(np.stack([values - lows, highs - values]))
    axes.errorbar(
        values, places, xerr=reach, fmt="o", color=_SERIES[0], capsize=3, markersize=5
    )
    axes.axvline(0, color=_INK, linewidth=0.8)
    axes.set_yticks(places, [printable(row[0]) for row in rows])
    axes.set_ylim(-0.7, len(rows) - 0.3)
    return _figure(name, title, figure, alternative)


def percentages(
    name: str,
    title: str,
    entries: Iterable[tuple[str, Mapping[str, Any]]],
    part: str,
    label: str,
) -> Iterator[Figure]:
    """Yield a drawing of fractions as percentages, unless all are undefined.

    `entries` are each row's label, and its values under the keys `part`, "low" and
    "high": None if undefined. `label` says what they are.
    """
    rows = [
        (row, 100 * one[part], 100 * one["low"], 100 * one["high"])
        for row, one in entries
        if None not in (one[part], one["low"], one["high"])
    ]
    if rows:
        words = "; ".join(f"{n} {v:+.2f} ({a:+.2f} to {b:+.2f})" for n, v, a, b in rows)
        alternative = f"{label}, with 95 % intervals: {words}."
        yield intervals(name, title, rows, label, alternative)


def calibration(
    name: str, title: str, series: Mapping[str, Curve], alternative: str
) -> Figure:
    """Draw the observed rate over the mean score of every bin."""
    figure, axes = _axes(("mean score", "observed rate"))
    highest = max((max(*x, *y) for x, y in series.values() if len(x)), default=1.0)
    axes.plot([0, highest], [0, highest], color=_GRID, linewidth=1, label="calibrated")
    for number, (label, (x, y)) in enumerate(_printable_keys(series).items()):
        marker, colour = _MARKERS[number % 4], _SERIES[number % 4]
        axes.plot(x, y, marker=marker, color=colour, label=label, markersize=4)
    _legend(axes)
    return _figure(name, title, figure, alternative)


def scatter(
    name: str,
    title: str,
    points: Float64Array,
    groups: Mapping[str, BoolArray],
    alternative: str,
) -> Figure:
    """Draw points [N, 2] in groups, a random sample of very many."""
    figure, axes = _axes(("", ""))
    axes.set_xticks([])
    axes.set_yticks([])
    share = min(1.0, _MOST_POINTS / max(len(points), 1))
    is_drawn = np.random.default_rng(0).random(len(points)) < share
    for number, (label, mask) in enumerate(_printable_keys(groups).items()):
        x, y = points[mask & is_drawn].T
        marker, colour = _MARKERS[number % 4], _SERIES[number % 4]
        axes.scatter(
            x, y, s=7, marker=marker, color=colour, label=label, alpha=0.6, linewidths=0
        )
    _legend(axes)
    return _figure(name, title, figure, alternative)


def _axes(labels: tuple[str, str]) -> tuple[Any, Any]:
    import matplotlib
    from matplotlib.figure import Figure as Canvas  # no window system is touched

    with matplotlib.rc_context(_style()):
        figure = Canvas(figsize=_SIZE, layout="constrained")
        axes = figure.add_subplot()
    axes.set_xlabel(printable(labels[0]))
    axes.set_ylabel(printable(labels[1]))
    return figure, axes


def _style() -> dict[str, Any]:
    return {
        "svg.fonttype": "none",  # text stays text
        "text.parse_math": False,  # a name with two dollar signs is no formula
        "font.family": "sans-serif",
        "font.size": 10,
        "text.color": _INK,
        "axes.edgecolor": _GRID,
        "axes.labelcolor": _INK,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": _GRID,
        "grid.alpha": 0.5,
        "grid.linewidth": 0.6,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "xtick.color": _INK,
        "ytick.color": _INK,
        "figure.facecolor": "none",
        "axes.facecolor": "none",
        "legend.frameon": False,
    }


def _legend(axes: Any) -> None:
    legend = axes.legend(fontsize=9, frameon=False, markerscale=1.5)
    for text in legend.get_texts():
        text.set_color(_INK)


def _figure(name: str, title: str, figure: Any, alternative: str) -> Figure:
    svg = _svg(figure, name)
    return Figure(name=name, title=title, svg=svg, alternative=alternative)


def _svg(figure: Any, name: str) -> Drawing:
    """Return the drawing without its own size, with ids and colours of the page."""
    import matplotlib
    from matplotlib.text import Text

    for text in figure.findobj(Text):  # made before the style below applies
        text.set_parse_math(False)
    stream = io.StringIO()
    with matplotlib.rc_context(_style() | {"svg.hashsalt": anchor(name)}):
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    root = ElementTree.fromstring(stream.getvalue())
    _keep_shapes(root)
    prefix = anchor(name)
    for element in root.iter():
        _style_to_attributes(element)
        for key, value in element.attrib.items():
            element.set(key, _page_attribute(key, value, prefix))
    for size in ("width", "height"):
        root.attrib.pop(size, None)
    # In place of matplotlib's style sheet, which would apply to the whole page.
    shape = {"stroke-linejoin": "round", "stroke-linecap": "butt"}
    root.attrib.update({"aria-hidden": "true", "focusable": "false", **shape})
    return Drawing(root)


def _keep_shapes(parent: ElementTree.Element) -> None:
    """Remove everything but shapes and text, such as metadata and style sheets."""
    for child in list(parent):
        if child.tag in _SHAPES:
            _keep_shapes(child)
        else:
            parent.remove(child)


def _style_to_attributes(element: ElementTree.Element) -> None:
    """Write a style as attributes: the page's policy allows no style in an element."""
    for part in filter(str.strip, element.attrib.pop("style", "").split(";")):
        name, _, value = part.partition(":")
        element.set(name.strip(), value.strip())


def _page_attribute(key: str, value: str, prefix: str) -> str:
    """Return an attribute with unique ids, and colours as CSS variables."""
    if key == "id":
        return f"{prefix}-{value}"
    if key in ("href", f"{{{XLINK}}}href"):
        return value.replace("#", f"#{prefix}-", 1)
    value = value.replace("url(#", f"url(#{prefix}-")
    for colour, variable in _VARIABLES.items():
        value = value.replace(colour, f"var(--{variable})")
    return value


def _printable_keys(named: Mapping[str, _Value]) -> dict[str, _Value]:
    return {printable(name): value for name, value in named.items()}
