"""Make a report of a run: one self-contained HTML page, and Markdown and JSON."""

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path

from learn_torchrec.errors import UserError
from learn_torchrec.evaluation.report.files import RUN_IS, files_read
from learn_torchrec.evaluation.report.render import (
    is_report,
    report_files,
    write_report,
)
from learn_torchrec.evaluation.report.run import read_run

from .common import program


def build_parser() -> argparse.ArgumentParser:
    """Return the app's options."""
    result = program.parser("report", __doc__)
    result.add_argument(
        "--run",
        type=program.local_path,
        required=True,
        metavar="DIR",
        help=f"a run's directory: {RUN_IS.replace('`', '')}",
    )
    program.add_output_file(
        result, "HTML file; .md and .json of the same name are written beside it"
    )
    result.add_argument(
        "--ab",
        type=program.local_path,
        metavar="FILE",
        help="JSON that evaluate-ab wrote",
    )
    return result


def check_report(path: Path, inputs: Iterable[tuple[str, Path]]) -> None:
    """Check the files of a report: those beside the page are its own if it is ours.

    Raises:
        UserError: see `program.check_output_file`.
    """
    inputs = list(inputs)
    has_page = path.exists()
    for one, kind in zip(report_files(path), ("HTML", "Markdown", "JSON"), strict=True):
        is_ours = is_report if one == path else (lambda _: has_page)
        program.check_output_file(one, kind, inputs, is_ours)


def main(argv: Sequence[str] | None = None) -> None:
    """Read the run and write the three files."""
    args = build_parser().parse_args(argv)
    if args.out.suffix not in (".html", ".htm") or args.out.is_dir():
        raise UserError(f"--out {args.out}: name an .html file")
    inputs = [("a file of --run:", path) for path in files_read(args.run, args.ab)]
    check_report(args.out, inputs)
    if not args.run.is_dir():
        raise UserError(f"--run {args.run}: no such directory; name a run's directory")
    made = read_run(args.run, args.ab)
    write_report(made, args.out)
    for text in made.left_out:
        print(text)
    for path in report_files(args.out):
        print(f"written to {path}")


if __name__ == "__main__":
    program.run(main)
