"""Stage 3: train the ranker; with --vectors it uses LEARN, without it is DLRM."""

import argparse
import logging
from collections.abc import Sequence

import torch

from learn_torchrec.artifact import read_manifest
from learn_torchrec.config import replace
from learn_torchrec.datasets.adapters.base import Dataset
from learn_torchrec.datasets.loading.row_groups import ROW_NUMBER, RowSource
from learn_torchrec.datasets.split import (
    SplitTimes,
    nothing_between,
    resolve_times,
    validation_from,
)
from learn_torchrec.errors import UserError, require_columns
from learn_torchrec.presets import Run
from learn_torchrec.provenance import refuse_vectors_leak
from learn_torchrec.ranker.build import KIND_RANKER, check_features, save_ranker
from learn_torchrec.ranker.config import RankerConfig
from learn_torchrec.ranker.encode import columns_of
from learn_torchrec.ranker.features.codes import CodeColumns
from learn_torchrec.ranker.features.lookups import find_columns, open_lookups
from learn_torchrec.ranker.impressions import Impressions
from learn_torchrec.ranker.labels import refuse_one_class
from learn_torchrec.ranker.leaks import refuse_label_copies
from learn_torchrec.ranker.learn.inputs import LearnInputs
from learn_torchrec.ranker.probe import write_probe
from learn_torchrec.ranker.tasks import label_columns
from learn_torchrec.ranker.training import train_ranker
from learn_torchrec.ranker.validation import HeldOut
from learn_torchrec.refusals import naming
from learn_torchrec.schema import IMPRESSIONS_FILE, SAMPLING_RATE, WEIGHT
from learn_torchrec.spaces import SPACE, refuse_other_space, space_of
from learn_torchrec.training.distributed import (
    is_writer,
    raise_on_all_ranks,
    write_artifact_on_all_ranks,
)
from learn_torchrec.training.optimizer_state import save_optimizer

from .common import options
from .common.job import Job, describe
from .common.learn_inputs import (
    CATALOGUE,
    add_codes,
    codebook_input,
    codes_artefact,
    learn_catalogue,
    learn_space,
    open_codes,
    open_learn,
    ranker_tables,
    towers_input,
    vector_artefacts,
)
from .common.warm_start import (
    add_map,
    add_warm_start,
    earlier_ranker,
    refuse_newer,
    refuse_other_codebook,
    warm_start_artefacts,
    warm_start_inputs,
)

_SECTIONS = ("split", "ranker")

logger = logging.getLogger(__name__)


def build_parser() -> argparse.ArgumentParser:
    """Return the app's options."""
    parser = options.parser("train-ranker", __doc__)
    options.add_data(parser)
    options.add_input(parser, "--vectors", "LEARN's vectors", required=False)
    options.add_input(
        parser,
        "--content",
        "content instead: LEARN without towers",
        required=False,
    )
    add_codes(parser)
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
    dataset = options.dataset(args)
    run = options.resolve(args, _SECTIONS)
    codes = open_codes(args)
    run = _with_codes(run, codes)
    inputs = dataset.fingerprints(*ranker_tables(dataset, run.ranker, codes))
    artefacts = vector_artefacts(args) | codes_artefact(args)
    artefacts |= warm_start_artefacts(args, KIND_RANKER)
    inputs |= warm_start_inputs(args) | towers_input(args) | codebook_input(args)
    return describe(args, KIND_RANKER, _SECTIONS, inputs, artefacts, run)


def main(argv: Sequence[str] | None = None) -> None:
    """Train on the impressions from split.towers_until to split.test_from."""
    args = build_parser().parse_args(argv)
    job = plan(args)
    job.make_on_all_ranks(lambda device: _train(args, job, device))


def _train(args: argparse.Namespace, job: Job, device: torch.device) -> None:
    check_features(job.run.ranker, device)  # before anything is read
    dataset = options.dataset(args)
    times = resolve_times(job.run.split, dataset.moments)
    actions = job.run.split.actions
    learn = open_learn(args, dataset, job.run.ranker, actions)
    codes = open_codes(args)
    ranker = job.run.ranker
    impressions = training_impressions(dataset, ranker, times, learn, actions, codes)
    held_out = hold_out(dataset, ranker, times, impressions, codes)
    catalogue = learn_catalogue(args)
    earlier = earlier_ranker(args, catalogue)
    space_now = learn_space(args, ranker)
    if earlier is not None:
        refuse_newer(args.warm_start, KIND_RANKER, times.test_from)
        refuse_other_codebook(args.warm_start, job.inputs)
        refuse_other_space(
            space_of(read_manifest(args.warm_start, KIND_RANKER)),
            space_now,
            "the vectors given, and those that --warm-start was trained on,",
            "export them with --earlier and from towers with --warm-start, or start "
            "another ranker",
        )
    on_plan = _print_plan if args.print_sharding_plan else None
    with job.training() as (log, checkpoints):
        trained = train_ranker(
            *(job.run.ranker, impressions, device, log),
            *(on_plan, checkpoints, earlier, held_out),
        )
        facts = trained.facts | {SPACE: space_now, CATALOGUE: catalogue}
        if ranker.training.stream.enabled:  # it was read until now
            with raise_on_all_ranks():
                job.refuse_changed_data()
        manifest = job.manifest(times.test_from, facts)
        with write_artifact_on_all_ranks(job.out, **manifest) as working:
            save_ranker(trained.model, working)
            if ranker.training.save_optimizer:
                save_optimizer(trained.optimizer, working)
            write_probe(trained.model, impressions, ranker, device, working)
            with raise_on_all_ranks(), naming(job.out):
                if is_writer():
                    log.save(working)
        checkpoints.remove()


def training_impressions(
    dataset: Dataset,
    ranker: RankerConfig,
    times: SplitTimes,
    learn: LearnInputs | None,
    actions: Sequence[str],
    codes: CodeColumns | None = None,
) -> Impressions:
    """Return the impressions to train on, those in [towers_until, test_from).

    Past counts count the interactions of `actions`.

    Raises:
        UserError: there are none, they cannot be streamed, there is nothing to learn
            from their labels, or they start before the cut-off of the vectors' towers.
    """
    if ranker.training.stream.enabled and dataset.parquet(IMPRESSIONS_FILE) is None:
        raise UserError(
            "ranker.training.stream.enabled: only `parquet:` data can be streamed; "
            "set it to false"
        )
    labels = label_columns(ranker.tasks)
    source = _rows(dataset, ranker, times, codes)
    present = [name for name in source.empty().schema.names if name != ROW_NUMBER]
    require_columns(present, labels, source.name, "to score rows without, use predict")
    if source.earliest is None:
        shown = dataset.impression_moments
        raise nothing_between(source.name, times, shown, dataset.moments)
    if learn and learn.vectors:
        refuse_vectors_leak(learn.vectors.manifest, source.earliest, "train on")
    lookups = open_lookups(dataset, ranker.features, ranker.tasks, actions, codes)
    impressions = Impressions(source, ranker, learn, lookups)
    refuse_one_class(impressions)
    refuse_label_copies(impressions)
    return impressions


def _with_codes(run: Run, codes: CodeColumns | None) -> Run:
    """Return the run with the codes among the ranker's features."""
    if codes is None:
        return run
    features = codes.add_features(run.ranker.features)
    shown = (f"{f.column} ({f.table_rows:,} rows)" for f in codes.among(features))
    logger.info("ranker.features.sparse: of --codes %s", ", ".join(shown))
    return replace(run, ranker=replace(run.ranker, features=features))


def hold_out(
    dataset: Dataset,
    ranker: RankerConfig,
    times: SplitTimes,
    impressions: Impressions,
    codes: CodeColumns | None = None,
) -> HeldOut | None:
    """Cut the impressions to train on as `ranker.validation` asks; None for no cut.

    Raises:
        UserError: one side would have no row, or the validation rows only one class.
    """
    if not ranker.validation.share:
        return None
    cut = validation_from(dataset.impression_moments, times, ranker.validation.share)
    sides = (
        SplitTimes(towers_until=times.towers_until, test_from=cut),
        SplitTimes(towers_until=cut, test_from=times.test_from),
    )
    earlier, latest = (
        Impressions(
            _rows(dataset, ranker, side, codes),
            ranker,
            impressions.learn,
            impressions.lookups,
        )
        for side in sides
    )
    if not len(earlier) or not len(latest):
        raise UserError(
            f"ranker.validation.share={ranker.validation.share:g}: leaves "
            f"{len(earlier)} of {len(impressions)} rows to train on and {len(latest)} "
            "to validate on; choose another share, or 0 for no validation"
        )
    refuse_one_class(earlier)
    refuse_one_class(latest, "validate on")
    return HeldOut(earlier, latest)


def _rows(
    dataset: Dataset,
    ranker: RankerConfig,
    times: SplitTimes,
    codes: CodeColumns | None,
) -> RowSource:
    """Return the impressions in [towers_until, test_from) with the columns to read."""
    elsewhere = find_columns(dataset, ranker.features, ranker.tasks, codes).added
    return dataset.impressions_between(
        times.towers_until,
        times.test_from,
        columns=[name for name in columns_of(ranker) if name not in elsewhere],
        optional=[WEIGHT, SAMPLING_RATE],
        in_memory=not ranker.training.stream.enabled,
        labels=label_columns(ranker.tasks),
    )


def _print_plan(text: str) -> None:
    if is_writer():
        print(text, flush=True)


if __name__ == "__main__":
    options.run(main)
