"""A plan on a terminal."""

import itertools
from collections.abc import Sequence

from learn_torchrec.derived.run import FEATURES, Derived
from learn_torchrec.evaluation.report.terminal import align

from .estimates import Estimate

_GIGABYTE = 1e9


def choices_table(derived: Derived) -> str:
    """Return the derived settings with their reasons, and the ranker's features."""
    lines = [["section", "derived from the data", "because"]]
    sections = itertools.groupby(
        (one for one in derived.choices if one.setting != FEATURES),
        key=lambda one: (one.setting.rpartition(".")[0], one.reason),
    )
    for (section, reason), choices in sections:
        values = (f"{one.setting.rpartition('.')[2]}={one.value}" for one in choices)
        lines.append([section, " ".join(values), reason])
    parts = [align(lines, left=(0, 1, 2))]
    if derived.features is not None:
        parts.append(derived.features.table())
    parts.append("--set SECTION.NAME=VALUE changes a setting.")
    return "\n\n".join(parts)


def estimates_table(estimates: Sequence[Estimate]) -> str:
    """Return the steps with roughly what each takes, and the sum."""
    lines = [["step", "works on", "idle machine", "memory", "disk"]]
    for one in estimates:
        lines.append([one.step, one.work, *_amounts(one.seconds, one.memory, one.disk)])
    sums = sum(one.seconds for one in estimates), sum(one.disk for one in estimates)
    most = max((one.memory for one in estimates), default=0.0)
    lines.append(["all", "", *_amounts(sums[0], most, sums[1])])
    return align(lines)


def _amounts(seconds: float, memory: float, disk: float) -> list[str]:
    return [_duration(seconds), _size(memory), _size(disk)]


def _size(size: float) -> str:
    if size >= _GIGABYTE / 2:
        return f"{size / _GIGABYTE:.1f} GB"
    return f"{size / 1e6:,.0f} MB"


def _duration(seconds: float) -> str:
    for unit, name in ((86_400, "days"), (3_600, "h"), (60, "min")):
        if seconds >= 2 * unit:
            return f"{seconds / unit:,.0f} {name}"
    return f"{seconds:.0f} s"
