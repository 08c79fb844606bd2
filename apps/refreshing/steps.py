"""The steps of a refresh: commands that anybody may run alone, in this order."""

import argparse
import contextlib
import dataclasses
import importlib
import logging
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from learn_torchrec.artifact import CONFIG, MANIFEST
from learn_torchrec.errors import Stopped, UserError, refuse_special
from learn_torchrec.evaluation.cohorts import CohortConfig
from learn_torchrec.refusals import one_line
from learn_torchrec.text import parse_json

from .. import evaluate_auc
from ..common import program
from ..stages import STAGES

LOG = "refresh.log"
SERVED = ("content", "towers", "vectors", "ranker")  # kinds, and directories
GATE, SECONDS = "gate.json", "seconds.json"
_AFTER, _BEFORE = "predictions", "predictions_before"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Step:
    """A stage of a run.

    Attributes:
        name: of its artefact's directory.
        command: of the stage.
        reads: artefacts of this run, by option.
        base: artefacts of the run that this one starts from, by option.
    """

    name: str
    command: str
    reads: tuple[str, ...] = ()
    base: dict[str, str] = field(default_factory=dict)


def steps(base: Path | None) -> tuple[Step, ...]:
    """Return the steps of a run; without `base`, of the first."""
    made = (
        Step("content", "encode-content", (), {"reuse": "content"}),
        Step("towers", "train-towers", ("content",), {"warm-start": "towers"}),
        Step(
            "vectors", "export-vectors", ("content", "towers"), {"earlier": "vectors"}
        ),
        Step("ranker", "train-ranker", ("vectors",), {"warm-start": "ranker"}),
    )
    if base is None:
        return tuple(Step(one.name, one.command, one.reads) for one in made)
    before = {"ranker": "ranker", "vectors": "vectors"}
    return (
        *made,
        Step(_AFTER, "predict", ("ranker", "vectors")),
        Step(_BEFORE, "predict", (), before),
    )


class Maker:
    """Makes the artefacts of one run.

    Args:
        args: of the refresh: data and ranks.
        directory: of the run, with its configuration.
        base: of the run that it starts from; None for the first.
    """

    def __init__(
        self, args: argparse.Namespace, directory: Path, base: Path | None
    ) -> None:
        self._args, self._directory, self._base = args, directory, base

    def options_of(self, step: Step) -> list[str]:
        """Return the options of a step's command."""
        result = ["--data", self._args.data, "--out", str(self._directory / step.name)]
        result += ["--overwrite", "--config", str(self._directory / CONFIG)]
        result += ["--strict"] if self._args.strict else []
        for name in step.reads:
            result += [f"--{name}", str(self._directory / name)]
        for option, name in step.base.items():
            if self._base is not None:
                result += [f"--{option}", str(self._base / name)]
        return result

    def make(self, step: Step) -> None:
        """Make an artefact, unless it is there.

        Raises:
            UserError: the stage failed.
            Stopped: the stage was stopped.
        """
        given = self.options_of(step)
        start = time.monotonic(), time.process_time()
        name = f"{self._directory.name}/{step.name}"
        app = importlib.import_module(STAGES[step.command].module)
        if app.plan(app.build_parser().parse_args(given)).is_done():
            logger.info("%s: done before", name)
            return
        logger.info("%s: %s %s", name, step.command, " ".join(given))
        if self._args.ranks == 1 or step.command == "encode-content":
            app.main(given)  # the encoder uses all cores from one process
        else:
            self._launch(step, given)
        if not (self._directory / step.name / MANIFEST).exists():
            raise Stopped(f"{name} was stopped; run it again to resume")
        wall, processor = time.monotonic() - start[0], time.process_time() - start[1]
        logger.info("%s: done in %.1f s", name, wall)
        _note_seconds(self._directory, step.name, wall, processor)

    def _launch(self, step: Step, given: Sequence[str]) -> None:
        """Run a stage on several ranks of this machine."""
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command += [f"--nproc-per-node={self._args.ranks}", "-m"]
        command += [STAGES[step.command].module, *given]
        log = self._args.run / LOG
        with log.open("a", encoding="utf-8") as stream:
            done = subprocess.run(
                command,
                check=False,
                stdout=stream,
                stderr=subprocess.STDOUT,
                preexec_fn=program.end_with_parent,
            )
        if done.returncode:
            raise UserError(
                f"{step.command} failed on {self._args.ranks} ranks; the end of {log} "
                "says why"
            )


def passes_gate(directory: Path, gates: Sequence[str], cohorts: CohortConfig) -> bool:
    """Compare a run's predictions with those of the served run; write `gate.json`.

    Raises:
        UserError: a condition that names no metric or cohort.
    """
    given = ["--predictions", f"served={directory / _BEFORE}"]
    given += [f"refreshed={directory / _AFTER}", "--out", str(directory / GATE)]
    for gate in gates:
        given += ["--gate", gate]
    for name, value in dataclasses.asdict(cohorts).items():
        given += [f"--set=cohorts.{name}={value}"]
    try:
        evaluate_auc.main(given)
    except SystemExit as ended:
        if ended.code not in (0, 1):
            raise
        return not ended.code
    return True


def _note_seconds(directory: Path, step: str, wall: float, processor: float) -> None:
    """Add a step's seconds to the run's record."""
    path = directory / SECONDS
    known: object = {}
    if path.exists():
        with contextlib.suppress(ValueError):  # damaged: the seconds are a record only
            refuse_special(path)
            known = parse_json(path.read_text(encoding="utf-8"))
    known = known if isinstance(known, dict) else {}
    taken = {"wall": round(wall, 2), "processor": round(processor, 2)}
    program.write_json(path, known | {step: taken})


class _LogFile(logging.FileHandler):
    """A log of what standard error says; where it cannot be written, work goes on."""

    is_refused = False

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line, unless one was refused."""
        if not self.is_refused:
            super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:
        """Say on standard error, once, that the system refuses the file."""
        error = sys.exception()
        if not isinstance(error, OSError):
            super().handleError(record)
            return
        self.is_refused = True
        logger.warning("no more in %s: %s", self.baseFilename, one_line(error) or error)

    def close(self) -> None:
        """Close the file."""
        with contextlib.suppress(OSError):  # of a line that was refused
            super().close()


@contextlib.contextmanager
def logged(path: Path) -> Iterator[None]:
    """Append what the block logs, and the error that ends it, to a file."""
    handler = _LogFile(path, encoding="utf-8")
    root = logging.getLogger()
    formatters = [one.formatter for one in root.handlers if one.formatter]
    handler.setFormatter(formatters[0] if formatters else logging.Formatter())
    loggers = [logging.getLogger(name) for name in program.OWN_LOGGERS]
    for one in loggers:
        one.addHandler(handler)
    try:
        yield
    except Exception as error:
        logger.error("%s: %s", type(error).__name__, error)
        raise
    finally:
        for one in loggers:
            one.removeHandler(handler)
        handler.close()
