"""Serving: score a bundle's fixed rows again and compare with its certificate.

A bundle holds impressions and their scores, by the trained ranker and by the bundle
when it was exported. This machine must give the same, within the tolerances of then.
"""

import argparse
from collections.abc import Sequence

from learn_torchrec.artifact import verify
from learn_torchrec.serving.check import check_bundle
from learn_torchrec.serving.runner import Runner
from learn_torchrec.serving.served import KIND

from .common import options, program


def build_parser() -> argparse.ArgumentParser:
    """Return the app's options."""
    parser = program.parser("check-bundle", __doc__)
    options.add_input(parser, "--bundle", "exported bundle")
    parser.add_argument(
        "--device",
        choices=("cpu", "cuda"),
        default="cpu",
        help="where it is to be served",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Check files and scores of a bundle."""
    args = build_parser().parse_args(argv)
    verify(args.bundle, KIND)
    runner = Runner.load(args.bundle, args.device)
    found = check_bundle(args.bundle, runner)
    print(
        f"{found['rows']:,} rows: scores differ by {found['from_served']:.1g} from "
        f"those of the export and by {found['from_trained']:.1g} from the trained "
        "ranker's"
    )


if __name__ == "__main__":
    options.run(main)
