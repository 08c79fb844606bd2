"""Stage 1: encode every item's text with a frozen language model."""

import argparse
from collections.abc import Sequence

from apps import options
from apps.job import Job, describe
from learn_torchrec.artifact import write_artifact
from learn_torchrec.content import store
from learn_torchrec.content.extract import encoder_fingerprint, extract
from learn_torchrec.datasets import open_dataset
from learn_torchrec.schema import ITEM_ID, ITEMS_FILE


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
    """Write a content store for the items of a data set."""
    args = build_parser().parse_args(argv)
    job = plan(args)
    if job.is_done():
        return
    items = open_dataset(args.data).items
    vectors, facts = extract(items, job.run.content)
    with write_artifact(job.out, **job.manifest(None, facts)) as working:
        store.write_content_store(working, items[ITEM_ID].combine_chunks(), vectors)


if __name__ == "__main__":
    options.run(main)
