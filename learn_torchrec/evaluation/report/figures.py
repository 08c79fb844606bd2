"""Drawings as SVG, by matplotlib, in the colours of the page.

matplotlib writes fixed colours; here they are placeholders that become CSS variables,
so that one drawing serves light and dark.
"""

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from learn_torchrec.arrays import Float64Array
from learn_torchrec.evaluation.report.parts import Figure

_SIZE = (4.2, 3.0)  # inches: the width of a phone, so that text is not scaled down
_INK, _GRID = "#010203", "#040506"
_SERIES = ("#0a0b01", "#0a0b02", "#0a0b03", "#0a0b04")
_VARIABLES = {_INK: "ink", _GRID: "grid"} | {
    colour: f"series-{number}" for number, colour in enumerate(_SERIES, start=1)
}
_MARKERS = ("o", "s", "^", "D")  # series differ in shape too, not in colour alone
_MOST_POINTS = 1500

Curve = tuple[Sequence[float], Sequence[float]]


def curves(
    name: str,
    title: str,
    series: Mapping[str, Curve],
    labels: tuple[str, str],
    alternative: str,
) -> Figure:
    """Draw lines, each a pair of x and y."""
    figure, axes = _axes(labels)
    for number, (label, (x, y)) in enumerate(series.items()):
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
    """Draw one value with its interval a row; the first row on top."""
    figure, axes = _axes((label, ""))
    places = np.arange(len(rows))[::-1]
    values, lows, highs = np.array([row[1:] for row in rows], dtype=float).T
    reach = np.abs(np.stack([values - lows, highs - values]))
    axes.errorbar(
        values, places, xerr=reach, fmt="o", color=_SERIES[0], capsize=3, markersize=5
    )
    axes.axvline(0, color=_INK, linewidth=0.8)
    axes.set_yticks(places, [row[0] for row in rows])
    axes.set_ylim(-0.7, len(rows) - 0.3)
    return _figure(name, title, figure, alternative)


def calibration(
    name: str, title: str, series: Mapping[str, Curve], alternative: str
) -> Figure:
    """Draw the observed rate over the mean score of every bin."""
    figure, axes = _axes(("mean score", "observed rate"))
    highest = max((max(*x, *y) for x, y in series.values() if len(x)), default=1.0)
    axes.plot([0, highest], [0, highest], color=_GRID, linewidth=1, label="calibrated")
    for number, (label, (x, y)) in enumerate(series.items()):
        marker, colour = _MARKERS[number % 4], _SERIES[number % 4]
        axes.plot(x, y, marker=marker, color=colour, label=label, markersize=4)
    _legend(axes)
    return _figure(name, title, figure, alternative)


def scatter(
    name: str,
    title: str,
    points: Float64Array,
    groups: Mapping[str, npt.NDArray[np.bool_]],
    alternative: str,
) -> Figure:
    """Draw points [N, 2] in groups; of very many, a random part."""
    figure, axes = _axes(("", ""))
    axes.set_xticks([])
    axes.set_yticks([])
    share = min(1.0, _MOST_POINTS / max(len(points), 1))
    is_drawn = np.random.default_rng(0).random(len(points)) < share
    for number, (label, mask) in enumerate(groups.items()):
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
    axes.set_xlabel(labels[0])
    axes.set_ylabel(labels[1])
    return figure, axes


def _style() -> dict[str, Any]:
    return {
        "svg.fonttype": "none",  # text stays text
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


def _svg(figure: Any, name: str) -> str:
    """Return the drawing without its own size, names, and colours."""
    import matplotlib

    stream = io.StringIO()
    with matplotlib.rc_context(_style() | {"svg.hashsalt": name}):
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    svg = stream.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    # Two drawings on a page must not share the ids of their parts.
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'href="#', f'href="#{name}-', svg)
    svg = re.sub(r"url\(#", f"url(#{name}-", svg)
    svg = re.sub(r'<svg([^>]*?) width="[^"]*"', r"<svg\1", svg)
    svg = re.sub(r'<svg([^>]*?) height="[^"]*"', r"<svg\1", svg)
    svg = svg.replace("<svg", '<svg aria-hidden="true" focusable="false"', 1)
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, f"var(--{variable})")
    return svg
