"""Stage 2: train the twin towers on histories and content vectors."""

import argparse
import shutil
from collections.abc import Sequence

from apps import options
from apps.job import Job, describe
from learn_torchrec.artifact import read_manifest
from learn_torchrec.content import store as content
from learn_torchrec.datasets import open_dataset
from learn_torchrec.datasets.histories import load_histories
from learn_torchrec.schema import INTERACTIONS_FILE
from learn_torchrec.towers.export import KIND_TOWERS, save_towers
from learn_torchrec.towers.holdout import split_towers
from learn_torchrec.towers.training import train_towers
from learn_torchrec.training.distributed import (
    is_writer,
    process_group,
    write_artifact_together,
)
from learn_torchrec.training.run_log import RUN_LOG, RunLog


def build_parser() -> argparse.ArgumentParser:
    """Return the app's options."""
    parser = options.parser("train-towers", __doc__)
    options.add_data(parser)
    options.add_input(parser, "--content", "content store of the items")
    options.add_output(parser, "the trained towers")
    return parser


def plan(args: argparse.Namespace) -> Job:
    """Return what the app would make."""
    inputs = {
        INTERACTIONS_FILE: open_dataset(args.data).fingerprint(INTERACTIONS_FILE),
        "content": read_manifest(args.content, content.KIND).fingerprint,
    }
    return describe(args, KIND_TOWERS, ("split", "towers", "retrieval"), inputs)


def main(argv: Sequence[str] | None = None) -> None:
    """Train on every rank of the job and write the towers."""
    args = build_parser().parse_args(argv)
    job = plan(args)
    if job.is_done():
        return
    split = job.run.split
    store = content.ContentStore.open(args.content)
    histories = load_histories(open_dataset(args.data), store, split)
    data = split_towers(histories.sequences, histories.times, split)
    with process_group() as device, RunLog(job.out) as log:
        trained = train_towers(
            job.run.towers,
            data,
            store,
            job.run.retrieval,
            device,
            log,
        )
        manifest = job.manifest(data.known_until, trained.facts)
        with write_artifact_together(job.out, **manifest) as working:
            if is_writer():
                save_towers(working, trained.state)
                shutil.copyfile(log.path, working / RUN_LOG)


if __name__ == "__main__":
    options.run(main)
