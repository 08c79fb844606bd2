"""Serve the run before the served one again, at once.

DIR/current then links to the run that the served one started from, or to that of --to.
The next refresh starts from there; the run that was left is not served again.
"""

import argparse
import logging
from collections.abc import Sequence

from learn_torchrec.artifact import verify
from learn_torchrec.errors import UserError
from learn_torchrec.locks import locked
from learn_torchrec.refresh.runs import Runs
from learn_torchrec.refusals import naming

from .common import program
from .refreshing.steps import LOG, SERVED, logged

logger = logging.getLogger(__name__)


def build_parser() -> argparse.ArgumentParser:
    """Return the app's options."""
    parser = program.parser("rollback", __doc__)
    parser.add_argument(
        "--run",
        type=program.local_path,
        required=True,
        metavar="DIR",
        help="folder of the runs",
    )
    parser.add_argument(
        "--to", type=int, metavar="N", help="number of the run to serve"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Let `current` link to an earlier run."""
    args = build_parser().parse_args(argv)
    runs = Runs(args.run)
    if not args.run.is_dir():
        raise UserError(f"--run {args.run}: no such folder; name that of refresh")
    with naming(args.run), locked(args.run), logged(args.run / LOG):
        current = runs.current()
        if current is None:
            raise UserError(f"--run {args.run}: serves no run yet; run refresh first")
        number = runs.before(current) if args.to is None else args.to
        if number not in runs.served():
            kept = ", ".join(map(str, runs.served()))
            raise UserError(f"--to {number}: is no run that may be served; use {kept}")
        for kind in SERVED:
            verify(runs.path(number) / kind, kind)
        for later in runs.served():  # first, or the next refresh would serve them
            if later > number:
                runs.judge(later, False, f"rolled back to run {number:03d}")
        runs.serve(number)
        logger.info("run %03d is served again, run %03d no longer", number, current)


if __name__ == "__main__":
    program.run(main)
