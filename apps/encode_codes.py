"""Content vectors to codes: features from frozen content that a table can look up.

Residual k-means (FAISS) over the content store. With --codebook, that of earlier codes
is used as it is: new items get codes, and items with unchanged content keep theirs.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from learn_torchrec import config
from learn_torchrec.artifact import read_manifest
from learn_torchrec.content import store as content
from learn_torchrec.content.codebook import fit_codebook
from learn_torchrec.content.codes import (
    KIND,
    ContentCodes,
    codes_table,
    content_space,
    describe_codes,
    open_codebook,
    refuse_other_space,
    write_codes,
)
from learn_torchrec.errors import UserError
from learn_torchrec.presets import Run
from learn_torchrec.publish import write_artifact

from .common import options
from .common.job import Job, describe


def build_parser() -> argparse.ArgumentParser:
    """Return the app's options."""
    parser = options.parser("encode-codes", __doc__)
    options.add_input(parser, "--content", "content store of the items")
    options.add_input(
        parser,
        "--codebook",
        "earlier codes; their codebook is used, and nothing is fitted",
        required=False,
    )
    options.add_output(parser, "the codes")
    return parser


def plan(args: argparse.Namespace) -> Job:
    """Return what the app would make."""
    run = options.resolve(args, ("codes",))
    artefacts = {"content": (args.content, content.KIND)}
    if args.codebook:
        _refuse_other_settings(args.codebook, run)
        artefacts["codebook"] = (args.codebook, KIND)
    return describe(args, KIND, ("codes",), {}, artefacts, run)


def main(argv: Sequence[str] | None = None) -> None:
    """Write the codes of a content store's items."""
    args = build_parser().parse_args(argv)
    job = plan(args)
    job.make(lambda: _encode(args, job))


def _encode(args: argparse.Namespace, job: Job) -> None:
    store = content.ContentStore.open(args.content)
    facts: dict[str, Any] = {"space": content_space(store)}
    with write_artifact(job.out, **job.manifest(None, facts)) as out:
        if args.codebook:
            refuse_other_space(store, read_manifest(args.codebook, KIND), args.codebook)
            codebook = open_codebook(args.codebook)
        else:
            codebook = fit_codebook(store, job.run.codes)
        codes, left = codebook.encode(store.vectors)
        facts |= describe_codes(codes, left, codebook.centroids.shape[1])
        if args.codebook:
            facts |= ContentCodes.open(args.codebook).changes(store.index, codes)
        write_codes(out, codebook, store.index, codes)
    print(codes_table(facts))


def _refuse_other_settings(codebook: Path, run: Run) -> None:
    """Refuse settings that a finished codebook cannot follow."""
    made = read_manifest(codebook, KIND).config["codes"]
    for name, value in config.to_dict(run.codes).items():
        if value != made[name]:
            raise UserError(
                f"codes.{name}: is {value}, but --codebook {codebook} was fitted with "
                f"{made[name]}; leave out one of them"
            )


if __name__ == "__main__":
    options.run(main)
