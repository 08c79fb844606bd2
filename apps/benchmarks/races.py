"""Races of two processes for one output, and ranks that were given different things.

- Two processes make one output at random offsets, with the same settings or with
  others: afterwards it must be whole, what one that ended well made, and nothing else
  may lie beside it; who is refused says so in one line.
- Two ranks get other data, artefacts or settings: see `disagreements`.
"""

import json
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq

from learn_torchrec.datasets.generated.market import MarketConfig, write_market
from learn_torchrec.schema import (
    IMPRESSIONS_FILE,
    ITEM_ID,
    LABEL,
    SCORE,
    TIMESTAMP,
    USER_ID,
)

from ..common.program import run
from . import measure
from .disagreements import refusals
from .processes import Processes, ended
from .stages import content_of

_MARKET = MarketConfig(users=60, items=40, days=6, impressions=600)
_ARTEFACTS = ("market", "prepared", "impressions")


@dataclass(frozen=True)
class Race:
    """What two processes make at once.

    Attributes:
        name: of the output.
        commands: the two, without `--out`; equal ones must make the same.
        exists: whether a third one's output is there before.
    """

    name: str
    commands: tuple[list[str], list[str]]
    exists: bool = False

    @property
    def out(self) -> str:
        """Name of the file or directory."""
        suffix = {"report": ".html", "ranking": ".json"}
        return self.name + suffix.get(self.name, "")


def write_inputs(folder: Path) -> None:
    """Write what the commands read: a market, predictions and a run to report."""
    (folder / "data").mkdir()
    for _ in write_market(_MARKET, folder / "data"):
        pass
    rows = pq.read_table(folder / "data" / IMPRESSIONS_FILE)
    rows = rows.select([USER_ID, ITEM_ID, TIMESTAMP, LABEL])
    score = pc.random(rows.num_rows, initializer=0)
    pq.write_table(rows.append_column(SCORE, score), folder / "predictions.parquet")
    (folder / "run").mkdir()


def races_of(folder: Path) -> Iterator[Race]:
    """Yield every race: the same, others, and others in place of an older output."""
    data = ["--data", f"parquet:{folder / 'data'}"]
    market = ["data", "market", "--users=60", "--items=40", "--days=6"]
    market += ["--impressions=600"]
    evaluate = ["evaluate-auc", "--predictions", f"a={folder / 'predictions.parquet'}"]
    for name, base, others in (
        ("market", market, ["--seed=1"]),
        ("prepared", ["prepare", *data], ["--set=prepare.min_events=3"]),
        ("impressions", ["data", "impressions", *data], ["--seed=1"]),
        ("ranking", evaluate, ["--set=cohorts.user_others_from=9"]),
        ("report", ["report", "--run", str(folder / "run")], []),
    ):
        yield Race(name, (base, base))
        if others:
            yield Race(name, (base, [*base, *others]))
        if name in _ARTEFACTS:
            again = [*base, "--overwrite"]
            yield Race(name, (again, [*again, *others]), exists=True)


def content(path: Path) -> object:
    """Return what an output holds, comparable between runs."""
    if path.is_dir():
        return content_of(path)
    if path.suffix == ".json":
        return json.loads(path.read_text())
    return [one.read_text() for one in sorted(path.parent.glob(f"{path.stem}.*"))]


@dataclass
class Track:
    """A race, what each of its commands makes alone, and how long that takes."""

    race: Race
    alone: tuple[object, object]
    seconds: float


def measured(race: Race, folder: Path, processes: Processes) -> Track:
    """Run both commands of a race alone."""
    made, seconds = [], 0.0
    for number, argv in enumerate(race.commands):
        out = folder / f"alone-{number}" / race.out
        out.parent.mkdir(exist_ok=True)
        seconds = processes.complete([*argv, "--out", out])
        made.append(content(out))
        shutil.rmtree(out.parent)
    return Track(race, (made[0], made[1]), seconds)


def lost(track: Track, folder: Path, delay: float, processes: Processes) -> str | None:
    """Let both commands race; return what went wrong, None for nothing."""
    race, place = track.race, folder / "race"
    place.mkdir()
    out = place / race.out
    if race.exists:
        processes.complete([*race.commands[0], "--out", out])
    runs = [processes.start([*race.commands[0], "--out", out])]
    time.sleep(delay)
    runs.append(processes.start([*race.commands[1], "--out", out]))
    ends = [ended(*one) for one in runs]
    problem = _problem(track, out, ends)
    shutil.rmtree(place)
    return problem


def _problem(
    track: Track, out: Path, ends: list[tuple[int | None, list[str]]]
) -> str | None:
    for code, lines in ends:
        if code not in (0, 2) or len(lines) != (code == 2):
            return f"exit code {code}: {lines}"
    winners = [
        made for made, (code, _) in zip(track.alone, ends, strict=True) if not code
    ]
    if not winners:
        return f"both refused: {ends}"
    if not out.exists() or content(out) not in winners:
        return "not what a run that ended well made"
    is_kept = not any("--overwrite" in one for one in track.race.commands)
    if out.is_dir() and is_kept and len(winners) == 2 and winners[0] != winners[1]:
        return "a finished artefact was replaced"
    beside = [path.name for path in out.parent.iterdir() if path.stem != out.stem]
    return f"left {beside}" if beside else None


def races(
    folder: Path, count: int, generator: random.Random, processes: Processes
) -> dict[str, Any]:
    """Race `count` times; count the races after which the output was not right."""
    write_inputs(folder)
    alone = [*next(iter(_of(folder, "ranking"))).commands[0]]
    processes.complete([*alone, "--out", folder / "run" / "ranking.json"])
    tracks = [measured(race, folder, processes) for race in races_of(folder)]
    problems = []
    for number in range(count):
        track = tracks[number % len(tracks)]
        delay = generator.uniform(0, track.seconds)
        problem = lost(track, folder, delay, processes)
        if problem is not None:
            problems.append(f"{track.race.name}, {delay:.3f} s apart: {problem}")
            print(problems[-1], flush=True)
    return {"races": count, "races_lost": len(problems), "races_problems": problems}


def _of(folder: Path, name: str) -> Iterator[Race]:
    return (race for race in races_of(folder) if race.name == name)


def main(argv: Sequence[str] | None = None) -> None:
    """Race, print the counts, and add them to those of the fault suite where asked."""
    parser = measure.parser("races", __doc__, "faults.json")
    parser.add_argument("--races", type=int, default=200, metavar="N", help="of two")
    parser.add_argument(
        "--disagreements", type=int, default=44, metavar="N", help="of two ranks"
    )
    parser.add_argument(
        "--seed", type=int, metavar="N", help="of the offsets (default: the time)"
    )
    args = parser.parse_args(argv)
    measure.require_machine(2)
    seed = int(time.time()) if args.seed is None else args.seed
    with tempfile.TemporaryDirectory(prefix="races-") as name:
        folder = Path(name)
        (folder / "logs").mkdir()
        processes = Processes(folder / "logs")
        results = races(folder, args.races, random.Random(seed), processes)
        results |= refusals(folder, args.disagreements, processes)
    measure.publish(results | {"races_seed": seed}, args.json, merge=True)
    is_lost = results["races_lost"]
    sys.exit(is_lost or results["ranks_refused"] < args.disagreements)


if __name__ == "__main__":
    run(main)
