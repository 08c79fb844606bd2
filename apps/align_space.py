"""Content of a new encoder, in the space of an earlier one, so that it rolls out.

A linear map is fitted on the items that both stores have. The store written to --out is
in the space of OLD: what was trained on OLD reads it. Items of OLD keep their vectors,
the others get NEW's, mapped. What the map costs is measured on held-out items.
"""

import argparse
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from learn_torchrec.arrays import BoolArray, Int64Array
from learn_torchrec.artifact import read_manifest, reading
from learn_torchrec.content import store as content
from learn_torchrec.content.align import (
    ALIGNMENT_FILE,
    Alignment,
    SharedItems,
    standardized,
)
from learn_torchrec.content.store import KIND, ContentStore
from learn_torchrec.content.vector_cache import ENCODER_FACT
from learn_torchrec.datasets.adapters import open_dataset
from learn_torchrec.errors import UserError
from learn_torchrec.evaluation.alignment import alignment_costs
from learn_torchrec.evaluation.cohorts import ALL, CohortConfig, assign_cohorts
from learn_torchrec.evaluation.words import cohort_title
from learn_torchrec.matrix import blocks
from learn_torchrec.publish import write_artifact
from learn_torchrec.schema import INTERACTIONS_FILE, ITEM_ID
from learn_torchrec.spaces import (
    SPACE,
    copy_canaries,
    cosines,
    difference,
    read_canaries,
    space_of,
)

from .common import options, program
from .common.job import Job, describe

_MEASURED = 2_000  # items at most

logger = logging.getLogger(__name__)


def build_parser() -> argparse.ArgumentParser:
    """Return the app's options."""
    parser = options.parser("align-space", __doc__)
    for name, what in (
        ("old", "content that the towers and the ranker were trained on"),
        ("new", "content of the new encoder, of some of the same items and others"),
    ):
        parser.add_argument(
            name, type=program.local_path, metavar=name.upper(), help=what
        )
    parser.add_argument(
        "--method",
        choices=("ridge", "procrustes"),
        default="ridge",
        help="least squares, or a rotation, which needs equal dims",
    )
    parser.add_argument(
        "--map-known",
        action="store_true",
        help="map the items of OLD too, as if OLD's encoder were gone",
    )
    options.add_input(
        parser,
        "--map",
        "an earlier output, whose map is used as it is: for tomorrow's new items",
        required=False,
    )
    parser.add_argument(
        "--data",
        dest="log",  # no settings are derived from it
        metavar="ADAPTER:PATH",
        help="data set whose interactions divide the measured items into cohorts",
    )
    options.add_output(parser, "the aligned content store")
    return parser


def plan(args: argparse.Namespace) -> Job:
    """Return what the app would make."""
    inputs = {"method": args.method, "map_known": str(args.map_known)}
    if args.log is not None:
        log = open_dataset(args.log)
        inputs[INTERACTIONS_FILE] = log.fingerprint(INTERACTIONS_FILE)
    artefacts = {"old": (args.old, KIND), "new": (args.new, KIND)}
    if args.map is not None:
        artefacts["map"] = (args.map, KIND)
    return describe(args, KIND, ("cohorts",), inputs, artefacts)


def main(argv: Sequence[str] | None = None) -> None:
    """Write the aligned store and print what the map costs."""
    args = build_parser().parse_args(argv)
    job = plan(args)
    job.make(lambda: _align(args, job))


def _align(args: argparse.Namespace, job: Job) -> None:
    old, new = ContentStore.open(args.old), ContentStore.open(args.new)
    spaces = space_of(old.manifest), space_of(new.manifest)
    if all(spaces) and difference(*spaces) is None:
        raise UserError(
            f"{args.new}: is in the space of {args.old} already; use it as it is"
        )
    shared = SharedItems.of(old, new)
    alignment = _map_of(args, old, new, shared)
    costs = _costs(args, job.run.cohorts, old, new, shared, alignment)
    known = old.rows_of(new.item_ids)
    if args.map_known:
        known[:] = -1
    elif spaces[0].get("prompt") == spaces[1].get("prompt"):
        known[_changed(old, new, known)] = -1
    facts = {
        "items": len(new),
        "dim": old.dim,
        "mapped": int((known < 0).sum()),
        ENCODER_FACT: f"aligned to {spaces[0].get('encoder')}",
        SPACE: spaces[0],
        "alignment": costs,
    }
    with write_artifact(job.out, **job.manifest(None, facts)) as working:
        _write(working, old, new, known, alignment)
    print(_table(costs))


def _map_of(
    args: argparse.Namespace, old: ContentStore, new: ContentStore, shared: SharedItems
) -> Alignment:
    """Return the map to use: an earlier one, or one that is fitted.

    Raises:
        UserError: the earlier map is of other dims, or between other spaces.
    """
    if args.map is None:
        return Alignment.fit(old, new, shared, args.method)
    manifest = read_manifest(args.map, KIND)
    with reading(args.map, manifest, [ALIGNMENT_FILE], "name an output of align-space"):
        alignment = Alignment.read(args.map)
    fits = alignment.matrix.shape == (new.dim, old.dim)
    if not fits or difference(space_of(manifest), space_of(old.manifest)):
        raise UserError(
            f"--map {args.map}: is no map from {new.dim} dims to the space of "
            f"{args.old}; name the output of align-space with the same OLD"
        )
    return alignment


def _costs(
    args: argparse.Namespace,
    cohorts: CohortConfig,
    old: ContentStore,
    new: ContentStore,
    shared: SharedItems,
    alignment: Alignment,
) -> dict[str, Any]:
    """Return the cost on the held-out items, by cohort, and of the canaries."""
    old_rows, new_rows = shared.old[shared.measured], shared.new[shared.measured]
    old_rows, new_rows = old_rows[:_MEASURED], new_rows[:_MEASURED]
    own = standardized(old, old.gather(old_rows))
    mapped = standardized(old, alignment.apply(new.gather(new_rows)))
    others = standardized(old, old.gather(shared.old[: shared.fitted]))
    groups = _cohorts(args, cohorts, old, old_rows)
    costs: dict[str, Any] = alignment_costs(own, mapped, others, groups)
    before = read_canaries(args.old, old.dim)
    now = read_canaries(args.new, new.dim)
    if before is not None and now is not None:
        costs["canaries"] = round(
            float(cosines(before, alignment.apply(now)).mean()), 4
        )
    return costs


def _cohorts(
    args: argparse.Namespace,
    cohorts: CohortConfig,
    store: ContentStore,
    rows: Int64Array,
) -> Mapping[str, BoolArray]:
    """Return the measured items by cohort of activity, where a log says it."""
    everything = {ALL: np.ones(len(rows), bool)}
    if args.log is None:
        return everything
    events = store.rows_of(open_dataset(args.log).interactions[ITEM_ID])
    counts = np.bincount(events[events >= 0], minlength=len(store))
    return everything | assign_cohorts("item", counts[rows], cohorts)


def _changed(old: ContentStore, new: ContentStore, known: Int64Array) -> Int64Array:
    """Return the rows of `new` whose text is another than in `old`."""
    if not (old.has_text_hashes and new.has_text_hashes):
        return np.empty(0, np.int64)
    both = np.flatnonzero(known >= 0)
    before, now = old.text_hashes()[known[both]], new.text_hashes()[both]
    return both[(before != now).any(axis=1)]


def _write(
    working: Path,
    old: ContentStore,
    new: ContentStore,
    known: Int64Array,
    alignment: Alignment,
) -> None:
    ids: pa.Array = new.item_ids

    def vectors(part: slice) -> Any:
        rows = np.arange(len(new))[part]
        mapped = content.to_half(alignment.apply(new.gather(rows)), ids[part])
        kept = known[part] >= 0
        mapped[kept] = old.gather(known[part][kept])
        return mapped

    if new.has_text_hashes:
        hashes = new.text_hashes()
        moments = content.write_shard(working, 0, vectors, hashes, old.dim)
        content.finish_content_store(working, ids, moments)
    else:
        parts = [vectors(part) for part in blocks((len(new), old.dim))]
        content.write_content_store(working, ids, np.concatenate(parts))
    alignment.write(working)
    copy_canaries(old.directory, working)


def _table(costs: Mapping[str, Any]) -> str:
    """Return the cost as a table."""
    lines = [f"{'held-out items':<24}{'items':>8}{'cosine':>9}{'neighbours kept':>17}"]
    for name, cost in costs.items():
        if isinstance(cost, Mapping):
            lines.append(
                f"{cohort_title(name):<24}{cost['items']:>8}{cost['cosine']:>9.3f}"
                f"{cost['neighbours']:>17.1%}"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    options.run(main)
