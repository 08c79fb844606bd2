"""Stage 1: encode every item's text with a frozen language model."""

import argparse
from collections.abc import Sequence

import numpy as np

from apps import options
from apps.job import Job, describe
from learn_torchrec.content import store
from learn_torchrec.content.extract import encoder_fingerprint, extract
from learn_torchrec.datasets import open_dataset
from learn_torchrec.schema import ITEM_ID, ITEMS_FILE
from learn_torchrec.training.distributed import (
    gather_to_writer,
    process_group,
    rank_share,
    write_artifact_together,
)


def build_parser() -> argparse.ArgumentParser:
    """Return the app's options."""
    parser = options.parser("encode-content", __doc__)
    options.add_data(parser)
    options.add_output(parser, "the content store")
    return parser


def plan(args: argparse.Namespace) -> Job:
    """Return what the app would make."""
    inputs = {
        ITEMS_FILE: open_dataset(args.data).fingerprint(ITEMS_FILE),
        "encoder": encoder_fingerprint(options.resolve(args).content),
    }
    return describe(args, store.KIND, ("content",), inputs)


def main(argv: Sequence[str] | None = None) -> None:
    """Write a content store for the items of a data set; ranks share the items."""
    args = build_parser().parse_args(argv)
    job = plan(args)
    if job.is_done():
        return
    items = open_dataset(args.data).items
    with process_group():
        part, facts = extract(items, job.run.content, rank_share(items.num_rows))
        vectors = gather_to_writer(part)
        manifest = job.manifest(None, facts)
        with write_artifact_together(job.out, **manifest) as working:
            if vectors is not None:
                ids = items[ITEM_ID].combine_chunks()
                store.write_content_store(working, ids, np.concatenate(vectors))


if __name__ == "__main__":
    options.run(main)
