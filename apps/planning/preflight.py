"""What a pipeline would do, known before any work: problems, gaps and estimates.

Every check runs the code of the stage on its real input, as far as seconds allow; a
check that fails does not keep the others from running.
"""

import operator
import shlex
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from learn_torchrec.content import backbone
from learn_torchrec.content.prompt import render
from learn_torchrec.datasets.adapters.base import Dataset
from learn_torchrec.datasets.histories import Catalogue
from learn_torchrec.datasets.loading.row_groups import RowSource
from learn_torchrec.datasets.split import SplitTimes, resolve_times
from learn_torchrec.errors import UserError
from learn_torchrec.host_memory import available_memory
from learn_torchrec.ids import IdIndex
from learn_torchrec.outputs import refuse_unwritable
from learn_torchrec.presets import Run
from learn_torchrec.ranker.features.lookups import Lookups
from learn_torchrec.ranker.impressions import Impressions
from learn_torchrec.ranker.tasks import label_columns
from learn_torchrec.schema import IMPRESSIONS_FILE, ITEM_ID, ITEMS_FILE
from learn_torchrec.towers.build import build_objective
from learn_torchrec.towers.config import refuse_unfit_lengths
from learn_torchrec.towers.encoders.architecture import refuse_absent_encoder
from learn_torchrec.towers.export import AS_OF_IMPRESSIONS
from learn_torchrec.towers.holdout import TowersSplit, split_towers
from learn_torchrec.towers.snapshots import asked_for, snapshot_events

from ..export_vectors import asked_impressions
from ..train_ranker import hold_out, training_impressions
from .estimates import Estimate

_MOST_ROWS = 200_000  # of each part of the impressions, encoded as a trial
_MOST_TEXTS = 100_000  # that are composed as a trial
_MOST_EVENTS = 50_000_000  # of a log that is split as a trial
STREAM = "ranker.training.stream.enabled=true"
RETRIEVAL, RANKING = "retrieval evaluation", "ranking evaluation"


@dataclass(frozen=True)
class Problem:
    """What would stop a stage.

    Attributes:
        step: of the pipeline.
        message: one line, which names what is wrong and the fix.
        settings: `section.field=value` assignments that fix it; empty where only the
            data can be fixed.
    """

    step: str
    message: str
    settings: tuple[str, ...] = ()


@dataclass
class Plan:
    """The outcome of all checks.

    Attributes:
        problems: what would stop a stage.
        left_out: by what is left out, the reason.
        counts: rows, events, users and items by name, for the estimates.
    """

    problems: list[Problem] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)


def check(dataset: Dataset, run: Run, ranks: int) -> Plan:
    """Check every stage's inputs and settings, in seconds."""
    plan = Plan()
    checks = _Checks(dataset, run, ranks, plan)
    for step, one in checks.in_order():
        try:
            one()
        except UserError as error:
            if all(problem.message != str(error) for problem in plan.problems):
                plan.problems.append(Problem(step, str(error)))
    return plan


def check_tables(dataset: Dataset) -> list[Problem]:
    """Read every table, and return what is wrong with each."""
    problems = []
    names = ["items", "interactions"]
    if dataset.has_impressions and dataset.parquet(IMPRESSIONS_FILE) is None:
        names.append("impressions")  # Parquet may be too large to read
    for name in names:
        try:
            getattr(dataset, name)
        except UserError as error:
            problems.append(Problem(name, str(error)))
    return problems


class _Checks:
    def __init__(self, dataset: Dataset, run: Run, ranks: int, plan: Plan) -> None:
        self._dataset, self._run, self._ranks, self._plan = dataset, run, ranks, plan
        self._lookups: Lookups | None = None
        self._catalogue: Catalogue | None = None  # of the items with a text

    def in_order(self) -> Iterator[tuple[str, Callable[[], None]]]:
        """Yield the checks, each with the name of its step."""
        yield "content", self.content
        yield "towers", self.towers
        if not self._dataset.has_impressions:
            self._plan.left_out["ranker"] = (
                "the data set has no impressions; learn-torchrec data impressions "
                "draws some from the log"
            )
            return
        if self._run.split.holdout != "new_users":
            self._plan.left_out["ranker"] = (
                f"split.holdout={self._run.split.holdout}: the towers learn until the "
                "end of the log, and a ranker from what is later than they know; "
                "--set split.holdout=new_users trains both"
            )
            return
        yield "ranker", self.training_batch
        yield "ranker", self.training
        yield "predictions", self.test

    def content(self) -> None:
        """Check the items, their texts and the language model."""
        items = self._dataset.items
        self._plan.counts["items"] = items.num_rows
        encoder = self._run.content.encoder
        backbone.refuse_absent(encoder.model, encoder.revision)
        name, ids = self._dataset.name(ITEMS_FILE), items[ITEM_ID]
        texts = render(items.slice(0, _MOST_TEXTS), self._run.content.prompt, name)
        scale, distinct = items.num_rows / max(1, len(texts)), set(texts)
        self._plan.counts["texts"] = int(scale * len(distinct))
        self._plan.counts["text_letters"] = int(scale * sum(map(len, distinct)))
        has_text = np.ones(items.num_rows, bool)
        has_text[: len(texts)] = [text != "" for text in texts]
        textless = ids.filter(pa.array(~has_text))
        self._dataset.tolerance.without_text(name, textless, items.num_rows)
        described = ids.filter(pa.array(has_text))
        self._catalogue = Catalogue(Path(name), IdIndex.build(described, name))

    def towers(self) -> None:
        """Check the log, its split and the towers' batch."""
        split = self._run.split
        times = resolve_times(split, self._dataset.moments)
        catalogue = self._catalogue or Catalogue.of(self._dataset)
        sequences = self._dataset.sequences(catalogue, split.actions)
        self._plan.counts["events"] = sequences.num_events
        if sequences.num_events > _MOST_EVENTS:
            return
        data = split_towers(sequences, times, split)
        packed, asked, export = sequences.packed(), None, self._run.export
        if export.snapshots == AS_OF_IMPRESSIONS:
            shown = asked_impressions(self._dataset, times.towers_until)
            asked = asked_for(packed, shown)
        snapshots = snapshot_events(packed, export, times, asked=asked)
        self._plan.counts["snapshots"] = len(snapshots)
        self._plan.counts["training_users"] = len(data.train)
        self._plan.counts["training_events"] = data.train.num_events
        self._check_batch("towers.training.batch_size", len(data.train), "users")
        self._check_test_users(data)
        towers = self._run.towers
        item_counts = data.train.item_counts(len(catalogue))
        refuse_unfit_lengths(towers)
        refuse_absent_encoder(towers.model.encoder)
        objective = build_objective(towers, torch.from_numpy(item_counts))
        objective.check(towers.model, data)

    def _check_test_users(self, data: TowersSplit) -> None:
        if len(data.test.sequences):
            return
        self._plan.left_out[RETRIEVAL] = (
            f"no user who first appears after split.towers_until has "
            f"split.min_events={self._run.split.min_events} events; lower it, or move "
            "split.towers_until earlier"
        )

    def training_batch(self) -> None:
        """Check the ranker's batch."""
        times = self._times()
        known = self._dataset.schema(IMPRESSIONS_FILE).names
        labels = [one for one in label_columns(self._run.ranker.tasks) if one in known]
        rows = self._dataset.impressions_between(
            times.towers_until, times.test_from, labels=labels
        ).num_rows
        if rows:
            self._plan.counts["training_rows"] = rows
            left = int(rows * (1 - self._run.ranker.validation.share))
            self._check_batch("ranker.training.batch_size", left, "rows")

    def training(self) -> None:
        """Check the impressions that the ranker learns from, and encode some."""
        ranker, actions = self._run.ranker, self._run.split.actions
        shown = training_impressions(
            self._dataset, ranker, self._times(), None, actions
        )
        self._lookups = shown.lookups
        hold_out(self._dataset, ranker, self._times(), shown)
        _encode_first(shown, labelled=True)

    def test(self) -> None:
        """Check the impressions that the ranker scores, and encode some."""
        rows = self._dataset.impressions_between(self._times().test_from)
        self._plan.counts["test_rows"] = rows.num_rows
        if not rows.num_rows:
            self._plan.left_out["predictions"] = (
                f"{rows.name}: no impression at or after split.test_from"
            )
            return
        if self._lookups is not None:
            shown = Impressions(rows, self._run.ranker, None, self._lookups)
            _encode_first(shown, labelled=False)
        for name in label_columns(self._run.ranker.tasks):
            classes = _classes(rows, name)
            if len(classes) < 2:
                found = f"all {classes.pop()}" if classes else "missing"
                self._plan.left_out[RANKING] = (
                    f"{rows.name}: in the impressions at or after split.test_from, "
                    f"{name!r} is {found}; metrics need 0 and 1"
                )

    def _times(self) -> SplitTimes:
        return resolve_times(self._run.split, self._dataset.moments)

    def _check_batch(self, setting: str, count: int, what: str) -> None:
        """Check that a batch has no more than there is, and divides among the ranks."""
        batch = operator.attrgetter(setting)(self._run)
        if batch <= count and batch % self._ranks == 0:
            return
        fitting = self._ranks * (min(batch, count) // self._ranks)
        shared = f"a multiple of the {self._ranks} ranks and " * (self._ranks > 1)
        message = (
            f"{setting}={batch}: must be {shared}at most the {count} training {what}"
        )
        if not fitting:
            raise UserError(f"{message}; use fewer --ranks, or more data")
        fix = f"{setting}={fitting}"
        self._plan.problems.append(Problem(setting.partition(".")[0], message, (fix,)))


def _encode_first(shown: Impressions, labelled: bool) -> None:
    """Encode the first rows, of most data all, as the ranker will."""
    encode, count = shown.encoder(labelled), 0
    groups = range(len(shown.source))
    for piece in chain.from_iterable(map(shown.source.pieces, groups)):
        encode(piece)
        count += piece.num_rows
        if count >= _MOST_ROWS:
            return


def _classes(rows: RowSource, label: str) -> set[int]:
    """Return the classes of a label, read until both are found."""
    classes: set[int] = set()
    for group in range(len(rows)):
        for piece in rows.pieces(group):
            if label in piece.column_names:
                classes.update(
                    map(int, pc.unique(piece[label].drop_null()).to_pylist())
                )
            if len(classes) > 1:
                return classes
    return classes


def is_left_out(command: str, left_out: Mapping[str, str]) -> bool:
    """Whether a stage or an evaluation is left out, or something that it needs."""
    needs = {
        "train-ranker": ("ranker",),
        "predict": ("ranker", "predictions"),
        RANKING: ("ranker", "predictions", RANKING),
        RETRIEVAL: (RETRIEVAL,),
    }
    return any(name in left_out for name in needs.get(command, ()))


def check_machine(plan: Plan, out: Path, estimates: Sequence[Estimate]) -> None:
    """Add the problems that memory or disk are too small, or `out` is read-only."""
    available = available_memory()
    for one in estimates:
        if one.memory > available:
            message = (
                f"needs about {_gigabytes(one.memory)} of memory, and "
                f"{_gigabytes(available)} are free; use a larger machine"
            )
            settings = (STREAM,) if one.step == "rankers" else ()
            plan.problems.append(Problem(one.step, message, settings))
    try:
        refuse_unwritable(out)
    except UserError as error:
        plan.problems.append(Problem("output", str(error)))
        return
    place = next(one for one in (out, *out.absolute().parents) if one.exists())
    free, needed = shutil.disk_usage(place).free, sum(one.disk for one in estimates)
    if free < needed:
        message = (
            f"--out {out}: {_gigabytes(free)} are free and about {_gigabytes(needed)} "
            "are needed; choose another --out"
        )
        plan.problems.append(Problem("output", message))


def _gigabytes(size: float) -> str:
    return f"{size / 1e9:.1f} GB"


def describe_problems(problems: Sequence[Problem], given: Sequence[str]) -> list[str]:
    """Return all problems, a line each, and the command that applies the settings.

    `given` are the arguments of the quickstart.
    """
    if len(problems) == 1 and not problems[0].settings:
        return [problems[0].message]
    found = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    lines = [f"{found}, nothing was started:"]
    for number, problem in enumerate(problems, start=1):
        lines.append(f"  {number}. {problem.step}: {problem.message}")
    settings = [one for problem in problems for one in problem.settings]
    if settings:
        command = ["learn-torchrec", "quickstart", *given, "--set", *settings]
        lines.append(f"then: {shlex.join(command)}")
    return lines
