"""Stage 3, inference: score the impressions from split.test_from on, as Parquet."""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch.distributed as dist
from numpy.typing import NDArray

from apps import options
from apps.job import Job, describe
from apps.learn_inputs import open_vectors, vector_artefacts
from learn_torchrec import config
from learn_torchrec.artifact import Manifest, read_manifest
from learn_torchrec.datasets import open_dataset
from learn_torchrec.datasets.dataset import Dataset
from learn_torchrec.datasets.split import resolve_times
from learn_torchrec.errors import UserError
from learn_torchrec.evaluation.cohorts import activity_before_day
from learn_torchrec.evaluation.predictions import KIND_PREDICTIONS
from learn_torchrec.presets import Run
from learn_torchrec.ranker.batch import rank_rows
from learn_torchrec.ranker.build import KIND_RANKER, build_ranker, load_ranker
from learn_torchrec.ranker.config import RankerConfig
from learn_torchrec.ranker.prepare import prepare_rows
from learn_torchrec.ranker.training import score
from learn_torchrec.schema import (
    ACTION,
    IMPRESSIONS_FILE,
    INTERACTIONS_FILE,
    ITEM_ACTIVITY,
    ITEM_ID,
    PREDICTIONS_FILE,
    SCORE,
    TIMESTAMP,
    USER_ACTIVITY,
    USER_ID,
)
from learn_torchrec.training.distributed import (
    is_writer,
    locked_together,
    process_group,
    write_artifact_together,
)
from learn_torchrec.training.run_log import RunLog

_LISTS = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)


def build_parser() -> argparse.ArgumentParser:
    """Return the app's options."""
    parser = options.parser("predict", __doc__)
    options.add_data(parser)
    options.add_input(parser, "--ranker", "trained ranker")
    options.add_input(parser, "--vectors", "LEARN's vectors", required=False)
    options.add_input(parser, "--content", "raw content vectors", required=False)
    options.add_output(parser, "the predictions")
    return parser


def plan(args: argparse.Namespace) -> Job:
    """Return what the app would make."""
    dataset = open_dataset(args.data)
    inputs = dataset.fingerprints(INTERACTIONS_FILE, IMPRESSIONS_FILE)
    artefacts = {"ranker": (args.ranker, KIND_RANKER), **vector_artefacts(args)}
    return describe(args, KIND_PREDICTIONS, ("split", "cohorts"), inputs, artefacts)


def main(argv: Sequence[str] | None = None) -> None:
    """Score every test impression once; each rank writes its share."""
    args = build_parser().parse_args(argv)
    job = plan(args)
    if job.is_done():
        return
    dataset = open_dataset(args.data)
    manifest = read_manifest(args.ranker, KIND_RANKER)
    ranker = config.from_dict(RankerConfig, manifest.config["ranker"], args.ranker)
    vectors = open_vectors(args, dataset, job.run)
    _check_vectors(manifest, job.inputs, args.ranker)
    times = resolve_times(job.run.split, dataset.interactions)
    wanted = _test_rows(dataset, times.test_from, manifest)
    impressions = dataset.impressions.filter(pa.array(wanted))
    if vectors:
        vectors.refuse_leak(impressions[TIMESTAMP].to_numpy(), "score")
    rows = prepare_rows(
        dataset.impressions, ranker.features, vectors, IMPRESSIONS_FILE
    ).select(wanted)
    table = with_activity(_passed_through(impressions), dataset, job.run)
    report = rows.report()
    with (
        process_group() as device,
        locked_together(job.out),
        RunLog(job.out) as log,
    ):
        model = build_ranker(ranker, vectors.dim if vectors else None, device)
        load_ranker(model, args.ranker)
        batch_size = ranker.training.batch_size
        scores = score(model, rows, batch_size, device, log.progress)
        _refuse_non_finite(scores.numpy(), table, args.ranker)
        if is_writer():
            report.log()
        mine = table.take(pa.array(rank_rows(len(rows))))
        with write_artifact_together(
            job.out, **job.manifest(manifest.cutoff, report.facts())
        ) as working:
            directory = working / PREDICTIONS_FILE
            directory.mkdir(exist_ok=True)
            pq.write_table(
                mine.append_column(SCORE, pa.array(scores.numpy())),
                directory / f"part-{dist.get_rank():05d}.parquet",
            )


def _check_vectors(manifest: Manifest, given: Mapping[str, str], ranker: Path) -> None:
    """Refuse vectors that the ranker was not trained with."""
    for name in ("vectors", "content"):
        trained_with, option = manifest.inputs.get(name), f"--{name}"
        if trained_with and name not in given:
            raise UserError(f"{ranker}: was trained with {name}; add {option}")
        if name in given and not trained_with:
            raise UserError(f"{ranker}: was trained without {name}; leave out {option}")
        if trained_with and given[name] != trained_with:
            raise UserError(
                f"{ranker}: was trained with other {name} than {option} names; name "
                "those of its run"
            )


def _refuse_non_finite(
    scores: NDArray[np.float32], table: pa.Table, ranker: Path
) -> None:
    bad = np.flatnonzero(~np.isfinite(scores))
    if len(bad):
        row = int(rank_rows(table.num_rows)[bad[0]])
        user, item = (table[name][row].as_py() for name in (USER_ID, ITEM_ID))
        raise UserError(
            f"{ranker}: scores {len(bad)} impressions with {scores[bad[0]]}, the first "
            f"for user {user!r} and item {item!r}; train the ranker again with a lower "
            "learning rate"
        )


def _test_rows(
    dataset: Dataset, test_from: int, manifest: Manifest
) -> NDArray[np.bool_]:
    wanted = dataset.impressions[TIMESTAMP].to_numpy() >= test_from
    if not wanted.any():
        raise UserError(
            f"{IMPRESSIONS_FILE}: no impression at or after split.test_from "
            f"({test_from}, unix seconds); move it earlier"
        )
    if manifest.cutoff is not None and test_from < manifest.cutoff:
        raise UserError(
            f"leak: the ranker learned from impressions up to {manifest.cutoff}, but "
            f"those to score start at {test_from} (unix seconds); use a later "
            "split.test_from, or train the ranker on an earlier one"
        )
    return wanted


def _passed_through(impressions: pa.Table) -> pa.Table:
    """Keep what a reader of predictions wants: no lists, no name taken twice."""
    lists = [
        field.name
        for field in impressions.schema
        if any(is_list(field.type) for is_list in _LISTS)
    ]
    impressions = impressions.drop_columns(lists)
    ours = (SCORE, USER_ACTIVITY, ITEM_ACTIVITY)
    return impressions.rename_columns(
        [f"input_{name}" if name in ours else name for name in impressions.column_names]
    )


def with_activity(impressions: pa.Table, dataset: Dataset, run: Run) -> pa.Table:
    """Add the counts behind the cohorts.

    A user's activity is all their events, an item's the ones of split.actions (the
    paper: clicks, impressions and purchases of a user; purchases of an item).
    """
    events = dataset.interactions
    wanted = pc.is_in(events[ACTION], value_set=pa.array(run.split.actions))
    for name, column, log in (
        (USER_ACTIVITY, USER_ID, events),
        (ITEM_ACTIVITY, ITEM_ID, events.filter(wanted)),
    ):
        activity: np.ndarray = activity_before_day(
            log[column],
            log[TIMESTAMP],
            impressions[column],
            impressions[TIMESTAMP],
            run.cohorts.window_days,
        )
        impressions = impressions.append_column(name, pa.array(activity))
    return impressions


if __name__ == "__main__":
    options.run(main)
