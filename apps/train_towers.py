"""Stage 2: train the twin towers on histories and content vectors."""

import argparse
from collections.abc import Sequence

import torch

from learn_torchrec import config
from learn_torchrec.artifact import read_manifest
from learn_torchrec.content import store as content
from learn_torchrec.datasets.histories import load_histories
from learn_torchrec.datasets.loading.tables import files_fingerprint
from learn_torchrec.datasets.split import moment
from learn_torchrec.errors import UserError
from learn_torchrec.provenance import refuse_known_holdout
from learn_torchrec.refusals import naming
from learn_torchrec.schema import INTERACTIONS_FILE
from learn_torchrec.spaces import SPACE, copy_canaries, refuse_other_space, space_of
from learn_torchrec.towers.artifact import (
    KIND_TOWERS,
    earlier_towers,
    save_towers,
    towers_space,
    trained_users,
    write_trained_users,
)
from learn_torchrec.towers.holdout import (
    recently_active,
    split_towers,
    with_share_of_users,
)
from learn_torchrec.towers.official_checkpoint import read_official_checkpoint
from learn_torchrec.towers.training import train_towers
from learn_torchrec.towers.warm_start import InitialTowers
from learn_torchrec.training.distributed import (
    is_writer,
    raise_on_all_ranks,
    write_artifact_on_all_ranks,
)

from .common import options, program
from .common.job import Job, describe
from .common.warm_start import (
    add_warm_start,
    refuse_newer,
    warm_start_artefacts,
    warm_start_inputs,
)


def build_parser() -> argparse.ArgumentParser:
    """Return the app's options."""
    parser = options.parser("train-towers", __doc__)
    options.add_data(parser)
    options.add_input(parser, "--content", "content store of the items")
    options.add_output(parser, "the trained towers")
    parser.add_argument(
        "--authors-checkpoint",
        type=program.local_path,
        metavar="FILE",
        help="start from the official model of the paper's authors (.safetensors, or a "
        "state_dict that torch.save wrote); use --preset official-amazon",
    )
    add_warm_start(parser, "earlier towers")
    parser.add_argument(
        "--other-catalogue",
        action="store_true",
        help="the towers of --warm-start read other people's log of other items, which "
        "tells nothing of this one's later events; needs towers.model.inputs=content",
    )
    return parser


def plan(args: argparse.Namespace) -> Job:
    """Return what the app would make."""
    inputs = {INTERACTIONS_FILE: options.dataset(args).fingerprint(INTERACTIONS_FILE)}
    if args.authors_checkpoint is not None:
        if args.warm_start is not None:
            raise UserError("--authors-checkpoint and --warm-start: give one of them")
        inputs["authors_checkpoint"] = files_fingerprint([args.authors_checkpoint])
    if args.other_catalogue and args.warm_start is None:
        raise UserError("--other-catalogue: needs --warm-start")
    artefacts = {"content": (args.content, content.KIND)}
    inputs |= warm_start_inputs(args)
    artefacts |= warm_start_artefacts(args, KIND_TOWERS)
    sections = ("split", "towers", "retrieval")
    job = describe(args, KIND_TOWERS, sections, inputs, artefacts)
    if args.other_catalogue and job.run.towers.model.inputs != "content":
        raise UserError(
            "--other-catalogue: ids of other items mean nothing here; add --set "
            "towers.model.inputs=content"
        )
    return job


def main(argv: Sequence[str] | None = None) -> None:
    """Train on all ranks of the job and write the towers."""
    args = build_parser().parse_args(argv)
    job = plan(args)
    job.make_on_all_ranks(lambda device: _train(args, job, device))


def _train(args: argparse.Namespace, job: Job, device: torch.device) -> None:
    split = job.run.split
    store = content.ContentStore.open(args.content)
    histories = load_histories(options.dataset(args), store, split)
    data = split_towers(histories.sequences, histories.times, split)
    training = job.run.towers.training
    data = with_share_of_users(data, training.user_share)
    if training.active_from is not None:
        option, times = "towers.training.active_from", options.dataset(args).moments
        since = moment(option, training.active_from, times)
        data = recently_active(data, since, training.replay, training.batch_size)
    initial, lineage, known = None, job.recipe[:16], None
    if args.authors_checkpoint is not None:
        initial = InitialTowers(read_official_checkpoint(args.authors_checkpoint))
    if args.warm_start is not None:
        if not args.other_catalogue:
            refuse_newer(args.warm_start, KIND_TOWERS, data.known_until)
            refuse_known_holdout(
                read_manifest(args.warm_start, KIND_TOWERS),
                args.warm_start,
                job.inputs[INTERACTIONS_FILE],
                config.to_dict(split),
                data.held_out_from,
            )
        earlier = space_of(read_manifest(args.warm_start, KIND_TOWERS))
        refuse_other_space(
            earlier,
            space_of(store.manifest),
            f"--content {args.content}: its vectors, and those of --warm-start,",
            "bring it there with align-space, or leave out --warm-start",
        )
        lineage = earlier.get("towers", lineage)
        initial = earlier_towers(args.warm_start, store, args.fresh_optimizer)
        if not args.other_catalogue:
            known = trained_users(args.warm_start)
    with job.training() as (log, checkpoints):
        trained = train_towers(
            job.run.towers,
            data,
            store,
            job.run.retrieval,
            device,
            log,
            initial,
            checkpoints,
        )
        manifest = job.manifest(data.known_until, trained.facts)
        with (
            write_artifact_on_all_ranks(job.out, **manifest) as working,
            raise_on_all_ranks(),
            naming(job.out),
        ):
            if is_writer():
                trained.facts[SPACE] = towers_space(
                    trained.state, space_of(store.manifest), lineage
                )
                save_towers(working, trained.state, store.item_ids, trained.optimizer)
                write_trained_users(working, data.train.user_ids, known)
                copy_canaries(store.directory, working)
                log.save(working)
        checkpoints.remove()


if __name__ == "__main__":
    options.run(main)
