"""Stage 2, export: write user and item vectors for this ranker or any other."""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import torch.distributed as dist
from torch import Tensor

from learn_torchrec import spaces
from learn_torchrec.arrays import BoolArray, Float32Array, Int64Array
from learn_torchrec.artifact import Manifest, listed_files, read_manifest, reading
from learn_torchrec.content import store as content
from learn_torchrec.content.reduction import REDUCTION_FILE, Reduction
from learn_torchrec.datasets.adapters.base import Dataset
from learn_torchrec.datasets.histories import load_histories
from learn_torchrec.datasets.loading.row_groups import RowSource
from learn_torchrec.datasets.sequences import SequenceSet
from learn_torchrec.datasets.split import moment
from learn_torchrec.errors import UserError
from learn_torchrec.ids import UNKNOWN
from learn_torchrec.ranker.learn.reduced import CONTENT, write_neighbours, write_reduced
from learn_torchrec.ranker.learn.vectors import KIND
from learn_torchrec.refusals import naming
from learn_torchrec.schema import (
    IMPRESSIONS_FILE,
    INTERACTIONS_FILE,
    ITEM_ID,
    TIMESTAMP,
    USER_ID,
)
from learn_torchrec.spaces import (
    CANARIES_FILE,
    SPACE,
    read_canaries,
    refuse_other_space,
    space,
    space_of,
)
from learn_torchrec.towers.artifact import (
    KIND_TOWERS,
    check_towers_inputs,
    load_towers,
    tower_canaries,
)
from learn_torchrec.towers.earlier import EarlierVectors, taken_over
from learn_torchrec.towers.export import (
    AS_OF_IMPRESSIONS,
    write_item_vectors,
    write_user_vectors,
    write_vector_indexes,
)
from learn_torchrec.towers.inference import encode_catalogue, history_vectors
from learn_torchrec.towers.snapshots import asked_for, snapshot_events
from learn_torchrec.training.distributed import (
    gather_objects,
    host_group,
    is_writer,
    on_rank0,
    raise_on_all_ranks,
    rank_share,
    write_artifact_on_all_ranks,
)
from learn_torchrec.training.run_log import RunLog

from .common import options
from .common.job import Job, describe

logger = logging.getLogger(__name__)


def build_parser() -> argparse.ArgumentParser:
    """Return the app's options."""
    parser = options.parser("export-vectors", __doc__)
    options.add_data(parser)
    options.add_input(parser, "--content", "content store of the items")
    options.add_input(parser, "--towers", "trained towers")
    options.add_input(
        parser,
        "--earlier",
        "earlier vectors, whose space these continue: a ranker that read those can "
        "read these; of the same towers, vectors of users without new events are "
        "taken over",
        required=False,
    )
    options.add_output(parser, "the vectors")
    return parser


def plan(args: argparse.Namespace) -> Job:
    """Return what the app would make."""
    run = options.resolve(args, ("split", "export"))
    tables = [INTERACTIONS_FILE]
    if run.export.snapshots == AS_OF_IMPRESSIONS:
        tables.append(IMPRESSIONS_FILE)
    inputs = options.dataset(args).fingerprints(*tables)
    artefacts = {
        "content": (args.content, content.KIND),
        "towers": (args.towers, KIND_TOWERS),
    }
    if args.earlier is not None:
        artefacts["earlier"] = (args.earlier, KIND)
    return describe(args, KIND, ("split", "export"), inputs, artefacts, run)


def main(argv: Sequence[str] | None = None) -> None:
    """Encode the catalogue and every user snapshot; each rank writes its share."""
    args = build_parser().parse_args(argv)
    job = plan(args)
    job.make_on_all_ranks(lambda device: _export(args, job, device))


def _export(args: argparse.Namespace, job: Job, device: torch.device) -> None:
    store = content.ContentStore.open(args.content)
    histories = load_histories(options.dataset(args), store, job.run.split)
    sequences = histories.sequences.packed()
    export, since = job.run.export, None
    if export.since is not None:
        log_times = options.dataset(args).times
        since = moment("export.since", export.since, log_times)
    asked = None
    if export.snapshots == AS_OF_IMPRESSIONS:
        first = histories.times.towers_until if since is None else since
        asked = _asked_on_all_ranks(sequences, options.dataset(args), first)
    snapshots = snapshot_events(sequences, export, histories.times, since, asked)
    with raise_on_all_ranks():  # all have read the log
        job.refuse_changed_data()
    with RunLog(job.out) as log:
        towers, config, towers_manifest = load_towers(args.towers, device, store)
        check_towers_inputs(args.towers, towers_manifest, store, job.run.split)
        sequences = sequences.with_action_names(towers_manifest.facts["actions"])
        items = np.arange(len(store))[rank_share(len(store))]
        events = snapshots[rank_share(len(snapshots))]
        reduction = on_rank0(
            lambda: _reduction(
                store, towers_manifest, args.earlier, job.run.export.content_dim
            )
        )
        item_vectors = encode_catalogue(towers, store, items, device)
        facts: dict[str, Any] = {
            "items": len(store),
            "snapshots": len(snapshots),
            "dim": int(item_vectors.shape[1]),
            SPACE: space(space_of(towers_manifest), reduction=reduction.digest),
        }
        canaries = tower_canaries(towers, store, device)
        if canaries is not None and args.earlier is not None:
            _say_drift(args.earlier, canaries)
        earlier = _earlier_vectors(args, job, store, items, item_vectors)
        rows = np.full(len(events), UNKNOWN)
        if earlier is not None:
            rows = earlier.rows_of(sequences, events)
        facts["taken_over"] = sum(gather_objects(int((rows != UNKNOWN).sum())))
        user_vectors = history_vectors(
            towers,
            store,
            sequences,
            events[rows == UNKNOWN],
            config.sampling.history_length,
            device,
            log.progress,
        )
        if earlier is not None:
            user_vectors = taken_over(user_vectors, rows, earlier.users)
        manifest = job.manifest(towers_manifest.cutoff, facts)
        parquet = job.run.export.parquet
        with write_artifact_on_all_ranks(job.out, **manifest) as working:
            rank, dim = dist.get_rank(), facts["dim"]
            with raise_on_all_ranks(), naming(job.out):
                write_item_vectors(
                    working,
                    rank,
                    store.item_ids.take(pa.array(items)),
                    [item_vectors],
                    (len(items), dim),
                    parquet,
                )
                write_user_vectors(
                    working, rank, sequences, events, user_vectors, dim, parquet
                )
                write_reduced(working / CONTENT, rank, store, reduction, items)
                if is_writer():
                    write_vector_indexes(working, store.item_ids, sequences, snapshots)
                    reduction.write(working / CONTENT)
                    if canaries is not None:
                        np.save(working / CANARIES_FILE, canaries)
            with raise_on_all_ranks(), naming(job.out):  # all have written
                if is_writer():
                    write_neighbours(
                        working / CONTENT, store.index, job.run.export.neighbours
                    )


def _asked_on_all_ranks(
    sequences: SequenceSet, dataset: Dataset, first: int
) -> BoolArray:
    """Return the events after which impressions look up a vector; ranks share them."""
    with raise_on_all_ranks():
        shown = asked_impressions(dataset, first)
        asked = asked_for(sequences, shown, dist.get_rank(), dist.get_world_size())
    marks = torch.from_numpy(asked.view(np.uint8))
    dist.all_reduce(marks, dist.ReduceOp.MAX, group=host_group())
    return asked


def asked_impressions(dataset: Dataset, first: int) -> RowSource:
    """Return users and times of the impressions from a moment on, unix seconds."""
    names = [USER_ID, ITEM_ID, TIMESTAMP]
    return dataset.impressions_between(first, columns=names)


def _earlier_vectors(
    args: argparse.Namespace,
    job: Job,
    store: content.ContentStore,
    items: Int64Array,
    vectors: Tensor,
) -> EarlierVectors | None:
    """Return --earlier if its users' vectors can be taken over, as all ranks find.

    `items` are this rank's, with their vectors as they are encoded today.
    """
    if args.earlier is None:
        return None
    manifest = read_manifest(args.earlier, KIND)
    if manifest.inputs.get("towers") != job.inputs["towers"]:
        return None
    with reading(args.earlier, manifest, (), "leave out --earlier"):
        files = listed_files(args.earlier, manifest)
        earlier = EarlierVectors.open(args.earlier, files)
    ids = store.item_ids.take(pa.array(items))
    same = earlier is not None and earlier.has_items(ids, items, vectors)
    return earlier if all(gather_objects(same)) else None


def _reduction(
    store: content.ContentStore, towers: Manifest, earlier: Path | None, dim: int
) -> Reduction:
    """Return how content is reduced: as before, or fitted on this catalogue.

    Raises:
        UserError: the earlier vectors are of another space, or of other dims.
    """
    if earlier is None:
        return Reduction.fit(store, dim)
    manifest = read_manifest(earlier, KIND)
    refuse_other_space(
        space_of(manifest),
        space_of(towers),
        f"--earlier {earlier}: its vectors, and those of --towers,",
        "pass vectors of the towers that --warm-start named, or leave out --earlier",
    )
    again = "leave out --earlier"
    with reading(earlier, manifest, [f"{CONTENT}/{REDUCTION_FILE}"], again):
        reduction = Reduction.read(earlier / CONTENT)
    if reduction.matrix.shape != (store.dim, min(dim, store.dim)):
        raise UserError(
            f"--earlier {earlier}: reduces {reduction.matrix.shape[0]} to "
            f"{reduction.matrix.shape[1]} dims, this run {store.dim} to "
            f"{min(dim, store.dim)}; set export.content_dim to that of the earlier "
            f"vectors, or {again}"
        )
    return reduction


def _say_drift(earlier: Path, canaries: Float32Array) -> None:
    """Log how far the towers have moved since they made earlier vectors."""
    before = read_canaries(earlier)
    if before is not None and before.shape == canaries.shape and is_writer():
        logger.info(
            "the towers' vectors of fixed texts: cosine %.3f to those of %s",
            *(spaces.cosines(before, canaries).mean(), earlier),
        )


if __name__ == "__main__":
    options.run(main)
