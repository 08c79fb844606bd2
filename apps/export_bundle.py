"""Serving: a trained ranker -> a bundle that needs no training code.

A bundle holds the quantized tables, the dense part as a program, and what the ranker
reads beside a request: catalogue columns, past counts, content, vectors and histories,
as of the end of the log.
"""

import argparse
import dataclasses
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from learn_torchrec.artifact import read_manifest, versions
from learn_torchrec.config import to_dict
from learn_torchrec.content.reduction import REDUCTION_FILE, Reduction
from learn_torchrec.content.store import ContentStore
from learn_torchrec.datasets.adapters.base import Dataset
from learn_torchrec.provenance import refuse_other_inputs
from learn_torchrec.publish import write_artifact
from learn_torchrec.ranker.build import KIND_RANKER, build_ranker, load_ranker
from learn_torchrec.ranker.features.lookups import open_lookups
from learn_torchrec.ranker.learn.inputs import LearnInputs
from learn_torchrec.ranker.learn.reduced import CONTENT
from learn_torchrec.ranker.probe import PROBE_FILE, read_probe
from learn_torchrec.schema import IMPRESSIONS_FILE, INTERACTIONS_FILE, ITEMS_FILE
from learn_torchrec.serving.bundle import Surroundings, Weights
from learn_torchrec.serving.check import CERTIFICATE_FILE, score_rows, write_rows
from learn_torchrec.serving.parity import (
    PRECISIONS,
    Exported,
    Scores,
    Tolerances,
    certify,
    uauc_differences,
)
from learn_torchrec.serving.runner import Runner
from learn_torchrec.serving.served import (
    KIND,
    LAYOUT,
    PROGRAM_FILE,
    refuse_unsupported,
)
from learn_torchrec.spaces import SPACE, refuse_other_space, space_of
from learn_torchrec.training.distributed import process_group

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
from .predict import ranker_config

_LABELLED_ROWS = 20_000  # on which UAUC is compared
_FACTS = ("rows", "differences", "uauc", "size_ratio")  # for the manifest


def build_parser() -> argparse.ArgumentParser:
    """Return the app's options."""
    parser = options.parser("export-bundle", __doc__)
    add_scoring_inputs(parser)
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
    for name, default, what in (
        ("--max-difference", 1e-5, "difference of scores where nothing is rounded"),
        ("--max-rounded-difference", 0.02, "difference of scores of rounded tables"),
        ("--max-uauc-difference", 5e-4, "difference of UAUC of rounded tables"),
    ):
        parser.add_argument(
            name,
            type=float,
            default=default,
            metavar="NUMBER",
            help=f"largest allowed {what}",
        )
    return parser


def plan(args: argparse.Namespace) -> Job:
    """Return what the app would make."""
    dataset = options.dataset(args)
    ranker = ranker_config(args.ranker, read_manifest(args.ranker, KIND_RANKER))
    refuse_unsupported(ranker.features, args.ranker)
    inputs = dataset.fingerprints(*ranker_tables(dataset, ranker, open_codes(args)))
    inputs |= towers_input(args) | codebook_input(args)
    settings = (LAYOUT, args.precision, args.rows, *dataclasses.astuple(_kept(args)))
    inputs |= {"bundle": ", ".join(map(str, settings))}
    artefacts = {"ranker": (args.ranker, KIND_RANKER), **vector_artefacts(args)}
    artefacts |= codes_artefact(args)
    return describe(args, KIND, ("split",), inputs, artefacts)


def main(argv: Sequence[str] | None = None) -> None:
    """Export a ranker, and certify that the bundle scores as it does."""
    args = build_parser().parse_args(argv)
    job = plan(args)
    job.make(lambda: _export(args, job))


def _export(args: argparse.Namespace, job: Job) -> None:
    surroundings = read_surroundings(args, job)
    manifest = read_manifest(args.ranker, KIND_RANKER)
    facts: dict[str, Any] = {"as_of": surroundings.as_of, SPACE: space_of(manifest)}
    plans: list[str] = []
    with process_group() as device:
        learn, config = surroundings.learn, surroundings.config
        shape = learn.shape if learn else None
        model = build_ranker(config, shape, device, plans.append)
        load_ranker(model, args.ranker)
        weights = Weights.of(model, config, learn)
        with write_artifact(job.out, **job.manifest(manifest.cutoff, facts)) as working:
            served = surroundings.served(weights.groups, args.precision)
            served.write(working, surroundings.context())
            surroundings.write(working)
            weights.write_tables(working, args.precision)
            rows = surroundings.fixed_rows(args.rows)
            program = weights.export(surroundings, served, rows)
            # Given a path, PyTorch's writer aborts the process on a full disk.
            whole = io.BytesIO()
            torch.export.save(program, whole)
            (working / PROGRAM_FILE).write_bytes(whole.getbuffer())
            exported = Exported(surroundings, model, device, weights, program.module())
            runner = Runner.open(working, manifest, torch.device("cpu"))
            found = certificate(args, exported, runner, rows, working, job.inputs)
            found |= {
                "plan": plans,
                "config": {**job.config, "ranker": to_dict(config)},
                "inputs": dict(job.inputs),
                "versions": versions(),
            }
            options.write_json(working / CERTIFICATE_FILE, found)
            facts |= {name: found[name] for name in _FACTS}
    print(_summary(found))


def _kept(args: argparse.Namespace) -> Tolerances:
    return Tolerances(
        exact=args.max_difference,
        rounded=args.max_rounded_difference,
        uauc=args.max_uauc_difference,
    )


def certificate(
    args: argparse.Namespace,
    exported: Exported,
    runner: Runner,
    rows: pa.Table,
    working: Path,
    inputs: Mapping[str, str],
) -> dict[str, Any]:
    """Compare all ways to score; store the fixed rows and their scores in a bundle.

    `inputs` are the fingerprints of what the bundle is made from.

    Raises:
        UserError: a difference beyond its tolerance.
    """
    tolerances = _kept(args)
    differences, trained, served = certify(
        exported,
        rows,
        lambda table: score_rows(runner, table),
        args.precision,
        tolerances,
        _probe(args, inputs),
    )
    write_rows(working, rows, trained, served)
    labelled = exported.surroundings.labelled_rows(_LABELLED_ROWS)
    return {
        "rows": rows.num_rows,
        "as_of": exported.surroundings.as_of,
        "precision": args.precision,
        "tolerances": dataclasses.asdict(tolerances),
        "differences": differences,
        "uauc": uauc_differences(exported, labelled, args.precision, tolerances.uauc),
        "labelled_rows": labelled.num_rows,
        "size_ratio": {each: exported.size_ratio(each) for each in PRECISIONS},
    }


def _probe(
    args: argparse.Namespace, inputs: Mapping[str, str]
) -> tuple[pa.Table, Scores] | None:
    """Return the rows that training scored; None where other data are given."""
    manifest = read_manifest(args.ranker, KIND_RANKER)
    tables = (INTERACTIONS_FILE, IMPRESSIONS_FILE, ITEMS_FILE)
    is_same = all(inputs.get(name) == manifest.inputs.get(name) for name in tables)
    if not is_same or PROBE_FILE not in manifest.files:
        return None
    return read_probe(args.ranker)


def _summary(found: Mapping[str, Any]) -> str:
    exact, rounded = found["differences"]["exact"], found["differences"]["rounded"]
    shown = ", ".join(
        f"{name} {value:.1g}" for name, value in (exact | rounded).items()
    )
    lines = [f"largest difference on {found['rows']:,} rows: {shown}"]
    for task, values in found["uauc"].items():
        each = ", ".join(f"{name} {value:.4f}" for name, value in values.items())
        lines.append(f"UAUC of {task} on {found['labelled_rows']:,} rows: {each}")
    ratio = found["size_ratio"][found["precision"]]
    lines.append(f"tables: {found['precision']}, {ratio:.2f} of their size in training")
    return "\n".join(lines)


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
    refuse_other_space(
        space_of(manifest),
        learn_space(args, config),
        f"the vectors given, and those that {args.ranker} was trained on,",
        "export them with --earlier and the vectors of its training",
    )
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
        reduction=_reduction(args, learn),
    )


def _reduction(args: argparse.Namespace, learn: LearnInputs | None) -> Reduction | None:
    """Return what reduced the content; None where an artefact does not say."""
    if learn is None or learn.content is None:
        return None
    if args.content:
        dim = learn.content.vectors.shape[1]
        return Reduction.fit(ContentStore.open(args.content), dim)
    folder = args.vectors / CONTENT
    return Reduction.read(folder) if (folder / REDUCTION_FILE).exists() else None


def _after(dataset: Dataset) -> int:
    """Return the first second after all that the data holds."""
    times = (dataset.times, dataset.impression_times)
    return max(int(each.max(initial=0)) for each in times) + 1


if __name__ == "__main__":
    options.run(main)
