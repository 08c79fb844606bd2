"""Stage 2, export: write user and item vectors as Parquet for the ranker."""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch.distributed as dist

from apps import options
from apps.job import Job, describe
from learn_torchrec.content import store as content
from learn_torchrec.datasets import open_dataset
from learn_torchrec.datasets.histories import load_histories
from learn_torchrec.ranker.vectors import KIND
from learn_torchrec.schema import (
    INTERACTIONS_FILE,
    ITEM_VECTORS_FILE,
    USER_VECTORS_FILE,
)
from learn_torchrec.towers.artifact import (
    KIND_TOWERS,
    check_towers_inputs,
    load_towers,
)
from learn_torchrec.towers.export import (
    snapshot_events,
    write_item_vectors,
    write_user_vectors,
)
from learn_torchrec.towers.inference import encode_catalogue, history_vectors
from learn_torchrec.training.distributed import (
    locked_on_rank0,
    process_group,
    rank_share,
    write_artifact_on_all_ranks,
)
from learn_torchrec.training.run_log import RunLog


def build_parser() -> argparse.ArgumentParser:
    """Return the app's options."""
    parser = options.parser("export-vectors", __doc__)
    options.add_data(parser)
    options.add_input(parser, "--content", "content store of the items")
    options.add_input(parser, "--towers", "trained towers")
    options.add_output(parser, "the vectors")
    return parser


def plan(args: argparse.Namespace) -> Job:
    """Return what the app would make."""
    inputs = {
        INTERACTIONS_FILE: open_dataset(args.data).fingerprint(INTERACTIONS_FILE),
    }
    artefacts = {
        "content": (args.content, content.KIND),
        "towers": (args.towers, KIND_TOWERS),
    }
    return describe(args, KIND, ("split", "export"), inputs, artefacts)


def main(argv: Sequence[str] | None = None) -> None:
    """Encode the catalogue and every user snapshot; each rank writes its share."""
    args = build_parser().parse_args(argv)
    job = plan(args)
    if job.is_done():
        return
    store = content.ContentStore.open(args.content)
    histories = load_histories(open_dataset(args.data), store, job.run.split)
    sequences = histories.sequences
    snapshots = snapshot_events(sequences, job.run.export, histories.times)
    with (
        process_group() as device,
        locked_on_rank0(job.out),
        RunLog(job.out) as log,
    ):
        towers, config, towers_manifest = load_towers(args.towers, device)
        check_towers_inputs(args.towers, towers_manifest, store, job.run.split)
        sequences = sequences.with_action_names(towers_manifest.facts["actions"])
        items = np.arange(len(store))[rank_share(len(store))]
        events = snapshots[rank_share(len(snapshots))]
        item_vectors = encode_catalogue(towers, store, items, device)
        facts = {
            "items": len(store),
            "snapshots": len(snapshots),
            "dim": int(item_vectors.shape[1]),
        }
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
        with write_artifact_on_all_ranks(job.out, **manifest) as working:
            write_item_vectors(
                _part(working / ITEM_VECTORS_FILE),
                store.item_ids.take(pa.array(items)),
                item_vectors,
            )
            write_user_vectors(
                _part(working / USER_VECTORS_FILE),
                sequences,
                events,
                user_vectors,
                facts["dim"],
            )


def _part(directory: Path) -> Path:
    """This rank's file of a Parquet data set."""
    directory.mkdir(exist_ok=True)
    return directory / f"part-{dist.get_rank():05d}.parquet"


if __name__ == "__main__":
    options.run(main)
