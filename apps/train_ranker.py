"""Stage 3: train the CVR ranker; with --vectors LEARN is on, without it is DLRM."""

import argparse
import shutil
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from apps import options
from apps.job import Job, describe
from apps.learn_inputs import open_vectors, towers_input, vector_artefacts
from apps.warm_start import (
    add_map,
    add_warm_start,
    earlier_ranker,
    map_inputs,
    refuse_future,
    warm_start_artefacts,
)
from learn_torchrec.datasets import open_dataset
from learn_torchrec.datasets.adapters.base import Dataset
from learn_torchrec.datasets.split import SplitTimes, resolve_times
from learn_torchrec.errors import UserError
from learn_torchrec.presets import Run
from learn_torchrec.ranker.build import KIND_RANKER, save_ranker
from learn_torchrec.ranker.prepare import prepare_rows
from learn_torchrec.ranker.rows import RankingRows
from learn_torchrec.ranker.stream import StreamedRows
from learn_torchrec.ranker.training import train_ranker
from learn_torchrec.ranker.vectors import LearnVectors
from learn_torchrec.schema import IMPRESSIONS_FILE, INTERACTIONS_FILE, TIMESTAMP
from learn_torchrec.training.distributed import (
    is_writer,
    raise_on_all_ranks,
    write_artifact_on_all_ranks,
)
from learn_torchrec.training.run_log import RUN_LOG


def build_parser() -> argparse.ArgumentParser:
    """Return the app's options."""
    parser = options.parser("train-ranker", __doc__)
    options.add_data(parser)
    options.add_input(parser, "--vectors", "LEARN's vectors", required=False)
    options.add_input(
        parser,
        "--content",
        "raw content vectors instead of the towers' (ablation)",
        required=False,
    )
    add_warm_start(parser, "an earlier ranker")
    add_map(parser)
    options.add_output(parser, "the trained ranker")
    parser.add_argument(
        "--print-sharding-plan",
        "--print_sharding_plan",
        action="store_true",
        help="print which rank holds which part of each table",
    )
    return parser


def plan(args: argparse.Namespace) -> Job:
    """Return what the app would make."""
    dataset = open_dataset(args.data)
    inputs = dataset.fingerprints(INTERACTIONS_FILE, IMPRESSIONS_FILE)
    artefacts = vector_artefacts(args) | warm_start_artefacts(args, KIND_RANKER)
    inputs |= map_inputs(args) | towers_input(args)
    return describe(args, KIND_RANKER, ("split", "ranker"), inputs, artefacts)


def main(argv: Sequence[str] | None = None) -> None:
    """Train on the impressions from split.towers_until to split.test_from."""
    args = build_parser().parse_args(argv)
    job = plan(args)
    if job.is_done():
        return
    dataset = open_dataset(args.data)
    times = resolve_times(job.run.split, dataset.times)
    vectors = open_vectors(args, dataset, job.run)
    streams = job.run.ranker.training.stream.enabled
    rows = (_streamed if streams else _loaded)(dataset, job.run, times, vectors)
    earlier = earlier_ranker(args)
    if earlier is not None:
        refuse_future(args.warm_start, KIND_RANKER, times.test_from)
    on_plan = _print_plan if args.print_sharding_plan else None
    with job.training() as (device, log, checkpoints):
        model, facts = train_ranker(
            job.run.ranker, rows, device, log, on_plan, checkpoints, earlier
        )
        manifest = job.manifest(times.test_from, facts)
        with write_artifact_on_all_ranks(job.out, **manifest) as working:
            save_ranker(model, working)
            with raise_on_all_ranks():
                if is_writer():
                    shutil.copyfile(log.path, working / RUN_LOG)
        checkpoints.remove()


def _loaded(
    dataset: Dataset, run: Run, times: SplitTimes, vectors: LearnVectors | None
) -> RankingRows:
    moments = dataset.impressions[TIMESTAMP].to_numpy()
    wanted = _training_rows(moments, times)
    if vectors:
        vectors.refuse_leak(moments[wanted], "train on")
    # All rows are prepared, so that an error names a row of the file.
    rows = prepare_rows(
        dataset.impressions, run.ranker.features, vectors, IMPRESSIONS_FILE
    )
    return rows.select(wanted)


def _streamed(
    dataset: Dataset, run: Run, times: SplitTimes, vectors: LearnVectors | None
) -> StreamedRows:
    where = dataset.parquet(IMPRESSIONS_FILE)
    if where is None:
        raise UserError(
            "ranker.training.stream.enabled: only `parquet:` data can be streamed; "
            "set it to false"
        )
    ranker = run.ranker
    rows = StreamedRows(
        where,
        ranker.features,
        vectors,
        first=times.towers_until,
        end=times.test_from,
        config=ranker.training.stream,
    )
    if vectors:
        vectors.refuse_leak(np.array([rows.earliest]), "train on")
    return rows


def _print_plan(text: str) -> None:
    if is_writer():
        print(text, flush=True)


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
