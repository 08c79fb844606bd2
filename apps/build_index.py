"""Index item vectors, to find a user's best items at once: flat, HNSW or IVF-PQ.

The kind is chosen by the number of items and the memory, and its recall against the
exact search is printed. With --from, an earlier index is brought to new vectors: items
are added, removed and replaced, into a new artefact.
"""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from learn_torchrec.arrays import Float32Array, Int64Array, joined
from learn_torchrec.artifact import read_manifest, recipe_of, verify
from learn_torchrec.datasets.adapters import open_dataset
from learn_torchrec.datasets.adapters.base import Dataset
from learn_torchrec.errors import UserError
from learn_torchrec.ids import UNKNOWN, as_ids, refuse_other_type
from learn_torchrec.outputs import refuse_inputs
from learn_torchrec.publish import is_finished, make_once, write_artifact
from learn_torchrec.ranker.learn.vectors import KIND as KIND_VECTORS
from learn_torchrec.ranker.learn.vectors import LearnVectors
from learn_torchrec.schema import INTERACTIONS_FILE, ITEM_ID, ITEMS_FILE, TITLE
from learn_torchrec.serving import index_build
from learn_torchrec.serving.index import KIND, ItemIndex
from learn_torchrec.spaces import SPACE, space_of
from learn_torchrec.vector_table import VectorTable

from .common import options, program

AUTO = "auto"

logger = logging.getLogger(__name__)


def build_parser() -> argparse.ArgumentParser:
    """Return the app's options."""
    parser = program.parser("build-index", __doc__)
    options.add_input(parser, "--vectors", "what export-vectors wrote")
    parser.add_argument(
        "--data",
        metavar="ADAPTER:PATH",
        help="keep the items' titles and popularity, for people and for unknown users",
    )
    options.add_output(parser, "the index")
    parser.add_argument(
        "--kind", choices=(AUTO, *index_build.KINDS), default=AUTO, help="of the index"
    )
    parser.add_argument(
        "--memory-mb",
        type=int,
        default=4096,
        metavar="MB",
        help="that the index may take, for --kind auto",
    )
    parser.add_argument(
        "--recall",
        type=float,
        default=0.99,
        metavar="SHARE",
        help=f"of the exact best {index_build.RECALL_AT} that a search shall find",
    )
    parser.add_argument(
        "--from",
        type=program.local_path,
        dest="earlier",
        metavar="DIR",
        help="an earlier index, to which new items are added and old ones removed",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Write an index of the items of a vectors artefact."""
    args = build_parser().parse_args(argv)
    _check(args)
    manifest = read_manifest(args.vectors, KIND_VECTORS)
    dataset = None if args.data is None else open_dataset(args.data)
    config = {"kind": args.kind, "memory_mb": args.memory_mb, "recall": args.recall}
    inputs = {KIND_VECTORS: manifest.fingerprint}
    if args.earlier is not None:
        inputs["earlier"] = read_manifest(args.earlier, KIND).fingerprint
    if dataset is not None:
        tables = (ITEMS_FILE, INTERACTIONS_FILE)
        inputs |= {name: dataset.fingerprint(name) for name in tables}
    recipe = recipe_of(KIND, config, inputs)
    # Not --from: an index may be updated in place.
    refuse_inputs(args.out, [("--vectors", args.vectors)])

    def make() -> None:
        verify(args.vectors, KIND_VECTORS)
        vectors = LearnVectors.open(args.vectors)
        queries = index_build.sample_queries(vectors.users)
        counts, titles = _texts_of(vectors.items, dataset)
        built = _built(args, vectors.items, queries)
        popular = index_build.popular_rows(vectors.items, queries, counts)
        with write_artifact(
            args.out,
            kind=KIND,
            config=config,
            inputs=inputs,
            cutoff=manifest.cutoff,
            facts={
                **index_build.facts_of(built, vectors.items),
                SPACE: space_of(vectors.manifest),
            },
        ) as working:
            index_build.write(working, built, vectors.items, popular, titles)

    make_once(
        args.out, lambda: is_finished(args.out, KIND, recipe, args.overwrite), make
    )
    _say(args.out)


def _check(args: argparse.Namespace) -> None:
    if args.memory_mb < 1:
        raise UserError(f"--memory-mb {args.memory_mb}: use 1 or more")
    if not 0 < args.recall <= 1:
        raise UserError(f"--recall {args.recall}: use a share above 0, at most 1")


def _built(
    args: argparse.Namespace, items: VectorTable, queries: Float32Array
) -> index_build.Built:
    kind = args.kind
    if kind == AUTO:
        shape = len(items.index), int(items.vectors.shape[1])
        kind = index_build.choose_kind(*shape, args.memory_mb << 20)
    if args.earlier is not None:
        verify(args.earlier, KIND)
        earlier = ItemIndex.open(args.earlier)
        if args.kind in (AUTO, earlier.kind):
            built = index_build.update(earlier, items, queries, args.recall)
            if built is not None:
                return built
        print(f"{args.earlier}: too much differs; the index is built anew")
    return index_build.build(items, queries, kind, args.recall)


def _texts_of(
    items: VectorTable, dataset: Dataset | None
) -> tuple[Int64Array | None, pa.Array | None]:
    """Return the number of events and the title of each item; None if unknown."""
    if dataset is None:
        return None, None
    source = dataset.name(INTERACTIONS_FILE)
    met = as_ids(dataset.interactions[ITEM_ID], source, allow_null=True)
    refuse_other_type(met, items.index.type, source, "the vectors")
    rows = items.index.rows_of(met)
    counts = np.bincount(rows[rows != UNKNOWN], minlength=len(items.index))
    if TITLE not in dataset.items.column_names:
        return counts, None
    known = as_ids(dataset.items[ITEM_ID], dataset.name(ITEMS_FILE))
    place = pc.index_in(items.index.ids, value_set=known)
    return counts, joined(dataset.items[TITLE]).cast(pa.large_string()).take(place)


def _say(directory: Path) -> None:
    facts = read_manifest(directory, KIND).facts
    recall = facts[f"recall_at_{index_build.RECALL_AT}"]
    print(
        f"{facts['kind']} index of {facts['items']} items, {facts['memory_mb']} MB, "
        f"recall@{index_build.RECALL_AT} {recall:.4f} on {facts['recall_users']} "
        f"users, in {directory}"
    )


if __name__ == "__main__":
    program.run(main)
