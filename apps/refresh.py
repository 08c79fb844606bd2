"""A new day: everything that is new, learned on top of the served run, then served.

The first time, every stage runs from the beginning, into DIR/runs/001. From then on a
refresh encodes new and changed items, trains towers and ranker on from the served run
on what is new, exports vectors, and compares predictions of the newest hours with
those of the served run. If the conditions of refresh.gate hold, DIR/current links to
the new run; if not, it stays, and the exit code is 1. The same data again change
nothing; a refresh that was interrupted goes on. DIR/refresh.log says all of it.
"""

import argparse
import logging
import sys
from collections.abc import Sequence

from learn_torchrec import config
from learn_torchrec.artifact import CONFIG, verify
from learn_torchrec.datasets.adapters.base import Dataset
from learn_torchrec.datasets.split import resolve_times
from learn_torchrec.errors import UserError
from learn_torchrec.locks import locked
from learn_torchrec.presets import Run
from learn_torchrec.ranker.tasks import label_columns
from learn_torchrec.refresh.runs import CURRENT, RUNS, RunPlan, Runs
from learn_torchrec.refusals import naming
from learn_torchrec.schema import IMPRESSIONS_FILE, INTERACTIONS_FILE, ITEMS_FILE
from learn_torchrec.spaces import digest_of

from .common import options, program
from .refreshing.settings import run_of
from .refreshing.steps import LOG, SERVED, Maker, logged, passes_gate, steps

_TABLES = (ITEMS_FILE, INTERACTIONS_FILE, IMPRESSIONS_FILE)
_MOST_RANKS = 1024  # on this machine

logger = logging.getLogger(__name__)


def build_parser() -> argparse.ArgumentParser:
    """Return the app's options."""
    parser = options.parser("refresh", __doc__)
    options.add_data(parser)
    parser.add_argument(
        "--run",
        type=program.output_path,
        required=True,
        metavar="DIR",
        help="folder of the runs; DIR/current is the served one",
    )
    parser.add_argument(
        "--ranks",
        type=int,
        default=1,
        metavar="N",
        help="ranks of each distributed stage on this machine",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Make and serve the next run, unless there is nothing new."""
    args = build_parser().parse_args(argv)
    if not 1 <= args.ranks <= _MOST_RANKS:
        raise UserError(f"--ranks {args.ranks}: use from 1 to {_MOST_RANKS}")
    dataset = options.dataset(args)
    if not dataset.has_impressions:
        raise UserError(
            f"--data {args.data}: has no impressions, which a refresh learns from; "
            "`learn-torchrec data impressions` draws some from the interactions"
        )
    _refuse_taken(args)
    args.run.mkdir(parents=True, exist_ok=True)
    with naming(args.run), locked(args.run), logged(args.run / LOG):
        _refresh(args, dataset, Runs(args.run))


def _refuse_taken(args: argparse.Namespace) -> None:
    """Refuse a --run that is, lies in or contains an input or an artefact.

    Raises:
        UserError: names the first.
    """
    inputs = [one for one in options.paths_read(args) if one[0] != "--run"]
    names = (RUNS, CURRENT, CONFIG, LOG)
    try:
        # A log is added to, and settings are kept: no file is replaced.
        program.check_output_folder(args.run, names, inputs, lambda: True)
    except UserError as error:
        raise UserError(str(error).replace("--out", "--run")) from None


def _refresh(args: argparse.Namespace, dataset: Dataset, runs: Runs) -> None:
    given = _given_first(args, runs)
    settings = _settings(args, given)
    plan = _plan(runs, settings, dataset, given)
    if plan is None:
        return
    if runs.verdict(plan.number) is None:
        _make(args, runs, plan, settings)
    verdict = runs.verdict(plan.number)
    if not (verdict and verdict["passed"]):
        logger.info("run %03d is not served: %s", plan.number, runs.reason(plan.number))
        sys.exit(1)
    runs.serve(plan.number)
    logger.info("run %03d is served, as %s", plan.number, runs.directory / CURRENT)
    for number in runs.prune(settings.refresh.keep):
        logger.info("run %03d is removed", number)


def _make(args: argparse.Namespace, runs: Runs, plan: RunPlan, settings: Run) -> None:
    """Make the artefacts of a run and judge it; what is there already is kept."""
    directory = runs.begin(plan)
    if not (args.run / CONFIG).exists():
        options.write_json(args.run / CONFIG, config.to_dict(settings))
    base = None if plan.base is None else runs.path(plan.base)
    dataset = options.dataset(args)
    rows = dataset.impressions_between(
        plan.towers_until, plan.test_from, labels=label_columns(settings.ranker.tasks)
    )
    run = run_of(plan, settings, rows.num_rows, args.ranks)
    options.write_json(directory / CONFIG, config.to_dict(run))
    logger.info(
        "run %03d: from %s, towers until %d, ranker until %d (unix seconds)",
        plan.number,
        "the beginning" if base is None else f"run {plan.base:03d}",
        *(plan.towers_until, plan.test_from),
    )
    maker = Maker(args, directory, base)
    for step in steps(base):
        maker.make(step)
    gates = settings.refresh.gate
    passed = base is None or passes_gate(directory, gates, settings.cohorts)
    for kind in SERVED:
        verify(directory / kind, kind)
    reason = "" if passed else f"a condition does not hold: {' '.join(gates)}"
    runs.judge(plan.number, passed, reason)


def _given_first(args: argparse.Namespace, runs: Runs) -> tuple[str, ...]:
    """Return the overrides that the settings of all runs were made with."""
    numbers = runs.numbers()
    if numbers and (args.run / CONFIG).exists():
        return runs.plan(numbers[-1]).given
    return tuple(args.overrides)


def _settings(args: argparse.Namespace, given: tuple[str, ...]) -> Run:
    """Return the settings that all runs share: of the options, or those of the first.

    Overrides on the command line hold for this run alone. Those of the first run, given
    again, change nothing: what was derived from the data then is part of its settings.
    """
    saved = args.run / CONFIG
    if saved.exists() and args.config is None and args.preset is None:
        args.config = saved
        if tuple(args.overrides) == given:
            args.overrides = []
    return options.resolve(args)


def _plan(
    runs: Runs, settings: Run, dataset: Dataset, given: tuple[str, ...]
) -> RunPlan | None:
    """Return the run to make, to finish or to serve; None if there is nothing new."""
    data = dataset.fingerprints(*_TABLES)
    digest = digest_of(config.deciding(settings))
    current, numbers = runs.current(), runs.numbers()
    number = 1
    if numbers:
        last = runs.plan(numbers[-1])
        is_judged = runs.verdict(last.number) is not None
        if (dict(last.data), last.settings) == (data, digest):
            if last.number == current:
                logger.info("nothing new since run %03d, which is served", current)
                return None
            if last.base == current:  # it was interrupted, or it failed
                logger.info("run %03d goes on", last.number)
                return last
        number = last.number + 1 if is_judged else last.number
    moments = _moments(runs, settings, dataset, current)
    if moments is None:
        return None
    towers_until, test_from = moments
    return RunPlan(
        number=number,
        base=current,
        data=data,
        since=None if current is None else runs.plan(current).towers_until,
        towers_until=towers_until,
        test_from=test_from,
        settings=digest,
        given=given,
    )


def _moments(
    runs: Runs, settings: Run, dataset: Dataset, current: int | None
) -> tuple[int, int] | None:
    """Return until when towers and ranker learn; None without new impressions.

    Raises:
        UserError: the held-out hours leave nothing to learn from.
    """
    refresh, shown = settings.refresh, dataset.impression_times
    end = int(shown.max()) + 1 if len(shown) else 0
    test_from = end - int(refresh.test_hours * 3600)
    if current is None:
        since = resolve_times(settings.split, dataset.moments).towers_until
    else:
        since = runs.plan(current).test_from
    if ((shown >= since) & (shown < test_from)).any():
        if current is not None:
            since -= int(refresh.replay_hours * 3600)
        return since, test_from
    problem = (
        f"no impression between {since} (unix seconds) and the newest "
        f"{refresh.test_hours:g} hours"
    )
    if current is None:
        raise UserError(
            f"refresh.test_hours={refresh.test_hours:g}: {problem}; hold out fewer, or "
            "set split.towers_until earlier"
        )
    logger.info("nothing new since run %03d: %s", current, problem)
    return None


if __name__ == "__main__":
    options.run(main)
