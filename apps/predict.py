"""Stage 3, inference: score the impressions from split.test_from on, as Parquet."""

import argparse
import contextlib
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch.distributed as dist
from numpy.typing import NDArray

from apps import options
from apps.job import Job, describe
from apps.learn_inputs import open_vectors, towers_input, vector_artefacts
from learn_torchrec import config
from learn_torchrec.artifact import Manifest, read_manifest
from learn_torchrec.datasets import open_dataset
from learn_torchrec.datasets.adapters.base import Dataset
from learn_torchrec.datasets.loading.loader import Loader, LoaderConfig, evaluation
from learn_torchrec.datasets.loading.prefetch import read_ahead
from learn_torchrec.datasets.loading.row_groups import ROW_NUMBER, RowSource
from learn_torchrec.datasets.loading.tables import REQUIRED, check
from learn_torchrec.datasets.split import resolve_times
from learn_torchrec.errors import UserError
from learn_torchrec.evaluation.activity import CohortActivity
from learn_torchrec.evaluation.predictions import KIND_PREDICTIONS
from learn_torchrec.presets import Run
from learn_torchrec.ranker.build import KIND_RANKER, build_ranker, load_ranker
from learn_torchrec.ranker.config import RankerConfig
from learn_torchrec.ranker.prepare import prepare_rows
from learn_torchrec.ranker.rows import FeaturesConfig, RankingRows, RowsReport
from learn_torchrec.ranker.scoring import scorer
from learn_torchrec.ranker.vectors import LearnVectors
from learn_torchrec.schema import (
    IMPRESSIONS_FILE,
    INTERACTIONS_FILE,
    ITEM_ACTIVITY,
    ITEM_ID,
    PREDICTIONS_FILE,
    SCORE,
    USER_ACTIVITY,
    USER_ID,
)
from learn_torchrec.training.distributed import (
    is_writer,
    locked_on_rank0,
    process_group,
    raise_on_all_ranks,
    write_artifact_on_all_ranks,
)
from learn_torchrec.training.run_log import RunLog

_PART_ROWS = 131_072  # of a rank: read, scored and written together
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
    inputs |= towers_input(args)
    return describe(args, KIND_PREDICTIONS, ("split", "cohorts"), inputs, artefacts)


def main(argv: Sequence[str] | None = None) -> None:
    """Score every test impression once; each rank reads and writes its share."""
    args = build_parser().parse_args(argv)
    job = plan(args)
    if job.is_done():
        return
    dataset = open_dataset(args.data)
    manifest = read_manifest(args.ranker, KIND_RANKER)
    ranker = config.from_dict(RankerConfig, manifest.config["ranker"], args.ranker)
    vectors = open_vectors(args, dataset, job.run)
    _check_vectors(manifest, job.inputs, args.ranker)
    times = resolve_times(job.run.split, dataset.times)
    impressions = dataset.impressions_from(times.test_from)
    _check_times(impressions, times.test_from, manifest)
    if vectors:
        vectors.refuse_leak(np.array([impressions.earliest]), "score")
    activity = cohort_activity(dataset, job.run)
    with (
        process_group() as device,
        locked_on_rank0(job.out),
        RunLog(job.out) as log,
    ):
        model = build_ranker(ranker, vectors.dim if vectors else None, device)
        load_ranker(model, args.ranker)
        share = Share(impressions, ranker.features, vectors, activity)
        facts: dict[str, Any] = {}
        with (
            write_artifact_on_all_ranks(
                job.out, **job.manifest(manifest.cutoff, facts)
            ) as working,
            scorer(model, ranker.training.batch_size, device) as scores,
            _part_writer(working) as write,
        ):
            parts = iter(share)
            for done in range(share.parts):
                with raise_on_all_ranks():
                    rows, table = next(parts)
                found = scores(rows, share.width).numpy()[: table.num_rows]
                with raise_on_all_ranks():
                    _refuse_non_finite(found, table, args.ranker)
                    write(table.append_column(SCORE, pa.array(found)))
                log.progress(done + 1, share.parts)
            report = share.report.of_all_ranks()
            facts |= report.facts()
        if is_writer():
            report.log()


class Share:
    """This rank's part of the impressions to score, in their order, a part at a time.

    Args:
        impressions: of all ranks.
        features: of the ranker.
        vectors: LEARN's, None with LEARN off.
        activity: of the impressions' users and items.

    Attributes:
        parts: how many there are, the same on every rank.
        width: rows of the largest part of any rank.
        report: of what has been read.
    """

    def __init__(
        self,
        impressions: RowSource,
        features: FeaturesConfig,
        vectors: LearnVectors | None,
        activity: CohortActivity,
    ) -> None:
        self._impressions, self._activity = impressions, activity
        self._features, self._vectors = features, vectors
        ranks = dist.get_world_size()
        longest = -(-impressions.num_rows // ranks)
        # Parts of one width: the last one is scored as if it were full.
        self.width = -(-longest // -(-longest // _PART_ROWS))
        # A lane is a run of rows in their order, so one lane is one rank's share.
        self._loader = Loader(
            impressions,
            evaluation(LoaderConfig(batch_size=self.width * ranks, lanes=ranks)),
            rank=dist.get_rank(),
            ranks=ranks,
        )
        self.parts = self._loader.steps
        self.report = RowsReport(rows=0, missing={}, left_out={})

    def __iter__(self) -> Iterator[tuple[RankingRows, pa.Table]]:
        """Yield rows to score and the table to write: of a rank without rows, none.

        A thread prepares the next.

        Raises:
            UserError: impressions that cannot be read or do not fit the ranker.
        """
        for rows, table in read_ahead(self._prepared(), depth=1):
            if table.num_rows:
                self.report += rows.report()
            yield rows, table

    def _prepared(self) -> Generator[tuple[RankingRows, pa.Table]]:
        for part in self._loader.batches(epoch=0):
            # A rank without rows takes part with one that another rank writes.
            some = part if part.num_rows else self._first_row()
            name = self._impressions.name
            checked = check(some, REQUIRED[IMPRESSIONS_FILE], name)
            rows = prepare_rows(checked, self._features, self._vectors, name)
            table = _passed_through(checked.drop_columns([ROW_NUMBER]))
            yield rows, self._activity.added_to(table).slice(0, part.num_rows)

    def _first_row(self) -> pa.Table:
        return next(self._impressions.pieces(0)).slice(0, 1)


@contextlib.contextmanager
def _part_writer(working: Path) -> Iterator[Callable[[pa.Table], None]]:
    """Yield what writes tables to this rank's file of the predictions."""
    directory = working / PREDICTIONS_FILE
    directory.mkdir(exist_ok=True)
    path = directory / f"part-{dist.get_rank():05d}.parquet"
    with contextlib.ExitStack() as stack:
        writer: pq.ParquetWriter | None = None

        def write(table: pa.Table) -> None:
            nonlocal writer
            if writer is None:
                writer = stack.enter_context(pq.ParquetWriter(path, table.schema))
            writer.write_table(table)

        yield write


def _check_vectors(manifest: Manifest, given: Mapping[str, str], ranker: Path) -> None:
    """Refuse vectors of other towers, or content, than the ranker was trained with."""
    # A ranker of an earlier version knows its vectors, but not their towers.
    old = "vectors" in manifest.inputs and "towers" not in manifest.inputs
    towers = "vectors" if old else "towers"
    for role, name in ((towers, "vectors"), ("content", "content")):
        trained_with = manifest.inputs.get(role)
        if trained_with and role not in given:
            raise UserError(f"{ranker}: was trained with {name}; add --{name}")
        if role in given and not trained_with:
            raise UserError(f"{ranker}: was trained without {name}; leave out --{name}")
        if trained_with and given[role] != trained_with:
            raise UserError(
                f"{ranker}: was trained with other {role} than those behind --{name}; "
                "name those of its run"
            )


def _check_times(impressions: RowSource, test_from: int, manifest: Manifest) -> None:
    if impressions.earliest is None:
        raise UserError(
            f"{impressions.name}: no impression at or after split.test_from "
            f"({test_from}, unix seconds); move it earlier"
        )
    if manifest.cutoff is not None and test_from < manifest.cutoff:
        raise UserError(
            f"leak: the ranker learned from impressions up to {manifest.cutoff}, but "
            f"those to score start at {test_from} (unix seconds); use a later "
            "split.test_from, or train the ranker on an earlier one"
        )


def _refuse_non_finite(
    scores: NDArray[np.float32], table: pa.Table, ranker: Path
) -> None:
    bad = np.flatnonzero(~np.isfinite(scores))
    if len(bad):
        user, item = (table[name][int(bad[0])].as_py() for name in (USER_ID, ITEM_ID))
        raise UserError(
            f"{ranker}: scores {len(bad)} impressions with {scores[bad[0]]}, the first "
            f"for user {user!r} and item {item!r}; train the ranker again with a lower "
            "learning rate"
        )


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


def cohort_activity(dataset: Dataset, run: Run) -> CohortActivity:
    """Return what decides the cohorts, as the configuration counts it."""
    return CohortActivity(
        dataset.interactions, run.split.actions, run.cohorts.window_days
    )


if __name__ == "__main__":
    options.run(main)
