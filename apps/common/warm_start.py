"""Options of training runs that start from an earlier run's weights."""

import argparse
from collections.abc import Mapping
from pathlib import Path

from learn_torchrec import config
from learn_torchrec.artifact import MANIFEST, read_manifest
from learn_torchrec.errors import UserError
from learn_torchrec.provenance import refuse_leak
from learn_torchrec.ranker.build import KIND_RANKER, MODEL_DIRECTORY
from learn_torchrec.ranker.config import RankerConfig
from learn_torchrec.ranker.warm_start import WarmStart
from learn_torchrec.training.optimizer_state import OPTIMIZER_DIRECTORY

from . import options
from .learn_inputs import CATALOGUE


def add_warm_start(parser: argparse.ArgumentParser, what: str) -> None:
    """Add the option that names the earlier run."""
    options.add_input(
        parser, "--warm-start", f"start from the weights of {what}", required=False
    )
    parser.add_argument(
        "--fresh-optimizer",
        action="store_true",
        help="take the weights of --warm-start alone, not its optimizer's state",
    )


def add_map(parser: argparse.ArgumentParser) -> None:
    """Add the option that renames features."""
    parser.add_argument(
        "--warm-start-map",
        nargs="+",
        action="extend",
        default=[],
        metavar="NEW=OLD",
        help="features renamed since the earlier run; NEW= trains one from scratch",
    )


def warm_start_artefacts(
    args: argparse.Namespace, kind: str
) -> dict[str, tuple[Path, str]]:
    """Return what --warm-start names, by role."""
    return {} if args.warm_start is None else {"warm_start": (args.warm_start, kind)}


def warm_start_inputs(args: argparse.Namespace) -> dict[str, str]:
    """Return what the options about --warm-start add to the inputs of a job.

    Raises:
        UserError: --warm-start is missing.
    """
    renamed = getattr(args, "warm_start_map", [])
    inputs = {}
    if renamed:
        inputs["warm_start_map"] = " ".join(sorted(renamed))
    if args.fresh_optimizer:
        inputs["fresh_optimizer"] = "true"
    if inputs and args.warm_start is None:
        option = next(iter(inputs)).replace("_", "-")
        raise UserError(f"--{option}: needs --warm-start")
    return inputs


def refuse_newer(directory: Path, kind: str, cutoff: int | None) -> None:
    """Refuse weights that learned from events this run must not know.

    Raises:
        UserError: the earlier run's cut-off lies after this one's.
    """
    refuse_leak(
        read_manifest(directory, kind),
        directory,
        cutoff,
        "the events that this run must not know",
        "start from an older one",
    )


def refuse_other_codebook(directory: Path, inputs: Mapping[str, str]) -> None:
    """Refuse tables of codes that another codebook gives another meaning.

    Raises:
        UserError: the earlier ranker and this one read codes of different codebooks.
    """
    codebooks = (read_manifest(directory, KIND_RANKER).inputs, inputs)
    earlier, now = (each.get("codebook") for each in codebooks)
    if earlier and now and earlier != now:
        raise UserError(
            f"--warm-start {directory}: was trained with codes of another codebook "
            "than --codes; run encode-codes with --codebook and the codes of its "
            "training"
        )


def earlier_ranker(args: argparse.Namespace, catalogue: str | None) -> WarmStart | None:
    """Return the ranker that --warm-start names; None without the option.

    `catalogue` is that of LEARN's vectors, see `learn_inputs.learn_catalogue`.

    Raises:
        UserError: it is no ranker, or a renaming is not NEW=OLD.
    """
    if args.warm_start is None:
        return None
    manifest = read_manifest(args.warm_start, KIND_RANKER)
    source = args.warm_start / MANIFEST
    ranker = config.from_dict(RankerConfig, manifest.config["ranker"], source)
    renamed = {}
    for entry in args.warm_start_map:
        new, separator, old = entry.partition("=")
        if not separator or not new:
            raise UserError(f"--warm-start-map {entry}: write it as NEW=OLD")
        renamed[new] = old
    state = args.warm_start / OPTIMIZER_DIRECTORY
    return WarmStart(
        args.warm_start / MODEL_DIRECTORY,
        ranker.features,
        renamed,
        None if args.fresh_optimizer or not state.is_dir() else state,
        manifest.facts.get(CATALOGUE) != catalogue,
    )
