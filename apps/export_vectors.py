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

from learn_torchrec import spaces
from learn_torchrec.arrays import Float32Array
from learn_torchrec.artifact import Manifest, read_manifest, reading
from learn_torchrec.content import store as content
from learn_torchrec.datasets.histories import load_histories
from learn_torchrec.datasets.split import moment
from learn_torchrec.errors import UserError
from learn_torchrec.ranker.learn.reduced import (
    CONTENT,
    REDUCTION_FILE,
    Reduction,
    write_neighbours,
    write_reduced,
)
from learn_torchrec.ranker.learn.vectors import KIND
from learn_torchrec.refusals import naming
from learn_torchrec.schema import INTERACTIONS_FILE
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
from learn_torchrec.towers.export import (
    snapshot_events,
    write_item_vectors,
    write_user_vectors,
    write_vector_indexes,
)
from learn_torchrec.towers.inference import encode_catalogue, history_vectors
from learn_torchrec.training.distributed import (
    is_writer,
    on_rank0,
    raise_on_all_ranks,
    rank_share,
    write_artifact_on_all_ranks,
)
from learn_torchrec.training.run_log import RunLog

from . import options
from .job import Job, describe

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
        "read these",
        required=False,
    )
    options.add_output(parser, "the vectors")
    return parser


def plan(args: argparse.Namespace) -> Job:
    """Return what the app would make."""
    inputs = {INTERACTIONS_FILE: options.dataset(args).fingerprint(INTERACTIONS_FILE)}
    artefacts = {
        "content": (args.content, content.KIND),
        "towers": (args.towers, KIND_TOWERS),
    }
    if args.earlier is not None:
        artefacts["earlier"] = (args.earlier, KIND)
    return describe(args, KIND, ("split", "export"), inputs, artefacts)


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
    snapshots = snapshot_events(sequences, export, histories.times, since)
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
        user_vectors = history_vectors(
            towers,
            store,
            sequences,
            events,
            config.sampling.history_length,
            device,
            log.progress,
        )
        manifest = job.manifest(towers_manifest.cutoff, facts)
        parquet = job.run.export.parquet
        with (
            write_artifact_on_all_ranks(job.out, **manifest) as working,
            raise_on_all_ranks(),
            naming(job.out),
        ):
            rank, dim = dist.get_rank(), facts["dim"]
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
            dist.barrier()
            if is_writer():
                write_neighbours(
                    working / CONTENT, store.index, job.run.export.neighbours
                )


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
