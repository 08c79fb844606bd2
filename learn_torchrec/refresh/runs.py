"""A folder of runs: `runs/001`, `runs/002`, and `current`, a link to the served one.

A run is planned (`run.json`), then made, then judged (`verdict.json`), then served, by
one rename of the link. Whatever is killed in between leaves the link on a whole run.
"""

import dataclasses
import json
import logging
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from learn_torchrec.errors import UserError, first_line
from learn_torchrec.text import parse_json

logger = logging.getLogger(__name__)

CURRENT = "current"
RUNS = "runs"
_PLAN, _VERDICT = "run.json", "verdict.json"
_NUMBER = re.compile(r"\d{3,}")


@dataclass(frozen=True, kw_only=True)
class RunPlan:
    """What a run is made from, decided before any work.

    Attributes:
        number: of the run, from 1.
        base: number of the run that it starts from; None for the first.
        data: fingerprints of the tables.
        since: the towers' `towers_until` in that run, unix seconds.
        towers_until: the towers learn from events before it, unix seconds.
        test_from: the ranker learns from impressions in [towers_until, test_from).
        settings: fingerprint of the settings.
        given: what `--set` gave when the settings that all runs share were made.
    """

    number: int
    base: int | None
    data: Mapping[str, str]
    since: int | None
    towers_until: int
    test_from: int
    settings: str
    given: tuple[str, ...] = ()


class Runs:
    """The runs of a folder.

    Args:
        directory: the folder; need not exist.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def path(self, number: int) -> Path:
        """Return the directory of a run."""
        return self.directory / RUNS / f"{number:03d}"

    def numbers(self) -> list[int]:
        """Return the numbers of all runs with a plan, ascending."""
        folder = self.directory / RUNS
        if not folder.is_dir():
            return []
        return sorted(
            int(path.name)
            for path in folder.iterdir()
            if _NUMBER.fullmatch(path.name) and (path / _PLAN).is_file()
        )

    def plan(self, number: int) -> RunPlan:
        """Return the plan of a run.

        Raises:
            UserError: it is damaged.
        """
        path = self.path(number) / _PLAN
        try:
            return TypeAdapter(RunPlan).validate_json(path.read_bytes(), strict=True)
        except (OSError, ValueError) as error:
            raise UserError(
                f"{path}: damaged ({first_line(error)}); remove {path.parent} and "
                "refresh again"
            ) from None

    def begin(self, plan: RunPlan) -> Path:
        """Write a plan, and return its run's directory.

        What an earlier plan of the number has made may be reused where it fits.
        """
        path = self.path(plan.number)
        path.mkdir(parents=True, exist_ok=True)
        _write(path / _PLAN, dataclasses.asdict(plan))
        return path

    def verdict(self, number: int) -> dict[str, Any] | None:
        """Return the verdict on a run: `passed`, and a `reason`; None before it."""
        path = self.path(number) / _VERDICT
        if not path.is_file():
            return None
        try:
            body = parse_json(path.read_text(encoding="utf-8"))
        except ValueError:
            body = None
        if not isinstance(body, dict) or not isinstance(body.get("passed"), bool):
            raise UserError(f"{path}: damaged; remove it and refresh again")
        return body

    def judge(self, number: int, passed: bool, reason: str = "") -> None:
        """Record the verdict on a run, the last step before it is served."""
        _write(self.path(number) / _VERDICT, {"passed": passed, "reason": reason})

    def reason(self, number: int) -> str:
        """Return why a run is not served."""
        return str((self.verdict(number) or {}).get("reason", ""))

    def current(self) -> int | None:
        """Return the number of the served run; None before the first.

        Raises:
            UserError: `current` is no link to a run of this folder.
        """
        link = self.directory / CURRENT
        if not link.is_symlink():
            if link.exists():
                raise UserError(f"{link}: is no link to a run; remove it")
            return None
        target = link.readlink()
        if target.parent.name != RUNS or not _NUMBER.fullmatch(target.name):
            raise UserError(f"{link}: links to {target}, which is no run of the folder")
        number = int(target.name)
        if not (self.path(number) / _PLAN).is_file():
            raise UserError(
                f"{link}: links to {target}, which is gone; restore it, or remove the "
                "link to start from the beginning"
            )
        return number

    def serve(self, number: int) -> None:
        """Let `current` link to a run: by one rename, so that it is always on one."""
        working = self.directory / f".{CURRENT}.tmp"
        working.unlink(missing_ok=True)
        working.symlink_to(Path(RUNS) / self.path(number).name)
        working.replace(self.directory / CURRENT)
        _flush(self.directory)

    def before(self, number: int) -> int:
        """Return the run that a run started from, to go back to.

        Raises:
            UserError: there is none, or it is no longer kept.
        """
        base = self.plan(number).base
        if base is None:
            raise UserError(f"{self.path(number)}: is the first run; nothing is before")
        if base not in self.numbers():
            raise UserError(
                f"{self.path(base)}: is no longer kept; name another run with --to, "
                f"one of {self.served()}"
            )
        return base

    def served(self) -> list[int]:
        """Return the runs that may be served: those that passed, ascending."""
        judged = ((number, self.verdict(number)) for number in self.numbers())
        return [number for number, verdict in judged if verdict and verdict["passed"]]

    def prune(self, keep: int) -> list[int]:
        """Remove all but the last runs, never the served one; return the removed."""
        current = self.current()
        kept = {*self.numbers()[-keep:], current}
        if current is not None:
            kept.add(self.plan(current).base)  # to go back to
        removed = [number for number in self.numbers() if number not in kept]
        for number in removed:
            path = self.path(number)
            aside = path.with_name(f".{path.name}.removed")
            shutil.rmtree(aside, ignore_errors=True)
            path.rename(aside)  # never half a run under its name
        for aside in (self.directory / RUNS).glob(".*.removed"):
            shutil.rmtree(aside, ignore_errors=True)
        return removed


def _write(path: Path, body: Mapping[str, Any]) -> None:
    """Write a JSON file that appears whole or not at all, and survives a kill."""
    working = path.with_name(f".{path.name}.tmp")
    with working.open("w", encoding="utf-8") as stream:
        json.dump(body, stream, indent=2)
        stream.write("\n")
        stream.flush()
        os.fsync(stream.fileno())
    working.replace(path)
    _flush(path.parent)


def _flush(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
