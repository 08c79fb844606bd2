"""Turn item texts into vectors of the item tower at once, without a run of the stages.

Items are JSON lines, CSV or Parquet with the columns of the item table (`item_id`,
`title`, ...); `-` reads JSON lines from standard input, and --text gives one text as a
title. Vectors are written as Parquet, or as JSON lines to standard output.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.json as pajson
import pyarrow.parquet as pq

from learn_torchrec.arrays import Float32Array
from learn_torchrec.artifact import verify
from learn_torchrec.content.store import KIND as KIND_CONTENT
from learn_torchrec.errors import (
    UserError,
    first_line,
    refuse_special,
    require_columns,
)
from learn_torchrec.ids import as_ids
from learn_torchrec.outputs import replacing
from learn_torchrec.page_checksums import VERIFIED, WRITTEN
from learn_torchrec.schema import ITEM_ID, TITLE, VECTOR

from .common import options, program

STDIN = "-"


def build_parser() -> argparse.ArgumentParser:
    """Return the app's options."""
    parser = program.parser("embed-items", __doc__)
    options.add_input(parser, "--towers", "trained towers")
    options.add_input(parser, "--content", "the content store they were trained on")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--items", metavar="FILE", help=".jsonl, .csv or .parquet; - for standard input"
    )
    source.add_argument(
        "--text", action="append", metavar="TITLE", help="one item's; may be repeated"
    )
    program.add_output_file(
        parser, "Parquet for `item_id, vector` (default: JSON lines)", required=False
    )
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Write the vectors of some items, and say how long they took."""
    args = build_parser().parse_args(argv)
    if args.out is not None:
        inputs = [*options.paths_read(args), *_file_read(args)]
        is_ours = options.parquet_of([ITEM_ID, VECTOR])
        program.check_output_file(args.out, "Parquet", inputs, is_ours)
    items = _texts(args.text) if args.text else read_items(args.items)
    from learn_torchrec.serving.towers import ServedTowers  # takes seconds
    from learn_torchrec.towers.artifact import KIND_TOWERS

    verify(args.towers, KIND_TOWERS)
    verify(args.content, KIND_CONTENT)
    start = time.monotonic()
    towers = ServedTowers.open(args.towers, args.content)
    towers.warm_up()
    loaded = time.monotonic()
    vectors = towers.item_vectors(towers.encode_texts(items))
    seconds = time.monotonic() - loaded
    if args.out is None:
        _print(items[ITEM_ID], vectors)
    else:
        _write(args.out, items[ITEM_ID], vectors)
    print(
        f"{len(vectors)} items in {seconds:.2f} s, {1000 * seconds / len(vectors):.1f} "
        f"ms an item, after {loaded - start:.1f} s of loading",
        file=sys.stderr,
    )


def _file_read(args: argparse.Namespace) -> Iterator[tuple[str, Path]]:
    """Yield the file of `--items`, if it is one."""
    if args.items not in (None, STDIN):
        yield "--items", Path(args.items)


def read_items(name: str) -> pa.Table:
    """Read items from a file, by its ending, or from standard input.

    Raises:
        UserError: no such file, no items, or no column `item_id`.
    """
    path = Path(name)
    source: Any = sys.stdin.buffer if name == STDIN else path
    refuse_special(path)
    try:
        if path.suffix == ".parquet":
            table = pq.read_table(path, **VERIFIED)
        elif path.suffix == ".csv":
            table = pacsv.read_csv(path)
        elif name == STDIN or path.suffix in (".jsonl", ".json"):
            table = pajson.read_json(source)
        else:
            raise UserError(f"--items {name}: give .jsonl, .csv or .parquet, or -")
    except (OSError, pa.ArrowException) as error:
        raise UserError(
            f"--items {name}: cannot be read ({first_line(error)})"
        ) from None
    require_columns(table.column_names, [ITEM_ID], f"--items {name}")
    if not table.num_rows:
        raise UserError(f"--items {name}: has no items; give at least one")
    ids = as_ids(table[ITEM_ID], f"--items {name}: {ITEM_ID}")
    place = table.column_names.index(ITEM_ID)
    return table.set_column(place, ITEM_ID, ids)


def _texts(texts: Sequence[str]) -> pa.Table:
    return pa.table({ITEM_ID: pa.array(range(len(texts))), TITLE: list(texts)})


def _print(ids: pa.ChunkedArray, vectors: Float32Array) -> None:
    for item, vector in zip(ids.to_pylist(), vectors, strict=True):
        rounded = [round(float(value), 6) for value in vector]
        print(json.dumps({ITEM_ID: item, VECTOR: rounded}))


def _write(path: Path, ids: pa.ChunkedArray, vectors: Float32Array) -> None:
    flat = pa.array(vectors.reshape(-1))
    column = pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])
    with replacing(path) as working:
        table = pa.table({ITEM_ID: ids, VECTOR: column})
        pq.write_table(table, working, **WRITTEN)


if __name__ == "__main__":
    program.run(main)
