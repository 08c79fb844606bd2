"""Stage 1: encode every item's text with a frozen language model.

An interrupted run resumes: its vectors are kept beside --out. With --overwrite or
--reuse DIR, only new items and items whose text changed are encoded. Ranks share the
work.
"""

import argparse
import contextlib
import functools
import logging
import operator
import time
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import torch.distributed as dist

from learn_torchrec.arrays import Int64Array, UInt64Array
from learn_torchrec.artifact import verify
from learn_torchrec.content import extract, store
from learn_torchrec.content.space import SpaceKeeper
from learn_torchrec.content.store import ContentStore
from learn_torchrec.content.vector_cache import (
    ENCODER_FACT,
    VectorCache,
    earlier_store,
    remove_damaged_blocks,
)
from learn_torchrec.errors import UserError
from learn_torchrec.schema import ITEM_ID, ITEMS_FILE
from learn_torchrec.spaces import SPACE
from learn_torchrec.training.distributed import (
    gather_objects,
    is_writer,
    on_rank0,
    raise_on_all_ranks,
    rank_share,
    write_artifact_on_all_ranks,
)

from .common import options, program
from .common.job import Job, describe

logger = logging.getLogger(__name__)

_VISIBLE_SECONDS = 60.0  # for files of another host to appear on a shared file system


def build_parser() -> argparse.ArgumentParser:
    """Return the app's options."""
    parser = options.parser("encode-content", __doc__)
    options.add_data(parser)
    options.add_output(parser, "the content store")
    parser.add_argument(
        "--reuse",
        type=program.local_path,
        metavar="DIR",
        help="an earlier content store; its vectors of unchanged texts are reused",
    )
    return parser


def plan(args: argparse.Namespace) -> Job:
    """Return what the app would make."""
    run = options.resolve(args, sections=("content",))
    inputs = {
        ITEMS_FILE: options.dataset(args).fingerprint(ITEMS_FILE),
        "encoder": extract.encoder_fingerprint(run.content),
    }
    return describe(args, store.KIND, ("content",), inputs, run=run)


def main(argv: Sequence[str] | None = None) -> None:
    """Write a content store for the items of a data set; ranks share the work."""
    args = build_parser().parse_args(argv)
    job = plan(args)
    job.make_on_all_ranks(lambda device: _encode(args, job))


def _encode(args: argparse.Namespace, job: Job) -> None:
    config = job.run.content
    encoder = extract.encoder_identity(config)
    dataset = options.dataset(args)
    items, source = dataset.items, dataset.name(ITEMS_FILE)
    with raise_on_all_ranks():
        job.refuse_changed_data()
    partial = job.out.parent / f".{job.out.name}.{encoder[:12]}.partial"
    on_rank0(lambda: remove_damaged_blocks(partial))
    earlier = _earlier(args, encoder)
    cache = VectorCache(partial, earlier)
    keeper = SpaceKeeper(config, earlier, partial)
    part = rank_share(items.num_rows)
    mine = extract.text_hashes(
        items.slice(part.start, part.stop - part.start), config, source
    )
    hashes = np.concatenate(gather_objects(mine))
    has_text = extract.have_text(hashes)
    textless = items[ITEM_ID].filter(pa.array(~has_text))
    dataset.tolerance.without_text(source, textless, items.num_rows)
    items, hashes = items.filter(pa.array(has_text)), hashes[has_text]
    ids = store.checked_ids(items[ITEM_ID])
    mine = hashes[rank_share(len(hashes))]
    # Rank 0 decides: some file systems list directories late.
    rows, missing = on_rank0(lambda: extract.rows_to_encode(hashes, cache))
    my_rows = rows[dist.get_rank() :: dist.get_world_size()]
    encoder_facts = extract.encode(
        *(items, my_rows, hashes, config, cache),
        shown=is_writer(),
        on_encoder=keeper.meet if is_writer() else None,
    )
    all_encoder_facts = gather_objects(encoder_facts)  # all ranks have encoded
    with raise_on_all_ranks():
        positions = _positions(mine, cache)
    dim = max(gather_objects(cache.dim or 0))
    facts = extract.describe(items, config) | {ENCODER_FACT: encoder, "dim": dim}
    with write_artifact_on_all_ranks(job.out, **job.manifest(None, facts)) as working:
        moments = store.write_shard(
            working,
            dist.get_rank(),
            lambda asked: cache.gather(positions[asked]),
            mine,
            dim,
        )
        parts = gather_objects(moments)
        if is_writer():
            facts["encoded"] = missing
            for encoder_facts in all_encoder_facts:
                facts.update(encoder_facts)
            total = functools.reduce(operator.add, parts)
            facts["text_hash"] = store.finish_content_store(working, ids, total)
            facts[SPACE] = keeper.finish(working)
    if is_writer():
        cache.remove()


def _positions(hashes: UInt64Array, cache: VectorCache) -> Int64Array:
    """Find the vectors of some texts, waiting for files that other ranks wrote.

    Raises:
        UserError: the files of another rank are not visible after a minute.
    """
    end = time.monotonic() + _VISIBLE_SECONDS
    while True:
        cache.reload()
        positions = cache.find(hashes)
        if (positions >= 0).all():
            return positions
        if time.monotonic() > end:
            raise UserError(
                f"{cache.directory}: files of other ranks are not visible; put --out "
                "on a file system that all hosts share"
            )
        time.sleep(1)


def _earlier(args: argparse.Namespace, encoder: str) -> ContentStore | None:
    """Return the store whose vectors may be reused, if there is one, verified.

    Raises:
        UserError: --reuse names no store of the same encoder, or a damaged one.
    """
    if args.reuse is not None:
        earlier = earlier_store(args.reuse, encoder)
        on_rank0(lambda: verify(args.reuse, store.KIND))
        return earlier
    # Otherwise the store that is about to be replaced, if the same encoder made it.
    with contextlib.suppress(UserError):
        earlier = earlier_store(args.out, encoder)
        try:
            on_rank0(lambda: verify(args.out, store.KIND))
        except UserError as error:
            logger.warning("%s; its vectors are not reused", error)
            return None
        return earlier
    return None


if __name__ == "__main__":
    options.run(main)
