"""Recommend items by LEARN's vectors: for one user as a table, for all as Parquet."""

import argparse
import datetime
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from torch import Tensor

from learn_torchrec.artifact import MANIFEST, verify
from learn_torchrec.datasets.adapters.base import Dataset
from learn_torchrec.errors import UserError
from learn_torchrec.evaluation.report.terminal import align
from learn_torchrec.evaluation.topk import (
    TopItems,
    approximate_top_items,
    top_items,
    top_new_items,
)
from learn_torchrec.ids import IdIndex, as_ids
from learn_torchrec.jagged import Jagged
from learn_torchrec.outputs import replacing
from learn_torchrec.page_checksums import WRITTEN
from learn_torchrec.ranker.learn.vectors import KIND, MISSING, LearnVectors
from learn_torchrec.schema import (
    ACTION,
    INTERACTIONS_FILE,
    ITEM_ID,
    SCORE,
    TIMESTAMP,
    TITLE,
    USER_ID,
)
from learn_torchrec.serving.availability import read_available
from learn_torchrec.serving.index import KIND as KIND_INDEX
from learn_torchrec.serving.index import ItemIndex, refuse_other_vectors

from .common import options, program

RANK = "rank"
_COLUMNS = (USER_ID, RANK, ITEM_ID, SCORE)  # of the file


class Vectors(NamedTuple):
    """Vectors of a data set's users and items, those without one left out.

    Attributes:
        user_ids: [U].
        users: float32 [U, D], the latest vector of each user.
        item_ids: [I].
        items: float32 [I, D].
        actions: those that make up a history; None for all.
    """

    user_ids: pa.Array
    users: Tensor
    item_ids: pa.Array
    items: Tensor
    actions: list[str] | None


def build_parser() -> argparse.ArgumentParser:
    """Return the app's options."""
    result = program.parser("recommend", __doc__)
    options.add_data(result)
    options.add_input(result, "--vectors", "what export-vectors wrote")
    target = result.add_mutually_exclusive_group(required=True)
    target.add_argument("--user", metavar="ID", help="print this user's items")
    program.add_output_file(
        target, "write all users' items to a Parquet file", required=False
    )
    result.add_argument("--k", type=int, default=10, metavar="N", help="items per user")
    result.add_argument(
        "--filter-history",
        action="store_true",
        help="leave out the items of the user's history",
    )
    result.add_argument(
        "--available",
        type=program.local_path,
        metavar="FILE",
        help="recommend these items alone: a text file with an id a line, or Parquet "
        "with the column item_id",
    )
    result.add_argument(
        "--index",
        metavar="DIR|FACTORY",
        help="search what build-index wrote, or an approximate FAISS index made at "
        "once, e.g. HNSW32, and print its recall (default: exact search)",
    )
    result.add_argument(
        "--history",
        type=int,
        default=10,
        metavar="N",
        help="number of the user's latest events to print",
    )
    return result


def main(argv: Sequence[str] | None = None) -> None:
    """Print one user's history and recommendations, or write those of all users."""
    args = build_parser().parse_args(argv)
    for option in ("k", "history"):
        if getattr(args, option) < 1:
            raise UserError(f"--{option} {getattr(args, option)}: use 1 or more")
    if args.out is not None:
        inputs = options.paths_read(args)
        is_ours = options.parquet_of(_COLUMNS)
        program.check_output_file(args.out, "Parquet", inputs, is_ours)
    is_made = args.index is not None and (Path(args.index) / MANIFEST).exists()
    if args.index is not None and not is_made and args.filter_history:
        raise UserError(
            f"--index {args.index}: an index made at once does not filter histories; "
            "name what build-index wrote, or leave out one of the two"
        )
    dataset = options.dataset(args)
    wanted = None if args.user is None else _user_id(args.user, dataset)
    vectors = read_vectors(args.vectors, dataset, wanted)
    events = events_of(dataset, vectors.actions, wanted)
    if is_made:
        vectors, top = _search_made(args, vectors, events)
    else:
        if args.available is not None:
            vectors = _restricted(vectors, args.available)
        if args.index is None:
            top = top_of(vectors, events, args.k, args.filter_history)
        else:
            top = _search(vectors, args.k, args.index)
    if args.user is None:
        _write(args.out, vectors, top)
        print(f"{len(vectors.user_ids)} users, written to {args.out}")
        return
    titles = titles_of(dataset)
    shown = min(args.history, events.num_rows)
    print(f"user {args.user}: latest {shown} of {events.num_rows} events")
    print(_history_table(events, titles, args.history))
    how = ", without the history's" if args.filter_history else ""
    print(f"\ntop {args.k} of {len(vectors.item_ids)} items{how}")
    print(_top_table(vectors, top, titles))


def read_vectors(directory: Path, dataset: Dataset, user: pa.Array | None) -> Vectors:
    """Read a vectors artefact for a data set's items and its users, or one user.

    Raises:
        UserError: no such artefact, ids of another type, or no user or item with a
            vector.
    """
    verify(directory, KIND)
    learn = LearnVectors.open(directory)
    users = dataset.interactions[USER_ID].unique() if user is None else user
    items = dataset.items[ITEM_ID].combine_chunks()
    rows = learn.rows(users, items, None, source=str(dataset.location))
    if user is not None and rows[0][0] == MISSING:
        raise UserError(
            f"--user {user[0]}: no vector in {directory}; choose a user who had a "
            "history when the vectors were exported, or export them again"
        )
    has = [found != MISSING for found in rows]
    if not all(mask.any() for mask in has):
        raise UserError(
            f"{directory}: has no vector of any user, or of any item, in the data set; "
            "name vectors that were exported from it"
        )
    sides = (learn.users, learn.items)
    found = [
        torch.from_numpy(side.gather(known[mask])).float()
        for side, known, mask in zip(sides, rows, has, strict=True)
    ]
    actions = learn.manifest.config.get("split", {}).get("actions")
    return Vectors(
        users.filter(pa.array(has[0])),
        found[0],
        items.filter(pa.array(has[1])),
        found[1],
        actions,
    )


def _user_id(text: str, dataset: Dataset) -> pa.Array:
    """Return the user's id in the data set's type."""
    kind = dataset.interactions[USER_ID].type
    try:
        return pa.array([text]).cast(kind)
    except pa.ArrowInvalid:
        raise UserError(
            f"--user {text}: users are {kind} in {dataset.name(INTERACTIONS_FILE)}; "
            "give one of its ids"
        ) from None


def events_of(
    dataset: Dataset, actions: list[str] | None, user: pa.Array | None
) -> pa.Table:
    """Return the events that make up histories, in time order; one user's or all."""
    log = history_events(dataset.interactions, actions)
    if user is not None:
        log = log.filter(pc.equal(log[USER_ID], user[0]))
    order = np.argsort(log[TIMESTAMP].to_numpy(), kind="stable")
    return log.take(pa.array(order))


def history_events(log: pa.Table, actions: list[str] | None) -> pa.Table:
    """Return the events of some actions; None for all."""
    if actions is None:
        return log
    return log.filter(pc.is_in(log[ACTION], pa.array(actions, log[ACTION].type)))


def top_of(vectors: Vectors, events: pa.Table, k: int, is_filtered: bool) -> TopItems:
    """Return the best items of every user, at most `k`."""
    k = min(k, len(vectors.item_ids))
    if not is_filtered:
        return top_items(vectors.users, vectors.items, k)
    history = _history_rows(vectors, events)
    return top_new_items(vectors.users, vectors.items, k, history)


def _history_rows(vectors: Vectors, events: pa.Table) -> Jagged:
    """Return the rows of the items that each user met, of those with a vector."""
    owners, rows = (
        IdIndex.build(ids, name).rows_of(as_ids(events[name], name))
        for ids, name in ((vectors.user_ids, USER_ID), (vectors.item_ids, ITEM_ID))
    )
    is_known = (owners != MISSING) & (rows != MISSING)
    owners, rows = owners[is_known], rows[is_known]
    order = np.argsort(owners, kind="stable")
    lengths = np.bincount(owners, minlength=len(vectors.user_ids))
    return Jagged.from_lengths(rows[order], lengths)


def _restricted(vectors: Vectors, available: Path) -> Vectors:
    """Return the vectors without the items that may not be recommended.

    Raises:
        UserError: a file that cannot be read, or none of its items has a vector.
    """
    ids = vectors.item_ids
    allowed = read_available(available, IdIndex.build(ids, ITEM_ID))
    return vectors._replace(
        item_ids=ids.filter(pa.array(allowed)),
        items=vectors.items[torch.from_numpy(allowed)],
    )


def _search_made(
    args: argparse.Namespace, vectors: Vectors, events: pa.Table
) -> tuple[Vectors, TopItems]:
    """Return what the index of `build-index` finds, and its items' ids."""
    verify(Path(args.index), KIND_INDEX)
    index = ItemIndex.open(Path(args.index))
    learn = LearnVectors.open(args.vectors)
    refuse_other_vectors(index, learn, f"--vectors {args.vectors}")
    vectors = vectors._replace(item_ids=index.items.index.ids)
    if args.available is not None:
        index = index.restricted(read_available(args.available, index.items.index))
    history = None
    if args.filter_history:
        met = _history_rows(vectors, events)
        history = np.split(met.values, met.offsets[1:-1])
    k = min(args.k, index.num_allowed)
    print(f"{args.index}: {index.kind}, recall@100 {index.recall:.4f}")
    return vectors, index.search(vectors.users.numpy(), k, history)


def _search(vectors: Vectors, k: int, index: str) -> TopItems:
    """Return the items that an approximate index finds, and print its recall."""
    k = min(k, len(vectors.item_ids))
    found = approximate_top_items(vectors.users, vectors.items, k, index)
    print(f"{index}: recall {found.recall:.4f}, of {found.recall_users} users")
    return found.top


def _write(path: Path, vectors: Vectors, top: TopItems) -> None:
    """Write a row for every user and rank: `user_id, rank, item_id, score`."""
    is_there = top.items != MISSING
    users, ranks = np.nonzero(is_there)
    columns = (
        vectors.user_ids.take(pa.array(users)),
        pa.array(ranks + 1, pa.int32()),
        vectors.item_ids.take(pa.array(top.items[is_there])),
        top.scores[is_there],
    )
    table = pa.table(dict(zip(_COLUMNS, columns, strict=True)))
    with replacing(path) as working:
        pq.write_table(table, working, **WRITTEN)


def titles_of(dataset: Dataset) -> dict[Any, str]:
    """Return the title of each item; empty without a column of titles."""
    items = dataset.items
    if TITLE not in items.column_names:
        return {}
    columns = (items[name].to_pylist() for name in (ITEM_ID, TITLE))
    return {item: str(title or "") for item, title in zip(*columns, strict=True)}


def _history_table(events: pa.Table, titles: dict[Any, str], length: int) -> str:
    lines = [["time", "action", "item", "title"]]
    for event in events.slice(max(0, events.num_rows - length)).to_pylist()[::-1]:
        time = datetime.datetime.fromtimestamp(event[TIMESTAMP], datetime.UTC)
        item = event[ITEM_ID]
        cells = [f"{time:%Y-%m-%d %H:%M}", event[ACTION], str(item)]
        lines.append([*cells, titles.get(item, "")])
    return _align(lines)


def _top_table(vectors: Vectors, top: TopItems, titles: dict[Any, str]) -> str:
    lines = [["rank", "score", "item", "title"]]
    pairs = zip(top.scores[0], top.items[0], strict=True)
    for rank, (score, row) in enumerate(pairs, start=1):
        if row != MISSING:
            item = vectors.item_ids[int(row)].as_py()
            lines.append([str(rank), f"{score:.4f}", str(item), titles.get(item, "")])
    return _align(lines)


def _align(lines: list[list[str]]) -> str:
    """Align columns, the title as the last to the left."""
    return align(lines, left=(0, 1, len(lines[0]) - 1))


if __name__ == "__main__":
    program.run(main)
