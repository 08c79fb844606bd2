"""Serving: a trained ranker -> a bundle that needs no training code.

A bundle holds the quantized tables, the dense part as a program, and what the ranker
reads beside a request: catalogue columns, past counts, content, vectors and histories,
as of the end of the log.
"""

import argparse
from collections.abc import Sequence
from typing import Any

import torch

from learn_torchrec.artifact import read_manifest
from learn_torchrec.datasets.adapters.base import Dataset
from learn_torchrec.provenance import refuse_other_inputs
from learn_torchrec.publish import write_artifact
from learn_torchrec.ranker.build import KIND_RANKER, build_ranker, load_ranker
from learn_torchrec.ranker.features.lookups import open_lookups
from learn_torchrec.serving.bundle import Surroundings, Weights
from learn_torchrec.serving.fixed_rows import latest_impressions
from learn_torchrec.serving.served import KIND, PROGRAM_FILE, refuse_unsupported
from learn_torchrec.training.distributed import process_group

from . import options
from .job import Job, describe
from .learn_inputs import (
    add_codes,
    codebook_input,
    codes_artefact,
    open_codes,
    open_learn,
    ranker_tables,
    towers_input,
    vector_artefacts,
)
from .predict import ranker_config


def build_parser() -> argparse.ArgumentParser:
    """Return the app's options."""
    parser = options.parser("export-bundle", __doc__)
    options.add_data(parser)
    options.add_input(parser, "--ranker", "trained ranker")
    options.add_input(parser, "--vectors", "LEARN's vectors", required=False)
    options.add_input(parser, "--content", "content instead", required=False)
    add_codes(parser)
    options.add_output(parser, "the bundle")
    parser.add_argument(
        "--precision",
        choices=("int8", "half", "float"),
        default="int8",
        help="of the ID tables",
    )
    parser.add_argument(
        "--rows",
        type=int,
        default=1000,
        metavar="N",
        help="impressions, the latest, on which scores are compared",
    )
    return parser


def plan(args: argparse.Namespace) -> Job:
    """Return what the app would make."""
    dataset = options.dataset(args)
    ranker = ranker_config(args.ranker, read_manifest(args.ranker, KIND_RANKER))
    refuse_unsupported(ranker.features, args.ranker)
    inputs = dataset.fingerprints(*ranker_tables(dataset, ranker, open_codes(args)))
    inputs |= towers_input(args) | codebook_input(args)
    inputs |= {"precision": args.precision}
    artefacts = {"ranker": (args.ranker, KIND_RANKER), **vector_artefacts(args)}
    artefacts |= codes_artefact(args)
    return describe(args, KIND, ("split",), inputs, artefacts)


def main(argv: Sequence[str] | None = None) -> None:
    """Export a ranker; one process."""
    args = build_parser().parse_args(argv)
    job = plan(args)
    if job.is_done():
        return
    surroundings = read_surroundings(args, job)
    manifest = read_manifest(args.ranker, KIND_RANKER)
    facts: dict[str, Any] = {"as_of": surroundings.as_of}
    with process_group() as device:
        learn, config = surroundings.learn, surroundings.config
        model = build_ranker(config, learn.shape if learn else None, device)
        load_ranker(model, args.ranker)
        weights = Weights.of(model, config, learn)
        with write_artifact(job.out, **job.manifest(manifest.cutoff, facts)) as working:
            served = surroundings.served(weights.groups, args.precision)
            served.write(working, surroundings.context())
            surroundings.write(working)
            weights.write_tables(working, args.precision)
            names = surroundings.context().names
            rows = latest_impressions(
                surroundings.dataset, names, args.rows, surroundings.as_of
            )
            program = weights.export(surroundings, served, rows)
            torch.export.save(program, working / PROGRAM_FILE)


def read_surroundings(args: argparse.Namespace, job: Job) -> Surroundings:
    """Read what the ranker reads beside a request.

    Raises:
        UserError: inputs other than those of the ranker's training.
    """
    dataset = options.dataset(args)
    manifest = read_manifest(args.ranker, KIND_RANKER)
    config = ranker_config(args.ranker, manifest)
    actions = tuple(manifest.config["split"]["actions"])
    options_of = {"towers": "vectors", "content": "content", "codebook": "codes"}
    refuse_other_inputs(manifest, args.ranker, job.inputs, options_of)
    learn = open_learn(args, dataset, config, actions)
    codes = open_codes(args)
    return Surroundings(
        dataset=dataset,
        config=config,
        actions=actions,
        learn=None if config.learn.form == "off" else learn,
        lookups=open_lookups(dataset, config.features, config.tasks, actions, codes),
        codes=codes,
        as_of=_after(dataset),
    )


def _after(dataset: Dataset) -> int:
    """Return the first second after all that the data holds."""
    times = (dataset.times, dataset.impression_times)
    return max(int(each.max(initial=0)) for each in times) + 1


if __name__ == "__main__":
    options.run(main)
