"""What stages take at the paper's size, one key after the other.

Every key is written as soon as it is measured, and is not measured again while it is in
the file: a run that was stopped resumes. Generated files are kept in `--folder`.

- `decode_amplification`: row groups decoded by 64 readers, and by 64 x 4, in one
  shuffled pass, over row groups: 7,630, as 10^9 rows have with 131,072 rows each.
- `significance_seconds_100m`: AUC, UAUC, WUAUC and the rest of two score columns and
  the intervals of their differences, over all rows and in six cohorts, from two files
  of 100 million rows and 5 million users; in a process of its own.
- `plans`: a table of 100 to 1,200 GiB, rows of 256 floats, on declared clusters: its
  sharding and kernel and the fullest GPU, or the reason why it does not fit.
- `significance_width_ratio`: its intervals' widths over those of a paired bootstrap of
  4,000 resamples, on 3,000 rows of 300 users.
"""

import json
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from learn_torchrec.datasets.loading.loader import Loader, LoaderConfig
from learn_torchrec.datasets.loading.row_groups import ROW_NUMBER
from learn_torchrec.datasets.loading.time_range import Lacking
from learn_torchrec.errors import UserError
from learn_torchrec.evaluation.influence import paired_influence
from learn_torchrec.evaluation.paired_predictions import compare_files
from learn_torchrec.evaluation.significance import paired_bootstrap
from learn_torchrec.evaluation.tasks import ONLY_TASK
from learn_torchrec.training.planning import GIB

from .. import plan
from ..common import program
from ..common.hardware import describe_machine
from . import measure

_ROWS_PER_USER = 20
_ROW_GROUP = 1 << 20
_DISK_PER_ROW = 45  # bytes, of both files
_RESAMPLES = 4000
_SMALL_ROWS, _SMALL_USERS = 3_000, 300
# As many groups as 10^9 rows have, of fewer rows, and all else in proportion.
_GROUPS, _GROUP_ROWS = 7_630, 4_096
_BATCH_ROWS, _WINDOW_ROWS = 8_192, 8_192
_PLANS = (  # nodes of 8 GPUs, GiB of a GPU, GiB of a host, GiB of a table
    *((1, 80, 1000, 238), (8, 80, 1000, 1200)),
    *((1, 24, 1000, gib) for gib in (100, 200, 400)),
    (1, 24, 200, 400),
)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print what the file lacks; write JSON where asked."""
    parser = measure.parser("scale", __doc__)
    parser.add_argument(
        "keys", nargs="*", metavar="KEY", help=f"some of {', '.join(KEYS)} (all)"
    )
    parser.add_argument(
        "--rows", type=int, default=100_000_000, metavar="N", help="impressions"
    )
    parser.add_argument(
        "--folder", type=Path, metavar="DIR", help="keep generated files here"
    )
    parser.add_argument(
        "--again", action="store_true", help="measure what the file has already"
    )
    args = parser.parse_args(argv)
    if unknown := set(args.keys) - set(KEYS):
        parser.error(f"no key {unknown.pop()}; choose from {', '.join(KEYS)}")
    known = {}
    if args.json and args.json.exists() and not args.again:
        known = json.loads(args.json.read_text())
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        for key in args.keys or KEYS:
            if key not in known:
                body = {**KEYS[key](folder, args.rows), "machine": describe_machine()}
                measure.publish({key: body}, args.json, merge=True)


def significance_seconds(folder: Path, num_rows: int) -> dict[str, Any]:
    """Return the time and peak memory of a comparison of two files."""
    folder.mkdir(parents=True, exist_ok=True)
    measure.require_machine(1, num_rows * _DISK_PER_ROW, folder)
    path = folder / f"predictions-{num_rows}"
    write_predictions(path, num_rows)
    return measure.in_fresh_process("scale", "time_comparison", str(path))


def time_comparison(path: str) -> dict[str, Any]:
    """Return the time, peak memory and what was found of two prediction files."""
    start = time.perf_counter()
    before, after = (
        (Path(path) / f"{name}.parquet", ONLY_TASK) for name in ("before", "after")
    )
    found = compare_files(before, after)
    seconds = time.perf_counter() - start
    return {
        "seconds": round(seconds, 1),
        "peak_gb": round(measure.peak_memory_mb() / 1024, 2),
        "rows": found["all"].baseline["rows"],
        "users": found["all"].baseline["users"],
        "cohorts": list(found),
        "uauc": found["all"].differences["uauc"]._asdict(),
    }


def width_ratio(_folder: Path, _num_rows: int) -> dict[str, Any]:
    """Return the smallest and the largest ratio of widths, by metric."""
    ratios: dict[str, list[float]] = {}
    for seed in range(5):
        columns = _columns(np.random.default_rng(seed), _SMALL_ROWS, _SMALL_USERS)
        rows = (columns["user_id"], columns["label"], columns["before"])
        ours = paired_influence(*rows, columns["after"])
        drawn = paired_bootstrap(
            *rows, columns["after"], num_resamples=_RESAMPLES, seed=seed
        )
        for metric, one in ours.items():
            width = drawn[metric].high - drawn[metric].low
            ratios.setdefault(metric, []).append((one.high - one.low) / width)
    return {
        metric: [round(min(values), 4), round(max(values), 4)]
        for metric, values in ratios.items()
    }


def plans(_folder: Path, _num_rows: int) -> dict[str, Any]:
    """Return the plan of one large table, or the refusal, by declared cluster."""
    found = {}
    for nodes, hbm_gb, host_gb, gib in _PLANS:
        name = f"{8 * nodes} x {hbm_gb} GB, hosts of {host_gb} GB, {gib} GiB of tables"
        options = [f"--nodes={nodes}", f"--hbm-gb={hbm_gb}", f"--host-gb={host_gb}"]
        options += [f"--table=t={gib * GIB // 1024}x256", "--table=item_id=31000000x64"]
        options += [f"--set=ranker.training.batch_size={8192 * nodes}"]
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "plan.json"
            try:
                plan.main([*options, f"--out={out}"])
            except UserError as error:
                found[name] = {"refused": str(error)}
                continue
            facts = json.loads(out.read_text())
        table = facts["tables"]["t_t"]
        gpu = max(rank["gpu_bytes"] for rank in facts["ranks"]) / GIB
        found[name] = {
            "sharding": table["sharding"],
            "kernel": table["kernel"],
            "gpu_gib": round(gpu, 1),
        }
    return found


class _CountedGroups:
    """Row groups of which nothing but a number is read, and how many are."""

    name = "counted"
    earliest: int | None = None

    def __init__(self) -> None:
        self.lacking: Lacking = {}
        self.sizes = np.full(_GROUPS, _GROUP_ROWS)
        self.num_rows = _GROUPS * _GROUP_ROWS
        self.decoded = 0
        self._rows = pa.table({ROW_NUMBER: np.arange(_GROUP_ROWS)})

    def __len__(self) -> int:
        return _GROUPS

    def empty(self) -> pa.Table:
        return self._rows.slice(0, 0)

    def only(self, columns: Sequence[str]) -> "_CountedGroups":
        return self

    def pieces(self, group: int, skip: int = 0, most: int = 0) -> Iterator[pa.Table]:
        self.decoded += 1
        yield self._rows.slice(skip)


def decode_amplification(_folder: Path, _num_rows: int) -> dict[str, Any]:
    """Return row groups decoded over row groups, by the number of readers."""
    found = {}
    for readers in (64, 256):
        rows = _CountedGroups()
        config = LoaderConfig(batch_size=_BATCH_ROWS, window_rows=_WINDOW_ROWS)
        loader = Loader(rows, config)
        for reader in range(readers):
            for _ in loader.share(0, 0, reader, readers):
                pass
        found[f"{readers} readers"] = round(rows.decoded / len(rows), 3)
    return found | {"row_groups": _GROUPS, "batch_size": _BATCH_ROWS}


KEYS: dict[str, Callable[[Path, int], dict[str, Any]]] = {
    "decode_amplification": decode_amplification,
    "plans": plans,
    "significance_seconds_100m": significance_seconds,
    "significance_width_ratio": width_ratio,
}


def write_predictions(folder: Path, num_rows: int) -> None:
    """Write `before.parquet` and `after.parquet`, unless they are there."""
    if folder.exists():
        return
    working = folder.with_suffix(".tmp")
    working.mkdir(parents=True, exist_ok=True)
    writers: dict[str, pq.ParquetWriter] = {}
    for columns in _row_groups(num_rows):
        scores = {name: columns.pop(name) for name in ("before", "after")}
        for name, score in scores.items():
            table = pa.table(columns | {"score": score})
            if name not in writers:
                path = working / f"{name}.parquet"
                writers[name] = pq.ParquetWriter(path, table.schema)
            writers[name].write_table(table)
    for writer in writers.values():
        writer.close()
    working.rename(folder)


def _row_groups(num_rows: int) -> Iterator[dict[str, Any]]:
    generator = np.random.default_rng(0)
    for start in range(0, num_rows, _ROW_GROUP):
        count = min(_ROW_GROUP, num_rows - start)
        yield _columns(generator, count, max(1, num_rows // _ROWS_PER_USER))


def _columns(
    generator: np.random.Generator, count: int, num_users: int
) -> dict[str, Any]:
    """Return rows whose second score says a little more than the first."""
    chance = generator.beta(1, 9, count)
    labels = (generator.random(count) < chance).astype(np.int8)
    logits = np.log(chance / (1 - chance))
    noise = generator.normal(size=(2, count))
    before = logits + noise[0]
    after = before + 0.2 * (logits - before) + 0.1 * noise[1]
    before, after = ((1 / (1 + np.exp(-x))).astype(np.float32) for x in (before, after))
    return {
        "user_id": generator.integers(num_users, size=count) * 7919,
        "label": labels,
        "user_activity": generator.geometric(0.03, count) - 1,
        "item_activity": generator.geometric(0.03, count) - 1,
        "before": (1 / (1 + np.exp(-before))).astype(np.float32),
        "after": (1 / (1 + np.exp(-after))).astype(np.float32),
    }


if __name__ == "__main__":
    program.run(main)
