"""Say whether a ranker's tables fit a cluster, who holds them, and what a step takes.

The cluster is declared, so nothing is trained and no GPU is needed. Numbers are the
estimates of TorchRec's planner, whose plan a training on such a cluster follows. For
rankers of which a part lies in host memory, a step fetches rows before it needs them.
"""

import argparse
import re
from collections.abc import Sequence

import torch

from learn_torchrec.config import replace
from learn_torchrec.errors import UserError
from learn_torchrec.ranker.build import build_task
from learn_torchrec.ranker.config import RankerConfig
from learn_torchrec.ranker.features.hashed import HashedFeature
from learn_torchrec.ranker.learn.shape import LearnShape
from learn_torchrec.ranker.tables import sharding_kinds
from learn_torchrec.training.planning import (
    GIB,
    Cluster,
    Planned,
    Workload,
    named_tables,
    plan_tables,
)
from learn_torchrec.training.table_optimizer import step_in_backward

from .common import options, program
from .planning.plan_tables import plan_facts, plan_text

_TABLE = re.compile(r"(?P<name>[^=]+)=(?P<rows>\d+)x(?P<dim>\d+)")
_CONTENT_DIM = 64  # of the reduced content, whose width moves no table
_MOST = 10**6  # hosts, GPUs of a host, GiB


def build_parser() -> argparse.ArgumentParser:
    """Return the app's options."""
    parser = options.parser("plan", __doc__)
    options.add_input(parser, "--ranker", "a trained ranker, to plan anew", False)
    cluster = parser.add_argument_group("cluster")
    cluster.add_argument(
        "--nodes", type=int, default=1, metavar="N", help="hosts of the job"
    )
    cluster.add_argument(
        "--gpus", type=int, default=8, metavar="N", help="GPUs, or ranks, of a host"
    )
    cluster.add_argument(
        "--hbm-gb", type=float, default=80, metavar="GB", help="memory of a GPU, in GiB"
    )
    cluster.add_argument(
        "--host-gb",
        type=float,
        default=1000,
        metavar="GB",
        help="memory of a host, in GiB",
    )
    cluster.add_argument(
        "--device", choices=("cuda", "cpu"), default="cuda", help="what ranks run on"
    )
    work = parser.add_argument_group("work")
    work.add_argument(
        "--table",
        action="append",
        default=[],
        metavar="NAME=ROWSxDIM",
        help="a table, instead of those of the configuration; may be repeated",
    )
    work.add_argument(
        "--length",
        action="append",
        default=[],
        metavar="FEATURE=MEAN",
        help="ids of a row in a list feature (default: 1); may be repeated",
    )
    work.add_argument(
        "--items",
        type=int,
        default=0,
        metavar="N",
        help="rows of the ids that LEARN's attention reads (default: none)",
    )
    program.add_output_file(parser, "plan as JSON", required=False)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Plan, print and write the plan."""
    args = build_parser().parse_args(argv)
    if args.out is not None:
        program.check_output_file(args.out)
    cluster = _cluster(args)
    config = _with_tables(options.resolve(args, ["ranker"]).ranker, args.table)
    lengths = _lengths(config, args.length)
    batch, rest = divmod(config.training.batch_size, cluster.ranks)
    if rest or not batch:
        raise UserError(
            f"ranker.training.batch_size={config.training.batch_size}: not a multiple "
            f"of the {cluster.ranks} ranks; --set it, e.g. to {1024 * cluster.ranks}"
        )
    workload = Workload(batch_size=batch, lengths=lengths)
    planned = plan_ranker(config, args.items, cluster, workload)
    if args.out is not None:
        program.write_json(args.out, plan_facts(planned, cluster, workload))
    print(plan_text(planned, cluster, workload))


def plan_ranker(
    config: RankerConfig, items: int, cluster: Cluster, workload: Workload
) -> Planned:
    """Plan the tables of a ranker that exists on "meta" alone.

    `items` are the rows of the table that LEARN's attention over ids reads.

    Raises:
        UserError: tables that do not fit; with the reason and the fix.
    """
    learn = LearnShape(content_dim=_CONTENT_DIM, items=items) if items else None
    task = build_task(config, learn, torch.device("meta"))
    step_in_backward([table for _, table in named_tables(task)], config.tables)
    kinds = sharding_kinds(config.features, config.sharding)
    return plan_tables(task, kinds, cluster, workload, config.tables)


def _cluster(args: argparse.Namespace) -> Cluster:
    for option in ("nodes", "gpus", "hbm_gb", "host_gb"):
        if not 0 < getattr(args, option) <= _MOST:
            name, value = option.replace("_", "-"), getattr(args, option)
            raise UserError(f"--{name} {value}: use a number above 0, {_MOST} at most")
    if args.items < 0:
        raise UserError(f"--items {args.items}: use 0 or more")
    return Cluster(
        nodes=args.nodes,
        ranks_per_node=args.gpus,
        device=args.device,
        hbm_bytes=int(args.hbm_gb * GIB) if args.device == "cuda" else 0,
        host_bytes=int(args.host_gb * GIB),
    )


def _with_tables(config: RankerConfig, tables: Sequence[str]) -> RankerConfig:
    """Return settings with the declared tables instead of their own, if any."""
    features = []
    for text in tables:
        found = _TABLE.fullmatch(text)
        rows, dim = (int(found[part]) for part in ("rows", "dim")) if found else (0, 0)
        if found is None or not 0 < rows < 2**31 or not dim or dim % 4:
            raise UserError(
                f"--table {text}: write NAME=ROWSxDIM with fewer than 2**31 rows and "
                "a dim that is a multiple of 4, e.g. user_id=1000000000x64"
            )
        features.append(
            HashedFeature(column=found["name"], num_embeddings=rows, embedding_dim=dim)
        )
    if not features:
        return config
    chosen = replace(config.features, sparse=tuple(features), dense=())
    return replace(config, features=chosen)


def _lengths(config: RankerConfig, texts: Sequence[str]) -> dict[str, float]:
    """Return the mean number of ids by feature; a list's limit where none is given."""
    lengths = {one.name: float(one.max_length or 1) for one in config.features.sparse}
    lengths["history"] = float(config.learn.history_length)
    for text in texts:
        name, _, value = text.partition("=")
        if name not in lengths or not re.fullmatch(r"\d+(\.\d+)?", value):
            raise UserError(
                f"--length {text}: write FEATURE=MEAN with a feature of "
                f"{', '.join(lengths)}"
            )
        lengths[name] = float(value)
    return lengths


if __name__ == "__main__":
    program.run(main)
