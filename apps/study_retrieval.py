"""What finds the items that people take next on your data: towers beside baselines.

Each arm is a training of the towers: `learn` is the configuration, `ids` the same
towers on item ids alone with a plain softmax, and --arm adds others. Epochs are chosen
on the validation users; the test users are ranked for once with each seed. Every row is
shown with the history's items in the ranking and without them, for all targets and by
group, with intervals over users. Finished trainings are kept in --out: the same command
goes on where it stopped. One process.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from learn_torchrec.artifact import verify
from learn_torchrec.content.store import KIND as KIND_CONTENT
from learn_torchrec.content.store import ContentStore
from learn_torchrec.errors import UserError
from learn_torchrec.evaluation.recommended import recommended_scores
from learn_torchrec.evaluation.report.render import report_files, write_report
from learn_torchrec.evaluation.report.retrieval_study import retrieval_study_report
from learn_torchrec.evaluation.report.terminal import to_text
from learn_torchrec.evaluation.retrieval import ScoreBlock
from learn_torchrec.locks import locked
from learn_torchrec.towers.baselines import BASELINES
from learn_torchrec.training.distributed import process_group

from .common import options, program
from .experiments.towers_arms import (
    IDS_ALONE,
    SECTION,
    TowersArm,
    divide,
    rank_arms,
    train_arms,
)

LEARN = "learn"
_ARMS = {LEARN: (), "ids": IDS_ALONE}
_TAKEN = (*_ARMS, *BASELINES)
_WIDTH = 100


def build_parser() -> argparse.ArgumentParser:
    """Return the app's options."""
    parser = options.parser("study-retrieval", __doc__)
    options.add_data(parser)
    options.add_input(parser, "--content", "content store of the items")
    parser.add_argument(
        "--out",
        type=program.output_path,
        required=True,
        metavar="DIR",
        help="results and trained towers",
    )
    parser.add_argument(
        "--arm",
        action="append",
        default=[],
        metavar="NAME:SETTING=VALUE;...",
        help="further towers: the configuration with some settings changed; may be "
        "repeated",
    )
    parser.add_argument(
        "--recommended",
        action="append",
        default=[],
        type=_named_file,
        metavar="NAME=FILE",
        help="another model's recommendations for the test users, in the form that "
        "`recommend --out` writes, with items of the history; may be repeated, for a "
        "name once for each of its seeds",
    )
    parser.add_argument(
        "--seeds", type=int, default=3, metavar="N", help="trainings of each arm"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Train, rank, print; write study.json and report.html into --out."""
    args = build_parser().parse_args(argv)
    if args.seeds < 1:
        raise UserError(f"--seeds {args.seeds}: must be at least 1")
    page = args.out / "report.html"
    program.check_output_folder(
        args.out,
        ["study.json", *(path.name for path in report_files(page))],
        [
            *options.paths_read(args),
            *options.config_read(args),
            *(("--recommended", file) for _, file in args.recommended),
        ],
        lambda: (args.out / "towers").is_dir(),
    )
    verify(args.content, KIND_CONTENT)
    arms = {
        name: TowersArm(args.content, settings)
        for name, settings in arms_of(args.arm).items()
    }
    for name, file in args.recommended:
        if name in arms:
            raise UserError(f"--recommended {name}={file}: is an --arm; rename one")
    with options.choices_said_once():
        for arm in arms.values():
            arm.resolve(args)
    further = _recommended(args, arms[LEARN])
    args.out.mkdir(parents=True, exist_ok=True)
    with locked(args.out), options.choices_said_once():
        trained = train_arms(args, arms, args.out / "towers")
        with process_group() as device:
            result = rank_arms(args, arms, trained, LEARN, device, further)
        program.write_json(args.out / "study.json", result)
        report = retrieval_study_report(result)
        write_report(report, page)
    print(to_text(report.summary, _WIDTH))
    print(f"written to {args.out / 'study.json'}, {args.out / 'report.html'} (and .md)")


def _recommended(
    args: argparse.Namespace, learn: TowersArm
) -> dict[str, list[ScoreBlock]]:
    """Return the scores of other models by name, those of each seed.

    Raises:
        UserError: a file that does not fit.
    """
    found: dict[str, list[ScoreBlock]] = {}
    if not args.recommended:
        return found
    store = ContentStore.open(args.content)
    users = divide(args, learn.resolve(args), store).test.sequences.user_ids
    for name, file in args.recommended:
        found.setdefault(name, []).append(recommended_scores(file, users, store))
    return found


def _named_file(text: str) -> tuple[str, Path]:
    name, separator, file = text.partition("=")
    if not separator or not name or not file or name in _TAKEN:
        raise argparse.ArgumentTypeError(
            f"{text}: write it as NAME=FILE, with another name than {', '.join(_TAKEN)}"
        )
    return name, program.local_path(file)


def arms_of(given: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Return the settings of the arms by name.

    Raises:
        UserError: an arm that is not NAME:SETTING=VALUE, a name twice or of no folder,
            or a setting that is not the towers'.
    """
    arms: dict[str, tuple[str, ...]] = dict(_ARMS)
    for text in given:
        name, parts = options.named_settings(text, SECTION, (*arms, *BASELINES))
        if Path(name).name != name or "\0" in name:
            raise UserError(f"--arm {text}: its towers' folder cannot have this name")
        arms[name] = parts
    return arms


if __name__ == "__main__":
    options.run(main)
