"""Baseline and LEARN on your data: tuned alike, several seeds, by cohort.

Each arm is a ranker: `baseline` has LEARN off, `learn` is the configuration, and --arm
adds others. The baselines and `learn` draw the same settings from the same space and
are compared on the latest fifth of the training rows (`ranker.validation` does not
apply); the best draw of each, by UAUC, is trained on everything before the test with
each seed, and tested once. Further arms with LEARN use the settings of `learn`. Gains
are over `baseline`, averaged over seeds, with an interval over users. Finished
trainings are kept in --out: the same command goes on where it stopped. One process,
all rows in memory.
"""

import argparse
from collections.abc import Sequence
from typing import Any

from learn_torchrec import config as configuration
from learn_torchrec.artifact import versions
from learn_torchrec.errors import UserError
from learn_torchrec.evaluation.paired_seeds import compare_cohorts
from learn_torchrec.evaluation.report.render import report_files, write_report
from learn_torchrec.evaluation.report.study import study_report
from learn_torchrec.evaluation.report.terminal import to_text
from learn_torchrec.locks import locked
from learn_torchrec.ranker.config import RankerConfig
from learn_torchrec.training.distributed import process_group

from .common import options, program
from .common.learn_inputs import add_codes
from .experiments.ranker_arms import (
    BASELINE,
    LEARN,
    Arm,
    Study,
    arms_of,
    cohorts_of,
    prepare,
    train_and_test,
)

_WIDTH = 100


def build_parser() -> argparse.ArgumentParser:
    """Return the app's options."""
    parser = options.parser("study", __doc__)
    options.add_data(parser)
    options.add_input(parser, "--vectors", "LEARN's vectors", required=False)
    options.add_input(
        parser, "--content", "content instead: LEARN without towers", required=False
    )
    add_codes(parser)
    parser.add_argument(
        "--out",
        type=program.output_path,
        required=True,
        metavar="DIR",
        help="results and trainings",
    )
    parser.add_argument(
        "--arm",
        action="append",
        default=[],
        metavar="NAME:SETTING=VALUE;...",
        help="a further ranker: the configuration with some settings changed; may be "
        "repeated",
    )
    parser.add_argument(
        "--trials",
        type=int,
        default=8,
        metavar="N",
        help="draws of settings of each tuned arm; the first is the configuration",
    )
    parser.add_argument(
        "--seeds",
        type=int,
        default=5,
        metavar="N",
        help="paired trainings of each arm",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Tune, train, test, print; write study.json and report.html into --out."""
    args = build_parser().parse_args(argv)
    for name in ("trials", "seeds"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name} {getattr(args, name)}: must be at least 1")
    if not args.vectors and not args.content:
        raise UserError("study: LEARN needs vectors; give --vectors or --content")
    page = args.out / "report.html"
    program.check_output_folder(
        args.out,
        ["study.json", *(path.name for path in report_files(page))],
        [*options.paths_read(args), *options.config_read(args)],
        lambda: (args.out / "trainings").is_dir(),
    )
    dataset = options.dataset(args)
    run = options.resolve(args, ("split", "ranker", "cohorts"))
    arms = arms_of(run.ranker, args.arm)
    args.out.mkdir(parents=True, exist_ok=True)
    with locked(args.out), process_group() as device:
        result = conduct(prepare(args, dataset, run, device), arms)
        program.write_json(args.out / "study.json", result)
        report = study_report(result)
        write_report(report, page)
    print(to_text(report.summary, _WIDTH))
    print(f"written to {args.out / 'study.json'}, {args.out / 'report.html'} (and .md)")


def conduct(study: Study, arms: dict[str, Arm]) -> dict[str, Any]:
    """Tune and test all arms; return what a page shows."""
    tuned, scores = train_and_test(study, arms)
    users, labels = study.columns("test")
    masks = cohorts_of(study)
    return {
        "data": study.args.data.partition(":")[0],
        "versions": versions(),
        "rows": {name: int(mask.sum()) for name, mask in study.parts.items()},
        "trials": study.args.trials,
        "seeds": study.args.seeds,
        "interval": "95 %, users resampled, gains averaged over seeds; points",
        "tuned": tuned,
        "arms": {
            name: {
                "settings": _changes(arms[LEARN].ranker, arms[name].ranker),
                "cohorts": compare_cohorts(
                    users, labels, masks, made, scores[BASELINE]
                ),
            }
            for name, made in scores.items()
        },
    }


def _changes(ranker: RankerConfig, other: RankerConfig) -> dict[str, Any]:
    """Return the settings that differ, by dotted name."""
    ours, theirs = (
        configuration.dotted(configuration.to_dict(one), "ranker")
        for one in (ranker, other)
    )
    return {name: value for name, value in theirs.items() if ours[name] != value}


if __name__ == "__main__":
    options.run(main)
