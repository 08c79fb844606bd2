"""A table of the paper on your data: its rows trained, compared and judged.

Settings are derived from the data, the same for all rows but for what a row is about;
--set changes them. Each row is trained with several seeds and stopped by validation;
the test is looked at once. What the paper finds is printed beside what was found here.
What is finished stays in --out: the same command goes on where it stopped.
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from learn_torchrec.datasets.adapters import open_dataset
from learn_torchrec.errors import UserError
from learn_torchrec.evaluation.report.experiment import experiment_report
from learn_torchrec.evaluation.report.render import report_files, write_report
from learn_torchrec.evaluation.report.terminal import to_text
from learn_torchrec.locks import locked

from .common import options, program
from .common.hardware import describe_machine
from .experiments import ranking_tables, towers_tables
from .experiments.base import ENCODERS, Experiment, Request
from .experiments.item_pairs import ITEM_PAIRS
from .experiments.rec_to_llm import REC_TO_LLM
from .experiments.transfer import TRANSFER

EXPERIMENTS: dict[str, Experiment] = {
    "table1": towers_tables.TABLE1,
    "table2": REC_TO_LLM,
    "table3": towers_tables.TABLE3,
    "table4": towers_tables.TABLE4,
    "table5": towers_tables.TABLE5,
    "table6": ranking_tables.RANKER,
    "table7": ranking_tables.COHORTS,
    "i2i": ITEM_PAIRS,
    "transfer": TRANSFER,
    "curve": towers_tables.CURVE,
    "v2": towers_tables.V2,
}
_WIDTH = 100


def build_parser() -> argparse.ArgumentParser:
    """Return the app's options."""
    parser = options.parser("experiment", __doc__)
    titles = "; ".join(f"{name}: {one.title}" for name, one in EXPERIMENTS.items())
    parser.add_argument(
        "table", choices=tuple(EXPERIMENTS), metavar="TABLE", help=titles
    )
    options.add_data(parser)
    parser.add_argument(
        "--out",
        type=program.output_path,
        required=True,
        metavar="DIR",
        help="result, content stores and trained models",
    )
    parser.add_argument(
        "--encoder",
        action="append",
        default=[],
        metavar="NAME:SETTING=VALUE;...",
        help=f"another text encoder for the rows of {' or '.join(ENCODERS)}, such as "
        "llm:content.encoder.model=DIR; may be repeated",
    )
    parser.add_argument(
        "--seeds", type=int, default=3, metavar="N", help="trainings of each row"
    )
    parser.add_argument(
        "--source",
        metavar="ADAPTER:PATH",
        help="of transfer: the data set whose towers are used on --data",
    )
    parser.add_argument(
        "--trials",
        type=int,
        default=8,
        metavar="N",
        help="of tables 6 and 7: draws of settings for baseline and LEARN",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Run a table, print it; write TABLE.json and report-TABLE.html into --out."""
    args = build_parser().parse_args(argv)
    for name in ("seeds", "trials"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name} {getattr(args, name)}: must be at least 1")
    page = args.out / f"report-{args.table}.html"
    result_file = args.out / f"{args.table}.json"
    program.check_output_folder(
        args.out,
        [result_file.name, *(path.name for path in report_files(page))],
        [
            *options.paths_read(args),
            *options.config_read(args),
            *(("--source", path) for path in _source_files(args)),
        ],
        lambda: (args.out / "content").is_dir(),
    )
    experiment = EXPERIMENTS[args.table]
    request = Request(args, encoders_of(args.encoder))
    with options.choices_said_once():
        experiment.check(request)
        args.out.mkdir(parents=True, exist_ok=True)
        with locked(args.out):
            result: dict[str, Any] = {
                "name": args.table,
                "title": experiment.title,
                **experiment.run(request),
                "machine": describe_machine(),
            }
            program.write_json(result_file, rounded(result))
            report = experiment_report(result)
            write_report(report, page)
    print(to_text(report.summary, _WIDTH))
    print(f"written to {result_file}, {page} (and .md)")


def _source_files(args: argparse.Namespace) -> Iterator[Path]:
    if args.source is not None:
        yield from open_dataset(args.source, args.strict).local_files()


def rounded(value: Any) -> Any:
    """Return a result whose numbers have six digits after the point."""
    if isinstance(value, dict):
        return {key: rounded(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(one) for one in value]
    return round(value, 6) if isinstance(value, float) else value


def encoders_of(given: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Return the settings of the text encoders by name.

    Raises:
        UserError: another form, an unknown name, or a setting of another section.
    """
    encoders: dict[str, tuple[str, ...]] = dict(ENCODERS)
    for text in given:
        name, parts = options.named_settings(text, "content.", (), option="--encoder")
        if name not in encoders:
            raise UserError(f"--encoder {text}: name one of {', '.join(encoders)}")
        encoders[name] = parts
    return encoders


if __name__ == "__main__":
    options.run(main)
