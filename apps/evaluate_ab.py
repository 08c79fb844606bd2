"""Evaluate an A/B test from user-day outcomes: lifts with intervals, by cohort, day."""

import argparse
import logging
from collections.abc import Sequence
from dataclasses import field

from learn_torchrec.config import apply_overrides, configuration
from learn_torchrec.datasets.generated.ab_replay import (
    AbReplayConfig,
    is_replay,
    write_ab_replay,
)
from learn_torchrec.errors import UserError
from learn_torchrec.evaluation.ab import METRICS, AbConfig, AbResult, analyse_ab_test
from learn_torchrec.evaluation.ab_outcomes import read_outcomes
from learn_torchrec.evaluation.cohorts import ALL
from learn_torchrec.evaluation.parquet import lone_part_note
from learn_torchrec.evaluation.ranking import to_json
from learn_torchrec.evaluation.report.terminal import align
from learn_torchrec.outputs import refuse_unwritable

from .common import program

logger = logging.getLogger(__name__)

SIMULATED_NOTE = "SIMULATED: generated users, no live test; planted lifts"


@configuration
class EvaluateAbConfig:
    """What `--set` may change."""

    ab: AbConfig = field(default_factory=AbConfig)
    replay: AbReplayConfig = field(default_factory=AbReplayConfig)


def build_parser() -> argparse.ArgumentParser:
    """Return the app's options."""
    result = program.parser(
        "evaluate-ab",
        __doc__,
        epilog="Columns: user_id, arm, day, impressions, conversions, revenue, and any "
        "cohort columns. A row is a user's day or part of it; refunds are negative "
        "revenue.",
    )
    result.add_argument(
        "--outcomes",
        type=program.output_path,  # of --simulate
        required=True,
        metavar="FILE",
        help="Parquet or CSV file, or a folder of them",
    )
    program.add_output_file(result, "JSON to write")
    result.add_argument(
        "--user-cohort-column",
        action="append",
        default=[],
        metavar="COLUMN",
        help="values are cohorts of users: each user is in exactly one of them; may be "
        "repeated",
    )
    result.add_argument(
        "--item-cohort-column",
        action="append",
        default=[],
        metavar="COLUMN",
        help="values are cohorts of items: every user counts in each of them; may be "
        "repeated",
    )
    result.add_argument(
        "--simulate",
        action="store_true",
        help="first write --outcomes: a simulated 9-day test, 20 %% of users per arm",
    )
    program.add_overrides(
        result, "e.g. ab.treatment=new, ab.treatment_share=0.1, replay.users=1000000"
    )
    return result


def main(argv: Sequence[str] | None = None) -> None:
    """Read the outcomes, print the tables and write the JSON."""
    args = build_parser().parse_args(argv)
    config = apply_overrides(EvaluateAbConfig(), args.overrides)
    inputs = [("--outcomes", args.outcomes)]
    is_ours = program.json_with("lifts")
    program.check_output_file(args.out, inputs=inputs, is_ours=is_ours)
    user_columns, item_columns = args.user_cohort_column, args.item_cohort_column
    if args.simulate:
        if args.outcomes.exists() and not is_replay(args.outcomes):
            raise UserError(
                f"--simulate: {args.outcomes} exists; name a new file for the outcomes"
            )
        refuse_unwritable(args.outcomes)
        write_ab_replay(args.outcomes, config.replay)
        if not (user_columns or item_columns):
            user_columns, item_columns = ["user_cohort"], ["item_cohort"]
    if note := lone_part_note(args.outcomes):
        logger.info(note)
    outcomes = read_outcomes(args.outcomes, config.ab.arms, user_columns, item_columns)
    result = analyse_ab_test(outcomes, config.ab)
    program.write_json(args.out, to_json(result))  # before printing: a pipe may break
    if result.is_simulated:
        print(SIMULATED_NOTE)
    print(sample_ratio_line(result))
    print("\n" + lifts_table(result))
    print("\n" + daily_table(result))


def sample_ratio_line(result: AbResult) -> str:
    """Return one line on the sizes of the arms."""
    ratio = result.sample_ratio
    return (
        f"sample ratio: {ratio.treatment_users:,} treatment and "
        f"{ratio.control_users:,} control users, {ratio.expected_share:.0%} treatment "
        f"expected: {ratio.verdict} (p = {ratio.p_value:.3g}); {result.days} days"
    )


def lifts_table(result: AbResult) -> str:
    """Return one line per cohort and metric, in per cent."""
    head = ["cohort", "metric", "share", "control", "treatment"]
    lines = [[*head, "lift", "low", "high", "p", "boot low", "boot high"]]
    for cohort, metrics in result.lifts.items():
        for metric, one in metrics.items():
            percents = [f"{100 * x:+.2f}%" for x in (one.lift, one.low, one.high)]
            boot = [f"{100 * x:+.2f}%" for x in (one.bootstrap_low, one.bootstrap_high)]
            share = f"{result.shares[cohort]:.2%}"
            values = [f"{x:.5g}" for x in (one.control, one.treatment)]
            p_value = f"{one.p_value:.3f}"
            lines.append([cohort, metric, share, *values, *percents, p_value, *boot])
    return align(lines)


def daily_table(result: AbResult) -> str:
    """Return one line per day, every metric's lift in per cent."""
    lines = [["day", *METRICS]]
    for lifts in zip(*(result.daily[metric] for metric in METRICS), strict=True):
        cells = [
            f"{100 * x.lift:+.2f} ({100 * x.low:+.2f}, {100 * x.high:+.2f})"
            for x in lifts
        ]
        lines.append([str(lifts[0].day), *cells])
    return f"{ALL}, lift by day in per cent:\n" + align(lines)


if __name__ == "__main__":
    program.run(main)
