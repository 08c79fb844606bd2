"""Generate data: `data market` writes a market of users and items as a data set.

Its impressions carry `oracle`, the true probability of conversion. Read it with
`--data parquet:DIR`.
"""

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from learn_torchrec.artifact import is_finished, recipe_of, write_artifact
from learn_torchrec.config import from_dict, meanings, to_dict
from learn_torchrec.datasets.generated.market import KIND, MarketConfig, write_market
from learn_torchrec.locks import locked

from . import options, program


def build_parser() -> argparse.ArgumentParser:
    """Return the app's options."""
    parser = program.parser("data", __doc__)
    market = parser.add_subparsers(dest="what", required=True).add_parser(
        "market", help="users, items and impressions with known probabilities"
    )
    texts = meanings(MarketConfig)
    for field in dataclasses.fields(MarketConfig):
        market.add_argument(
            f"--{field.name}",
            default=field.default,
            metavar="NUMBER",
            help=f"{texts[field.name].rstrip('.')} (default: %(default)s)".replace(
                " % ", " %% "
            ),
        )
    market.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="DIR",
        help="directory for the market",
    )
    market.add_argument(
        "--overwrite", action="store_true", help="replace a market with other settings"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Write the market, day by day."""
    args = build_parser().parse_args(argv)
    names = [field.name for field in dataclasses.fields(MarketConfig)]
    values = {name: getattr(args, name) for name in names}
    config = from_dict(MarketConfig, values, "data market")
    settings = to_dict(config)
    if is_finished(args.out, KIND, recipe_of(KIND, settings, {}), args.overwrite):
        return
    with (
        locked(args.out),
        write_artifact(args.out, kind=KIND, config=settings, inputs={}) as working,
        tqdm(total=config.impressions, desc="market", unit="row", disable=None) as bar,
    ):
        for done in write_market(config, working):
            bar.update(done - bar.n)
    print(
        f"{config.impressions:,} impressions; read them with --data parquet:{args.out}"
    )


if __name__ == "__main__":
    options.run(main)
