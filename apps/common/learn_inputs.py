"""The inputs of `train-ranker` and `predict`: tables, vectors or raw content, codes."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from learn_torchrec.artifact import read_manifest
from learn_torchrec.content.codes import KIND as KIND_CODES
from learn_torchrec.content.codes import ContentCodes, codebook_fingerprint
from learn_torchrec.content.store import KIND as KIND_CONTENT
from learn_torchrec.content.store import ContentStore
from learn_torchrec.datasets.adapters.base import Dataset
from learn_torchrec.errors import UserError
from learn_torchrec.ids import INDEX_FILES
from learn_torchrec.provenance import origin
from learn_torchrec.ranker.config import RankerConfig
from learn_torchrec.ranker.features.codes import CodeColumns
from learn_torchrec.ranker.features.lookups import find_columns
from learn_torchrec.ranker.learn.content import content_vectors, reduced_content
from learn_torchrec.ranker.learn.inputs import LearnInputs
from learn_torchrec.ranker.learn.vectors import KIND as KIND_VECTORS
from learn_torchrec.ranker.learn.vectors import LearnVectors
from learn_torchrec.schema import IMPRESSIONS_FILE, INTERACTIONS_FILE, ITEMS_FILE
from learn_torchrec.spaces import digest_of, space, space_of
from learn_torchrec.vector_table import ITEMS

from . import options

CATALOGUE = "catalogue"  # the fact of a ranker: digest of the items of its vectors


def ranker_tables(
    dataset: Dataset, ranker: RankerConfig, codes: CodeColumns | None
) -> tuple[str, ...]:
    """Return the tables that a ranker reads; items only where a feature needs them.

    Raises:
        UserError: a feature's column is in no table.
    """
    origins = find_columns(dataset, ranker.features, ranker.tasks, codes)
    items = (ITEMS_FILE,) if origins.reads_items else ()
    return (INTERACTIONS_FILE, IMPRESSIONS_FILE, *items)


def vector_artefacts(args: argparse.Namespace) -> dict[str, tuple[Path, str]]:
    """Return what --vectors or --content names, and its kind, by role.

    Raises:
        UserError: both are given.
    """
    if args.vectors and args.content:
        raise UserError("--vectors and --content: give one of them")
    if args.vectors:
        return {"vectors": (args.vectors, KIND_VECTORS)}
    if args.content:
        return {"content": (args.content, KIND_CONTENT)}
    return {}


def towers_input(args: argparse.Namespace) -> dict[str, str]:
    """Return the fingerprint of the towers behind --vectors, if it is given.

    A ranker may read vectors that the same towers made from a later log. Vectors that
    our towers did not make are identified by their own fingerprint.
    """
    if not args.vectors:
        return {}
    return {"towers": origin(read_manifest(args.vectors, KIND_VECTORS), "towers")}


def learn_space(args: argparse.Namespace, ranker: RankerConfig) -> dict[str, str]:
    """Return the space of what LEARN reads, see `spaces`; empty without anything."""
    if args.vectors:
        return space_of(read_manifest(args.vectors, KIND_VECTORS))
    if not args.content:
        return {}
    manifest = read_manifest(args.content, KIND_CONTENT)
    # The reduction is fitted on the whole store.
    reduction = manifest.fingerprint[:16] if ranker.learn.is_residual else None
    return space(space_of(manifest), reduction=reduction)


def learn_catalogue(args: argparse.Namespace) -> str | None:
    """Return a digest of the items of what LEARN reads, in their order, if any."""
    if args.vectors:
        directory, kind, folder = args.vectors, KIND_VECTORS, f"{ITEMS}/"
    elif args.content:
        directory, kind, folder = args.content, KIND_CONTENT, ""
    else:
        return None
    files = read_manifest(directory, kind).files
    return digest_of([files.get(f"{folder}{name}") for name in INDEX_FILES])


def add_scoring_inputs(parser: argparse.ArgumentParser) -> None:
    """Add the options that name a trained ranker and what it reads."""
    options.add_data(parser)
    options.add_input(parser, "--ranker", "trained ranker")
    options.add_input(parser, "--vectors", "LEARN's vectors", required=False)
    options.add_input(parser, "--content", "content instead", required=False)
    add_codes(parser)


def add_codes(parser: argparse.ArgumentParser) -> None:
    """Add the option that names codes of content vectors."""
    options.add_input(
        parser, "--codes", "codes of the items' content: ID features", required=False
    )


def codes_artefact(args: argparse.Namespace) -> dict[str, tuple[Path, str]]:
    """Return what --codes names, by role."""
    return {"codes": (args.codes, KIND_CODES)} if args.codes else {}


def codebook_input(args: argparse.Namespace) -> dict[str, str]:
    """Return the fingerprint of the codebook behind --codes, if it is given.

    A ranker may read codes of more items, if they are of the same codebook.
    """
    return {"codebook": codebook_fingerprint(args.codes)} if args.codes else {}


def open_codes(args: argparse.Namespace) -> CodeColumns | None:
    """Return the columns of --codes; None where it is not given."""
    return CodeColumns(ContentCodes.open(args.codes)) if args.codes else None


def open_learn(
    args: argparse.Namespace,
    dataset: Dataset,
    ranker: RankerConfig,
    actions: Sequence[str],
) -> LearnInputs | None:
    """Return LEARN's inputs from --vectors or --content; None without either.

    Args:
        args: parsed options.
        dataset: the data.
        ranker: that reads them.
        actions: of the events of a history.
    """
    vectors = content = None
    if args.vectors:
        vectors = LearnVectors.open(args.vectors)
        content = vectors.content
    elif args.content and ranker.learn.is_residual:
        content = reduced_content(ContentStore.open(args.content))
    elif args.content:
        store = ContentStore.open(args.content)
        vectors = content_vectors(store, dataset.sequences(store, actions))
    else:
        return None
    learn = LearnInputs(vectors, content, ranker.learn)
    return learn.read(dataset, ranker.tasks, actions)
