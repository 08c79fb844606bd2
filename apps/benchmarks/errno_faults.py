"""Injected system errors: each call by which a stage writes fails once.

A small library, preloaded into the process, counts the calls that write below the
output's folder (open, write, fsync, rename, mkdir, truncate, unlink) and lets one fail.
EIO and EINTR hit that call alone; a full or read-only disk stays so until the end.

Afterwards each piece of the output (the artefact; each file or artefact of a folder)
must be absent, the old one or the new one, whole; the program must have ended well, or
with exit code 2 and one line that names the place; and the same command, run again,
must make the same output as an undisturbed run and leave nothing else behind, unless it
was there already or what failed is a removal.
"""

import errno
import functools
import itertools
import random
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from learn_torchrec.errors import UserError

from ..common.program import run
from . import measure
from .errno_outputs import hidden_in, pieces_of
from .errno_stages import STEPS, ErrnoStep, make_inputs
from .preloaded import Preloaded, of_rank

MOST = 2_200  # cases of a run: all kinds of calls, and some again
ERRORS = ("EIO", "ENOSPC", "EROFS", "EDQUOT", "EINTR")
_LASTING = ("ENOSPC", "EROFS", "EDQUOT")
_VARYING = re.compile(
    r"(\.|\.learn-torchrec-)[0-9a-z_]{8,}|[0-9a-f]{16,}|\d+"
)  # temporary names, numbers
_TRIED = [step.name for step in STEPS if step.is_tried]
_SOURCE = Path(__file__).with_suffix(".c")


def build_shim(folder: Path) -> Path:
    """Compile the library to preload.

    Raises:
        UserError: there is no C compiler.
    """
    if shutil.which("gcc") is None:
        raise UserError("this benchmark needs gcc; install it (Debian: gcc libc6-dev)")
    library = folder / "errno_faults.so"
    command = ["gcc", "-O1", "-shared", "-fPIC", "-o", str(library), str(_SOURCE)]
    subprocess.run([*command, "-ldl"], check=True)
    return library


@dataclass(frozen=True, kw_only=True)
class Case:
    """One call to fail.

    Attributes:
        step: the stage.
        replaces: whether an older output is there.
        at: number of the call, from 1.
        error: name of the error.
        rank: that makes the call.
    """

    step: ErrnoStep
    replaces: bool
    at: int
    error: str
    rank: int = 0

    def __str__(self) -> str:
        old = " over an old one" if self.replaces else ""
        old += f", rank {self.rank}" if self.step.ranks > 1 else ""
        return f"{self.step.name}{old}, call {self.at}, {self.error}"


class Counts(NamedTuple):
    """How many cases there are, and how many kinds of calls there are and are tried."""

    cases: int
    kinds: int
    kinds_tried: int


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a case ended in; `happened` tells of what went wrong."""

    hit: bool
    state_right: bool
    one_line: bool
    happened: str


class Trials:
    """Runs cases one after the other, in a folder of its own."""

    def __init__(self, folder: Path, inputs: Path, process: Preloaded) -> None:
        self._folder, self._inputs, self._process = folder, inputs, process
        self._output, self._calls = folder / "output", folder / "calls"

    def calls(self, step: ErrnoStep, replaces: bool) -> list[list[str]]:
        """Return each rank's calls in an undisturbed run, each with its path.

        Raises:
            RuntimeError: it failed.
        """
        place = self._prepare(step, replaces)
        if self._run(step, place):
            raise RuntimeError(f"{step.name} failed: {self._said()}")
        made, expected = (pieces_of(step.output(at)) for at in (place, self._inputs))
        if made != expected:
            differing = sorted(n for n, _ in made.items() ^ expected.items())
            raise RuntimeError(f"{step.name}: another run makes other {differing}")
        return [
            [
                call.replace(str(place), "").replace(step.output(place).name, "OUT")
                for call in self._made(rank)
            ]
            for rank in range(step.ranks)
        ]

    def try_case(self, case: Case) -> Outcome:
        """Let one call fail, check what is there, and run the stage again."""
        step, place = case.step, self._prepare(case.step, case.replaces)
        new = pieces_of(step.output(self._inputs))
        before = pieces_of(step.output(place))
        status = self._run(step, place, case.at, case.error, case.rank)
        failed = next((c[1:] for c in self._made(case.rank) if c[0] == "!"), None)
        said, found = self._said(step.ranks), pieces_of(step.output(place))
        is_said = _is_one_line(said, status, place, step.ranks)
        one_line = is_said and (status == 2 or found == new)
        again = self._run(step, place)
        left = _left_in(place, case, found == new, failed or "")
        completes = not again and not left and pieces_of(step.output(place)) == new
        is_whole = all(found.get(n) in (before.get(n), new[n]) for n in new)
        state_right = is_whole and completes
        happened = f"{case}: {failed}: exit code {status}"
        if not (state_right and one_line):
            output = "new" if found == new else "whole" if is_whole else "damaged"
            happened += (
                f", {said[-1500:]!r}; the output is {output}; run again: {again}"
            )
            happened += f", left {left}, {'' if completes else self._said()[-1500:]!r}"
        return Outcome(
            hit=failed is not None,
            state_right=state_right,
            one_line=one_line,
            happened=happened.replace(str(self._folder), ""),
        )

    def _prepare(self, step: ErrnoStep, replaces: bool) -> Path:
        place = self._folder / "place"
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        step.lay_out(self._inputs, step.output(place), replaces)
        return place

    def _run(
        self,
        step: ErrnoStep,
        place: Path,
        at: int = 0,
        error: str = "EIO",
        rank: int = 0,
    ) -> int:
        return self._process.run(
            step.arguments(self._inputs, step.output(place)),
            output=self._output,
            calls=self._calls,
            fault=(str(place), at, getattr(errno, error), error in _LASTING),
            ranks=step.ranks,
            hit=rank,
        )

    def _said(self, ranks: int = 1) -> str:
        files = (of_rank(self._output, rank) for rank in range(ranks))
        return "".join(file.read_text(errors="replace") for file in files)

    def _made(self, rank: int) -> list[str]:
        return of_rank(self._calls, rank).read_text().splitlines()


def _left_in(place: Path, case: Case, was_done: bool, failed: str) -> set[str]:
    """Return what is in a place besides the output and the log.

    What could not be removed may stay, hidden: on a read-only disk, or where a removal
    is what failed; and if the output was published before, so may checkpoints, as the
    next run has nothing to do.
    """
    output = case.step.output(place)
    left = {path.name for path in place.iterdir()} | hidden_in(output)
    left -= {output.name, "logs"}
    if was_done or case.error == "EROFS" or failed.startswith("unlink "):
        left = {name for name in left if not name.startswith(".")}
    return left - {"checkpoints"} if was_done else left


def _is_one_line(said: str, status: int, place: Path, ranks: int) -> bool:
    """Whether a run ended well, or with one line, on a rank, that names a place."""
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    if "Traceback" in said or "Exception ignored" in said:
        return False
    if status == 2:
        named = all(str(place) in error for error in errors)
        return 1 <= len(errors) <= ranks and named
    return status == 0 and not errors


def sample(
    calls: Mapping[tuple[ErrnoStep, bool, int], Sequence[str]],
    most: int,
    generator: random.Random,
) -> tuple[list[Case], Counts]:
    """Return the cases to try: each kind of call before any a second time.

    Calls are of one kind if the same stage makes them for the same file, up to numbers
    in its name, and over the same kind of output.
    """
    kinds: dict[tuple[str, bool, int, str], list[Case]] = {}
    for (step, replaces, rank), made in calls.items():
        for at, call in enumerate(made, start=1):
            if not re.match(step.own, call):
                continue
            kind = step.name, replaces, rank, _VARYING.sub("#", call)
            kinds.setdefault(kind, []).extend(
                Case(step=step, replaces=replaces, at=at, error=error, rank=rank)
                for error in ERRORS
            )
    for cases in kinds.values():
        generator.shuffle(cases)
    shuffled = [*kinds.values()]
    generator.shuffle(shuffled)
    rounds = itertools.zip_longest(*shuffled)
    in_turn = (case for cases in rounds for case in cases if case is not None)
    chosen = list(itertools.islice(in_turn, most))
    counts = Counts(
        cases=sum(map(len, shuffled)),
        kinds=len(shuffled),
        kinds_tried=min(most, len(shuffled)),
    )
    return chosen, counts


def inject(
    most: int, seed: int, jobs: int, names: Sequence[str] = ()
) -> dict[str, Any]:
    """Inject errors into the stages; return the counts for `faults.json`.

    Args:
        most: cases to try, drawn from all if there are more.
        seed: of the draw.
        jobs: processes.
        names: of the steps; none for all.
    """
    steps = [step for step in STEPS if step.name in (names or _TRIED)]
    with tempfile.TemporaryDirectory(prefix="errno-") as name, ExitStack() as stack:
        folder = Path(name)
        shim, inputs = build_shim(folder), folder / "inputs"
        processes = [stack.enter_context(Preloaded(shim)) for _ in range(jobs)]
        make_inputs(inputs, functools.partial(_make, processes[0], folder), names)
        trials = [
            Trials(folder / str(number), inputs, process)
            for number, process in enumerate(processes)
        ]
        calls = {
            (step, replaces, rank): made
            for step in steps
            for replaces in (False, True)
            if step.other or not replaces
            for rank, made in enumerate(trials[0].calls(step, replaces))
        }
        cases, counts = sample(calls, most, random.Random(seed))
        print(
            f"{len(cases)} of {counts.cases} cases, {counts.kinds_tried} of "
            f"{counts.kinds} kinds of calls",
            flush=True,
        )
        with ThreadPoolExecutor(jobs) as pool:
            shares = [cases[number::jobs] for number in range(jobs)]
            outcomes = [o for part in pool.map(_try_all, trials, shares) for o in part]
    hits = [outcome for outcome in outcomes if outcome.hit]
    return {
        "errno_seed": seed,
        "errno_calls": sum(map(len, calls.values())),
        "errno_cases": counts.cases,
        "errno_kinds": counts.kinds,
        "errno_kinds_tried": counts.kinds_tried,
        "errno_faults": len(hits),
        "errno_state_right": sum(outcome.state_right for outcome in hits),
        "errno_one_line": sum(outcome.one_line for outcome in hits),
    }


def is_right(results: Mapping[str, Any]) -> bool:
    """Whether every fault left a right state, and one line or none."""
    right = results["errno_state_right"], results["errno_one_line"]
    return right == (results["errno_faults"],) * 2


def _make(
    process: Preloaded, folder: Path, arguments: list[str], ranks: int = 1
) -> None:
    if process.run(arguments, folder / "output", folder / "calls", ranks=ranks):
        raise RuntimeError(f"{arguments}: {(folder / 'output').read_text()}")


def _try_all(trials: Trials, cases: Sequence[Case]) -> list[Outcome]:
    outcomes = []
    for case in cases:
        outcomes.append(trials.try_case(case))
        if not (outcomes[-1].state_right and outcomes[-1].one_line):
            print(outcomes[-1].happened, flush=True)
    return outcomes


def main(argv: Sequence[str] | None = None) -> None:
    """Inject the errors, print the counts, and write them where asked."""
    parser = measure.parser("errno_faults", __doc__, "faults.json")
    parser.add_argument("--cases", type=int, default=MOST, metavar="N", help="at most")
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="at a time")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the cases")
    parser.add_argument(
        "--steps",
        nargs="*",
        choices=_TRIED,
        default=[],
        metavar="NAME",
        help="only these outputs (default: all)",
    )
    args = parser.parse_args(argv)
    results = inject(args.cases, args.seed, args.jobs, args.steps)
    measure.publish(results, args.json, merge=True)
    sys.exit(0 if is_right(results) else 1)


if __name__ == "__main__":
    run(main)
