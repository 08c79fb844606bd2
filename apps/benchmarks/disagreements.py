"""Ranks that were given different things: see `races`.

Rank 1 of two gets other data, labels, texts, artefacts or settings than rank 0. Both
must refuse, in one line with exit code 2, before they work.
"""

import shutil
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from learn_torchrec.schema import (
    IMPRESSIONS_FILE,
    INTERACTIONS_FILE,
    ITEMS_FILE,
    LABEL,
    TIMESTAMP,
    TITLE,
)

from .errno_stages import STEPS, ErrnoStep, make_inputs
from .processes import Processes, ended

_MADE = ("content", "towers", "vectors", "ranker", "predictions", "streamed")
_TABLES = {
    "texts": (ITEMS_FILE, TITLE),
    "data": (INTERACTIONS_FILE, TIMESTAMP),
    "labels": (IMPRESSIONS_FILE, LABEL),
}
# What rank 1 is given, by output: a table of `_TABLES`, an artefact, or a setting.
_OTHERS = {
    "content": ("texts", "content.encoder.max_tokens=8"),
    "towers": (
        *("data", "content", "towers.training.seed=1"),
        "towers.optimizer.learning_rate=0.02",
    ),
    "vectors": ("data", "content", "towers", "export.neighbours=5"),
    "ranker": (
        *("data", "labels", "vectors", "ranker.training.seed=1"),
        "ranker.optimizer.learning_rate=0.02",
    ),
    "predictions": ("data", "labels", "vectors", "ranker", "split.min_events=5"),
    "streamed": ("predictions", "convention.user_weight=positives"),
}


@dataclass(frozen=True)
class Disagreement:
    """What the second of two ranks is given.

    Attributes:
        step: that both ranks make.
        other: see `_OTHERS`.
    """

    step: ErrnoStep
    other: str

    def __str__(self) -> str:
        return f"{self.step.name}, other {self.other}"

    def commands(self, inputs: Path, out: Path) -> tuple[list[str], list[str]]:
        """Return the arguments of both ranks."""
        ours = self.step.arguments(inputs, out)
        if "=" in self.other:
            return ours, [*ours, f"--set={self.other}"]
        name = "market" if self.other in _TABLES else self.other
        before, after = str(inputs / name), str(inputs / "others" / self.other)
        return ours, [word.replace(before, after) for word in ours]


def disagreements() -> Iterator[Disagreement]:
    """Yield each once."""
    for name, others in _OTHERS.items():
        for other in others:
            yield Disagreement(_step(name), other)


def _step(name: str) -> ErrnoStep:
    return next(step for step in STEPS if step.name == name)


def write_inputs(folder: Path, processes: Processes) -> None:
    """Make what ranks read, and in `others` what one of them reads instead."""
    make_inputs(folder, lambda given, _: processes.complete(given), _MADE)
    (folder / "old").rename(folder / "others")
    for other, (name, column) in _TABLES.items():
        shutil.copytree(folder / "market", folder / "others" / other)
        change(column, folder / "others" / other / name)
    scored = Disagreement(_step("predictions"), "ranker")
    processes.complete(scored.commands(folder, folder / "others" / "predictions")[1])


def change(column: str, place: Path) -> None:
    """Change a column's first value, in a file or a folder of parts."""
    path = min(place.glob("*.parquet"), default=place)
    table = pq.read_table(path)
    first, *others = table[column].to_pylist()
    first = f"{first}." if isinstance(first, str) else first + 1
    if column == LABEL:
        first %= 2
    changed = pa.array([first, *others], table.schema.field(column).type)
    number = table.column_names.index(column)
    pq.write_table(table.set_column(number, column, changed), path)


def refusals(folder: Path, count: int, processes: Processes) -> dict[str, int]:
    """Give two ranks different things; count how often both refuse in one line."""
    write_inputs(folder / "inputs", processes)
    kinds, refused = [*disagreements()], 0
    for number in range(count):
        kind = kinds[number % len(kinds)]
        out = folder / "ranks" / kind.step.output(Path()).name
        out.parent.mkdir()
        ends = _two_ranks(processes, kind.commands(folder / "inputs", out))
        left = [path.name for path in out.parent.iterdir()]
        if all(code == 2 and len(lines) == 1 for code, lines in ends) and not left:
            refused += 1
        else:
            print(f"{kind}: {ends}, left {left}", flush=True)
        shutil.rmtree(out.parent)
    return {
        "ranks_disagree": count,
        "ranks_refused": refused,
        "ranks_kinds": min(count, len(kinds)),
    }


def _two_ranks(
    processes: Processes, commands: tuple[list[str], list[str]]
) -> list[tuple[int | None, list[str]]]:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = str(one.getsockname()[1])
    job = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2"}
    runs = [
        processes.start(command, RANK=str(rank), LOCAL_RANK=str(rank), **job)
        for rank, command in enumerate(commands)
    ]
    return [ended(*one) for one in runs]
