"""Stage 3: train the CVR ranker; with --vectors LEARN is on, without it is DLRM."""

import argparse
import shutil
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from apps import options
from apps.job import Job, describe
from learn_torchrec.artifact import read_manifest
from learn_torchrec.datasets import open_dataset
from learn_torchrec.datasets.split import SplitTimes, resolve_times
from learn_torchrec.errors import UserError
from learn_torchrec.ranker.rows import prepare_rows
from learn_torchrec.ranker.training import KIND_RANKER, save_ranker, train_ranker
from learn_torchrec.ranker.vectors import KIND as KIND_VECTORS
from learn_torchrec.ranker.vectors import load_vectors
from learn_torchrec.schema import IMPRESSIONS_FILE, INTERACTIONS_FILE, TIMESTAMP
from learn_torchrec.training.distributed import (
    is_writer,
    process_group,
    write_artifact_together,
)
from learn_torchrec.training.run_log import RUN_LOG, RunLog


def build_parser() -> argparse.ArgumentParser:
    """Return the app's options."""
    parser = options.parser("train-ranker", __doc__)
    options.add_data(parser)
    options.add_input(parser, "--vectors", "LEARN's vectors", required=False)
    options.add_output(parser, "the trained ranker")
    return parser


def plan(args: argparse.Namespace) -> Job:
    """Return what the app would make."""
    dataset = open_dataset(args.data)
    inputs = dataset.fingerprints(INTERACTIONS_FILE, IMPRESSIONS_FILE)
    if args.vectors:
        inputs["vectors"] = read_manifest(args.vectors, KIND_VECTORS).fingerprint
    return describe(args, KIND_RANKER, ("split", "ranker"), inputs)


def main(argv: Sequence[str] | None = None) -> None:
    """Train on the impressions from split.towers_until to split.test_from."""
    args = build_parser().parse_args(argv)
    job = plan(args)
    if job.is_done():
        return
    dataset = open_dataset(args.data)
    times = resolve_times(job.run.split, dataset.interactions)
    moments = dataset.impressions[TIMESTAMP].to_numpy()
    wanted = _training_rows(moments, times)
    vectors = load_vectors(args.vectors) if args.vectors else None
    if vectors:
        vectors.refuse_leak(moments[wanted], "train on")
    # All rows are prepared, so that an error names a row of the file.
    rows = prepare_rows(
        dataset.impressions, job.run.ranker.features, vectors, IMPRESSIONS_FILE
    ).select(wanted)
    with process_group() as device, RunLog(job.out) as log:
        model, facts = train_ranker(job.run.ranker, rows, device, log)
        manifest = job.manifest(times.test_from, facts)
        with write_artifact_together(job.out, **manifest) as working:
            save_ranker(model, working)
            if is_writer():
                shutil.copyfile(log.path, working / RUN_LOG)


def _training_rows(moments: NDArray[np.int64], times: SplitTimes) -> NDArray[np.bool_]:
    wanted = (moments >= times.towers_until) & (moments < times.test_from)
    if not wanted.any():
        raise UserError(
            f"{IMPRESSIONS_FILE}: no impression lies between split.towers_until and "
            f"split.test_from ({times.towers_until} to {times.test_from}, unix "
            "seconds); move them"
        )
    return wanted


if __name__ == "__main__":
    options.run(main)
