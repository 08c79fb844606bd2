"""Stage 3, inference: score the impressions from split.test_from on, into Parquet.

Impressions need no labels. With the split of the ranker's training, those from the
moment on until which it learned are scored, however far the log has grown.
"""

import argparse
import contextlib
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence, Set
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.distributed as dist

from learn_torchrec import config
from learn_torchrec.arrays import Float32Array
from learn_torchrec.artifact import Manifest, read_manifest
from learn_torchrec.datasets.adapters.base import Dataset
from learn_torchrec.datasets.loading.prefetch import prefetch
from learn_torchrec.datasets.loading.row_groups import RowSource
from learn_torchrec.datasets.split import moment
from learn_torchrec.errors import UserError
from learn_torchrec.evaluation.activity import CohortActivity
from learn_torchrec.evaluation.tasks import KIND_PREDICTIONS
from learn_torchrec.page_checksums import WRITTEN
from learn_torchrec.presets import Run
from learn_torchrec.provenance import (
    refuse_leak,
    refuse_other_inputs,
    refuse_vectors_leak,
)
from learn_torchrec.ranker.build import KIND_RANKER, build_ranker, load_ranker
from learn_torchrec.ranker.config import RankerConfig
from learn_torchrec.ranker.features.lookups import open_lookups
from learn_torchrec.ranker.impressions import Impressions, Part, Parts
from learn_torchrec.ranker.scoring import scorer
from learn_torchrec.ranker.tasks import describe_tasks
from learn_torchrec.refusals import naming
from learn_torchrec.schema import (
    ITEM_ACTIVITY,
    ITEM_ID,
    PREDICTIONS_FILE,
    USER_ACTIVITY,
    USER_ID,
)
from learn_torchrec.spaces import refuse_other_space, space_of
from learn_torchrec.training.distributed import (
    is_writer,
    raise_on_all_ranks,
    write_artifact_on_all_ranks,
)
from learn_torchrec.training.run_log import RunLog

from .common import options
from .common.job import Job, describe
from .common.learn_inputs import (
    add_scoring_inputs,
    codebook_input,
    codes_artefact,
    learn_space,
    open_codes,
    open_learn,
    ranker_tables,
    towers_input,
    vector_artefacts,
)

_PART_ROWS = 131_072  # of a rank: read, scored and written together
_LISTS = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)


def build_parser() -> argparse.ArgumentParser:
    """Return the app's options."""
    parser = options.parser("predict", __doc__)
    add_scoring_inputs(parser)
    options.add_output(parser, "the predictions")
    return parser


def plan(args: argparse.Namespace) -> Job:
    """Return what the app would make."""
    dataset = options.dataset(args)
    ranker = ranker_config(args.ranker, read_manifest(args.ranker, KIND_RANKER))
    inputs = dataset.fingerprints(*ranker_tables(dataset, ranker, open_codes(args)))
    artefacts = {"ranker": (args.ranker, KIND_RANKER), **vector_artefacts(args)}
    artefacts |= codes_artefact(args)
    inputs |= towers_input(args) | codebook_input(args)
    return describe(args, KIND_PREDICTIONS, ("split", "cohorts"), inputs, artefacts)


def main(argv: Sequence[str] | None = None) -> None:
    """Score every test impression once; each rank reads and writes its share."""
    args = build_parser().parse_args(argv)
    job = plan(args)
    job.make_on_all_ranks(lambda device: _score(args, job, device))


def _score(args: argparse.Namespace, job: Job, device: torch.device) -> None:
    dataset = options.dataset(args)
    manifest = read_manifest(args.ranker, KIND_RANKER)
    ranker = ranker_config(args.ranker, manifest)
    actions = manifest.config["split"]["actions"]
    learn = open_learn(args, dataset, ranker, actions)
    options_of = {"towers": "vectors", "content": "content", "codebook": "codes"}
    refuse_other_inputs(manifest, args.ranker, job.inputs, options_of)
    refuse_other_space(
        space_of(manifest),
        learn_space(args, ranker),
        f"the vectors given, and those that {args.ranker} was trained on,",
        "export them with --earlier and the vectors of its training",
    )
    first = _first_to_score(dataset, job.run, manifest)
    source = dataset.impressions_between(first)
    _check_times(source, first, manifest)
    if learn and learn.vectors:
        refuse_vectors_leak(learn.vectors.manifest, source.earliest, "score")
    lookups = open_lookups(
        dataset, ranker.features, ranker.tasks, actions, open_codes(args)
    )
    impressions = Impressions(source, ranker, learn, lookups)
    activity = cohort_activity(dataset, job.run)
    with raise_on_all_ranks():  # all have read the log
        job.refuse_changed_data()
    # As many rows as in training, where the global batch is shared.
    batch_size = max(1, ranker.training.batch_size // dist.get_world_size())
    with RunLog(job.out) as log:
        model = build_ranker(ranker, learn.shape if learn else None, device)
        load_ranker(model, args.ranker)
        parts = impressions.parts(_PART_ROWS)
        facts: dict[str, Any] = {"tasks": describe_tasks(ranker.tasks)}
        with (
            write_artifact_on_all_ranks(
                job.out, **job.manifest(manifest.cutoff, facts)
            ) as working,
            scorer(model, impressions, batch_size, device) as score,
            _part_writer(working) as write,
        ):
            remaining = prefetch(_with_activity(parts, activity), depth=1)
            for done in range(parts.count):
                with raise_on_all_ranks():
                    part = next(remaining)
                scores = score(part.rows, parts.padded_rows)
                with raise_on_all_ranks(), naming(job.out):
                    _refuse_non_finite(scores, part.table, args.ranker)
                    write(_with_scores(part.table, scores))
                log.progress(done + 1, parts.count)
            with raise_on_all_ranks():  # the impressions were read on the way
                job.refuse_changed_data()
            report = impressions.report_of_all_ranks()
            facts |= report.facts()
        if is_writer():
            report.log()


def ranker_config(directory: Path, manifest: Manifest) -> RankerConfig:
    """Return the settings of a trained ranker."""
    return config.from_dict(RankerConfig, manifest.config["ranker"], directory)


@contextlib.contextmanager
def _part_writer(working: Path) -> Iterator[Callable[[pa.Table], None]]:
    """Yield a function that appends tables to this rank's file of the predictions."""
    directory = working / PREDICTIONS_FILE
    directory.mkdir(exist_ok=True)
    path = directory / f"part-{dist.get_rank():05d}.parquet"
    with contextlib.ExitStack() as stack:
        writer: pq.ParquetWriter | None = None

        def write(table: pa.Table) -> None:
            nonlocal writer
            if writer is None:
                writer = pq.ParquetWriter(path, table.schema, **WRITTEN)
                stack.enter_context(writer)
            writer.write_table(table)

        yield write


def _first_to_score(dataset: Dataset, run: Run, manifest: Manifest) -> int:
    """Return split.test_from in unix seconds; that of the training if it is the same.

    It may be later than all interactions: new impressions have none after them.
    """
    trained = manifest.config.get("split", {}).get("test_from")
    if run.split.test_from == trained and manifest.cutoff is not None:
        return manifest.cutoff
    return moment("split.test_from", run.split.test_from, dataset.moments)


def _check_times(impressions: RowSource, test_from: int, manifest: Manifest) -> None:
    if impressions.earliest is None:
        raise UserError(
            f"{impressions.name}: no impression at or after split.test_from "
            f"({test_from}, unix seconds); move it earlier"
        )
    refuse_leak(
        manifest,
        "the ranker",
        test_from,
        "the impressions to score",
        "use a later split.test_from, or train the ranker on an earlier one",
    )


def _refuse_non_finite(
    scores: Mapping[str, Float32Array], table: pa.Table, ranker: Path
) -> None:
    for values in scores.values():
        bad = np.flatnonzero(~np.isfinite(values[: table.num_rows]))
        if not len(bad):
            continue
        user, item = (table[name][int(bad[0])].as_py() for name in (USER_ID, ITEM_ID))
        raise UserError(
            f"{ranker}: scores {len(bad)} impressions with {values[bad[0]]}, the first "
            f"for user {user!r} and item {item!r}; train the ranker again with a lower "
            "learning rate"
        )


def _with_activity(parts: Parts, activity: CohortActivity) -> Generator[Part]:
    """Yield parts with the activity of users and items, without list columns."""
    for part in parts:
        lists = [
            field.name
            for field in part.table.schema
            if any(is_list(field.type) for is_list in _LISTS)
        ]
        table = part.table.drop_columns(lists)
        table = _renamed(table, {USER_ACTIVITY, ITEM_ACTIVITY})
        yield replace(part, table=activity.add_to(table))


def _with_scores(table: pa.Table, scores: Mapping[str, Float32Array]) -> pa.Table:
    table = _renamed(table, set(scores))
    for name, values in scores.items():
        table = table.append_column(name, pa.array(values[: table.num_rows]))
    return table


def _renamed(table: pa.Table, added: Set[str]) -> pa.Table:
    """Prefix `input_` to the columns whose names the predictions add themselves.

    Until the name is free: the data may have an `input_score`, too.
    """
    present, names = set(table.column_names), []
    for name in table.column_names:
        free = name
        while free in added or (free != name and free in present):
            free = f"input_{free}"
        names.append(free)
    return table.rename_columns(names)


def cohort_activity(dataset: Dataset, run: Run) -> CohortActivity:
    """Return the activity that decides the cohorts, counted as configured."""
    actions, window_days = run.split.actions, run.cohorts.window_days
    counted = dataset.day_counts(actions)
    if counted is not None:
        return CohortActivity(counted.users, counted.items, window_days)
    return CohortActivity.of_log(dataset.interactions, actions, window_days)


if __name__ == "__main__":
    options.run(main)
