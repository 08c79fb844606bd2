import gc
import itertools
import os
import pickle
import re
import signal
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from learn_torchrec.datasets.loading.in_memory import TableRows
from learn_torchrec.datasets.loading.interleave import cut_into_lanes, number_of_lanes
from learn_torchrec.datasets.loading.loader import Loader, LoaderConfig, evaluation
from learn_torchrec.datasets.loading.row_groups import (
    ROW_NUMBER,
    RowGroups,
    open_parquet,
)
from learn_torchrec.datasets.loading.time_range import Interval
from learn_torchrec.errors import UserError

CONFIG = LoaderConfig(batch_size=24, lanes=8, seed=3, window_rows=130)


def write(directory: Path, sizes: tuple[int, ...], group: int = 20) -> Path:
    """Files of `sizes` rows: `value`, the row number, and a list column."""
    directory.mkdir(exist_ok=True)
    first = 0
    for number, size in enumerate(sizes):
        values = np.arange(first, first + size)
        table = pa.table({"value": values, "ids": [[v, v + 1] for v in values]})
        path = directory / f"part-{number:05d}.parquet"
        pq.write_table(table, path, row_group_size=group)
        first += size
    return directory


@pytest.fixture
def rows(tmp_path: Path) -> RowGroups:
    return RowGroups(write(tmp_path / "log", (50, 7, 93, 61)))  # 211 rows


def read(rows: RowGroups, config: LoaderConfig, ranks: int = 1, **options) -> list:
    """The values that all ranks together read in each step."""
    start = options.pop("start", 0)
    loaders = [Loader(rows, config, rank=r, ranks=ranks) for r in range(ranks)]
    parts = [list(loader.batches(options.get("epoch", 0), start)) for loader in loaders]
    assert len({len(part) for part in parts}) == 1, "ranks differ in their steps"
    assert len(parts[0]) == loaders[0].steps - start
    return [
        [value for part in step for value in part["value"].to_pylist()]
        for step in zip(*parts, strict=True)
    ]


def test_lanes_by_hand() -> None:
    lanes = cut_into_lanes(np.array([4, 2, 5]), np.array([2, 0, 1]), 3)
    # Groups 2 (5 rows), 0 (4) and 1 (2), concatenated; cut after 3 and 7 of 11 rows.
    assert [[(s.group, s.start, s.stop) for s in lane] for lane in lanes] == [
        [(2, 0, 3)],
        [(2, 3, 5), (0, 0, 2)],
        [(0, 2, 4), (1, 0, 2)],
    ]


@pytest.mark.parametrize(
    ("wanted", "batch_size", "groups", "lanes"),
    [
        (0, 2048, 5, 8),
        (0, 2048, 200, 16),  # of at most 20
        (0, 8192, 7630, 256),
        (0, 320, 7630, 20),
        (0, 100, 7630, 5),  # of at most 8
        (0, 1 << 20, 1 << 20, 256),
        (50, 24, 3, 24),
        (3, 8192, 7630, 2),
    ],
)
def test_the_number_of_lanes(wanted, batch_size, groups, lanes) -> None:
    assert number_of_lanes(wanted, batch_size, groups) == lanes


class CountedGroups(RowGroups):
    """Row groups that count how many are decoded, and how many rows in pieces."""

    decoded = largest = 0

    def pieces(self, group, skip=0, most=65_536):
        self.decoded += 1
        for piece in super().pieces(group, skip, most):
            self.largest = max(self.largest, piece.num_rows)
            yield piece


@pytest.mark.parametrize("readers", [1, 8, 32])
def test_readers_decode_what_they_take(readers: int, tmp_path: Path) -> None:
    """Of 320 row groups there are 32 lanes; two readers decode a group where they meet.

    Whoever reads, the batches are those of one reader.
    """
    write(
        tmp_path / "log", (6000, 6810), group=40
    )  # 321 row groups, the last one of 10
    rows = CountedGroups(tmp_path / "log")
    loader = Loader(rows, LoaderConfig(batch_size=512, window_rows=1024))
    assert loader.lanes == 32
    steps: list[list[int]] = [[] for _ in range(loader.steps)]
    for reader in range(readers):
        for window in loader.share(0, 0, reader, readers):
            for step in range(len(window.bounds) - 1):
                taken = window.rows["value"].take(window.take(step)).to_pylist()
                steps[window.step + step] += taken
    assert steps == read(rows, loader.config)
    assert all(len(step) == len(set(step)) == 512 for step in steps)
    rows.decoded = 0
    for reader in range(readers):
        for _ in loader.share(1, 0, reader, readers):
            pass
    assert len(rows) <= rows.decoded <= len(rows) + 31


def test_one_reader_of_many_lanes_decodes_small_pieces(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("learn_torchrec.datasets.loading.loader._HELD_ROWS", 320)
    write(tmp_path / "log", (12_800,), group=40)
    rows = CountedGroups(tmp_path / "log")
    loader = Loader(rows, LoaderConfig(batch_size=512))
    for readers, largest in ((1, 10), (2, 20), (32, 40)):
        rows.largest = 0
        list(loader.share(0, 0, 0, readers))
        assert rows.largest == largest


def test_rows_are_shuffled_across_steps_where_a_window_has_one(tmp_path: Path) -> None:
    write(tmp_path / "log", (192,), group=192)
    config = replace(CONFIG, lanes=1, window_rows=24)
    steps = read(RowGroups(tmp_path / "log"), config)
    assert sorted(itertools.chain(*steps[:4])) == list(range(96))
    assert all(np.ptp(step) > 72 for step in steps)


@pytest.mark.parametrize("lanes", [1, 3, 8, 50])
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_evaluation_reads_every_row_once(
    rows: RowGroups, lanes: int, ranks: int
) -> None:
    steps = read(rows, evaluation(replace(CONFIG, lanes=lanes)), ranks)
    assert sorted(itertools.chain(*steps)) == list(range(211))
    if lanes == 1:
        assert list(itertools.chain(*steps)) == list(range(211))  # the files' order


@pytest.mark.parametrize("ranks", [2, 3, 4, 8, 12])
def test_any_number_of_ranks_makes_the_same_batches(
    rows: RowGroups, ranks: int
) -> None:
    one = read(rows, CONFIG)
    assert read(rows, CONFIG, ranks) == one
    assert all(len(step) == 24 for step in one)
    assert len(set(itertools.chain(*one))) == 24 * 8  # no row twice


def test_shares_are_equal_and_what_is_dropped_is_counted(rows: RowGroups) -> None:
    loaders = [Loader(rows, CONFIG, rank=rank, ranks=4) for rank in range(4)]
    for loader in loaders:
        assert (loader.steps, loader.dropped_rows) == (8, 211 - 8 * 24)
        assert {batch.num_rows for batch in loader.batches(0)} == {6}
    whole = Loader(rows, evaluation(CONFIG))
    assert whole.dropped_rows == 0


def test_the_order_follows_from_seed_and_epoch(rows: RowGroups) -> None:
    assert read(rows, CONFIG) == read(rows, CONFIG)
    orders = [read(rows, CONFIG), read(rows, CONFIG, epoch=1)]
    orders.append(read(rows, replace(CONFIG, seed=4)))
    assert all(a != b for a, b in itertools.combinations(orders, 2))
    first = list(itertools.chain(*orders[0]))
    # Well mixed: a batch has rows of most files and few neighbours.
    assert np.ptp(orders[0][0]) > 150
    assert np.mean(np.abs(np.diff(first)) == 1) < 0.2


def test_memory_is_that_of_a_few_windows(tmp_path: Path) -> None:
    """Memory is freed at once, not by the garbage collector."""
    rows = RowGroups(write(tmp_path / "log", (60_000,), group=300))
    loader = Loader(rows, LoaderConfig(batch_size=64, window_rows=512))
    gc.collect()
    gc.disable()
    try:
        before = pa.total_allocated_bytes()
        for epoch in range(3):
            held = [pa.total_allocated_bytes() - before for _ in loader.windows(epoch)]
            early, late = max(held[: len(held) // 4]), max(held)
            assert late < 1.5 * early
            assert pa.total_allocated_bytes() - before < 100_000
    finally:
        gc.enable()


def test_row_numbers_and_lists_travel(rows: RowGroups) -> None:
    for batch in Loader(rows, CONFIG).batches(0):
        values = batch["value"].to_pylist()
        assert batch[ROW_NUMBER].to_pylist() == values
        assert batch["ids"].to_pylist() == [[v, v + 1] for v in values]


def test_resuming_at_another_number_of_ranks(rows: RowGroups) -> None:
    whole = read(rows, CONFIG, ranks=2, epoch=2)
    config = replace(CONFIG, workers=0, timeout=9.0)
    assert read(rows, config, ranks=3, epoch=2, start=5) == whole[5:]


ONE_WINDOW = replace(CONFIG, window_rows=500)


@pytest.mark.parametrize("ranks", [1, 3, 12])
def test_a_table_in_memory_gives_the_batches_of_its_files(
    rows: RowGroups, ranks: int
) -> None:
    table = pa.concat_tables(
        piece.drop_columns(ROW_NUMBER)
        for group in range(len(rows))
        for piece in rows.pieces(group)
    )
    memory = TableRows(table, None, "memory")
    for epoch in (0, 1):
        expected = read(rows, ONE_WINDOW, epoch=epoch)
        assert read(memory, ONE_WINDOW, ranks, epoch=epoch) == expected
        assert len(set(itertools.chain(*expected))) == 24 * 8


@pytest.mark.parametrize("config", [CONFIG, ONE_WINDOW])
def test_no_row_is_left_out_of_every_epoch(
    rows: RowGroups, config: LoaderConfig
) -> None:
    seen = {
        value
        for epoch in range(40)
        for step in read(rows, config, epoch=epoch)
        for value in step
    }
    assert seen == set(range(211))


def test_what_fits_one_window_is_transformed_once(rows: RowGroups) -> None:
    calls: list[int] = []

    def transform(table: pa.Table) -> list[int]:
        calls.append(table.num_rows)
        values: list[int] = table["value"].to_pylist()
        return values

    def epoch(config: LoaderConfig, number: int, rank: int = 0) -> list[list[int]]:
        return [
            [window.rows[place] for place in window.take(step)]
            for (window,) in loaders[config, rank].windows(number)
            for step in range(len(window.bounds) - 1)
        ]

    loaders = {
        (config, rank): Loader(rows, config, rank=rank, ranks=2, transform=transform)
        for config in (CONFIG, ONE_WINDOW)
        for rank in (0, 1)
    }
    for config, times in ((CONFIG, 4), (ONE_WINDOW, 1)):
        for number in (0, 1):
            parts = [epoch(config, number, rank) for rank in (0, 1)]
            steps = [one + other for one, other in zip(*parts, strict=True)]
            assert steps == read(rows, config, epoch=number)
        assert len(calls) == 2 * times, "of each rank"
        calls.clear()


def test_batches_that_cannot_be(rows: RowGroups) -> None:
    with pytest.raises(UserError, match=r"batch_size=24 must be a multiple .* 5"):
        Loader(rows, CONFIG, ranks=5)
    with pytest.raises(UserError, match=r"batch_size=999 is more than the 211 rows"):
        Loader(rows, replace(CONFIG, batch_size=999))


@pytest.mark.parametrize(
    ("name", "value"), [("lanes", -1), ("workers", -1), ("seed", -1)]
)
def test_settings_out_of_range_are_refused(name: str, value: int) -> None:
    with pytest.raises(ValueError, match=rf"{name}\s+Input should be greater than"):
        LoaderConfig(**{name: value})


def double(table: pa.Table) -> pa.Table:
    return table.append_column("pid", pa.array([os.getpid()] * table.num_rows))


def die(table: pa.Table) -> pa.Table:
    if max(table["value"].to_pylist()) > 150:
        os.kill(os.getpid(), signal.SIGKILL)
    return table


def hang(table: pa.Table) -> pa.Table:
    time.sleep(60)
    return table


def refuse(table: pa.Table) -> pa.Table:
    raise UserError("part 7: column 'x' is bad; fix it")


@pytest.mark.slow  # every set of processes loads torch
def test_workers(rows: RowGroups) -> None:
    """Read the same batches in several processes, which report their errors."""
    config = replace(CONFIG, workers=3)
    for ranks in (1, 2):
        assert read(rows, config, ranks) == read(rows, CONFIG)
    batch = next(Loader(rows, config, transform=double).batches(0))
    pids = set(batch["pid"].to_pylist())
    assert len(pids) == 3
    assert os.getpid() not in pids
    with pytest.raises(UserError, match=r"part 7: column 'x' is bad; fix it$"):
        list(Loader(rows, config, transform=refuse).batches(0))
    with pytest.raises(UserError) as caught:
        list(Loader(rows, config, rank=1, ranks=2, transform=die).batches(0))
    line = str(caught.value)
    failed = r"process of rank 1 failed at step \d+ \(killed by SIGKILL\); if"
    assert re.search(failed, line), line
    assert "\n" not in line
    slow = replace(config, timeout=2.0)
    with pytest.raises(UserError, match=r"step 0 \(no rows for 2 s\); raise"):
        list(Loader(rows, slow, transform=hang).batches(0))


def test_what_is_sent_to_a_worker(rows: RowGroups) -> None:
    loader = Loader(rows, CONFIG)
    again = pickle.loads(pickle.dumps(loader))
    first, second = next(loader.batches(0)), next(again.batches(0))
    assert first.equals(second)


def test_partitioned_folders_and_pruned_columns(tmp_path: Path) -> None:
    table = pa.table({"value": [3, 1, 2], "day": ["b", "a", "b"], "x": [0, 0, 0]})
    pq.write_to_dataset(table, tmp_path / "p", partition_cols=["day"])
    (tmp_path / "p" / "_SUCCESS").touch()
    rows = RowGroups(tmp_path / "p", columns=["value", "day"])
    assert rows.schema.names == ["value", "day"]
    read_back = pa.concat_tables(
        piece.drop_columns(ROW_NUMBER)
        for group in range(len(rows))
        for piece in rows.pieces(group)
    )
    assert read_back.to_pylist() == [
        {"value": 1, "day": "a"},
        {"value": 3, "day": "b"},
        {"value": 2, "day": "b"},
    ]


def test_files_of_narrower_and_other_types(tmp_path: Path) -> None:
    directory = write(tmp_path / "log", (5,))
    other = pa.table({"value": pa.array([5], pa.int32()), "ids": [[1]]})
    pq.write_table(other, directory / "part-1.parquet")
    rows = RowGroups(directory)
    assert rows.schema.field("value").type == pa.int64()
    assert next(rows.pieces(len(rows) - 1))["value"].to_pylist() == [5]
    pq.write_table(pa.table({"value": ["5"], "ids": [[1]]}), directory / "z.parquet")
    with pytest.raises(UserError, match=r"z\.parquet: column 'value' is string, but"):
        RowGroups(directory)
    (directory / "z.parquet").unlink()
    with pytest.raises(UserError, match=r"column 'no' is missing; it has: value, ids"):
        RowGroups(directory, columns=["no"])


def test_a_later_part_may_have_other_columns_and_wider_types(tmp_path: Path) -> None:
    code = pa.array(["a", "b", "a"])
    parts = [
        {"id": pa.array([1, 2, 3], pa.int32()), "code": code.dictionary_encode()},
        {"code": code.cast(pa.large_string()), "more": [0.5, None, 2], "id": [4, 5, 6]},
        {"id": pa.array([7, 8, 9], pa.int8()), "code": code},
    ]
    for number, columns in enumerate(parts):
        pq.write_table(pa.table(columns), tmp_path / f"part-{number}.parquet")
    expected = {
        "id": list(range(1, 10)),
        "code": ["a", "b", "a"] * 3,
        "more": [*[None] * 3, 0.5, None, 2, *[None] * 3],
    }
    rows = RowGroups(tmp_path)
    pieces = [piece for group in range(3) for piece in rows.pieces(group)]
    read = pa.concat_tables(pieces).drop_columns([ROW_NUMBER])
    assert read.to_pydict() == expected
    assert read.schema == rows.schema == open_parquet(tmp_path).schema
    assert open_parquet(tmp_path).to_table().to_pydict() == expected
    one = RowGroups(tmp_path, ["more", "id"])
    assert one.schema.names == ["more", "id"]
    assert next(one.pieces(0))["more"].to_pylist() == [None] * 3


def test_a_key_may_lack_a_value_and_a_part_a_column(tmp_path: Path) -> None:
    parts = {"user=7": {"time": [1, 2], "label": [0, 1]}, "user=8": {"time": [3, 4]}}
    parts["user=__HIVE_DEFAULT_PARTITION__"] = {"time": [5], "label": [1]}
    for folder, columns in parts.items():
        (tmp_path / folder).mkdir()
        pq.write_table(pa.table(columns), tmp_path / folder / "a.parquet")
    interval = Interval("time", 0, 9, required=("user", "label"))
    rows = RowGroups(tmp_path, interval=interval)
    # In the order of the paths: 7 (rows 0 and 1), 8 without labels, no user (row 4).
    assert rows.lacking == {"user": (1, 4), "label": (2, 2)}
    assert [len(next(rows.pieces(g))) for g in range(len(rows))] == [2]
    assert next(rows.pieces(0))["user"].to_pylist() == [7, 7]


def test_rows_that_lack_a_value_are_left_out_and_counted(tmp_path: Path) -> None:
    """In both ways of reading, with and without statistics."""
    table = pa.table(
        {
            "time": [5, None, 15, 25, 16, 17, 99],
            "user": ["a", "b", None, "c", "d", None, None],
            "label": [0, 1, 1, 0, None, None, None],
        }
    )
    interval = Interval("time", 10, 30, required=("user", "label"))
    # Row 6 is outside; row 5 lacks both and counts once.
    lacking = {"time": (1, 1), "user": (2, 2), "label": (1, 4)}
    for statistics in (True, False):
        path = tmp_path / f"{statistics}.parquet"
        pq.write_table(table, path, row_group_size=2, write_statistics=statistics)
        rows = RowGroups(path, interval=interval)
        assert (rows.num_rows, rows.earliest, rows.lacking) == (1, 25, lacking)
        (piece,) = rows.pieces(0)
        assert piece.to_pylist() == [
            {"time": 25, "user": "c", "label": 0, ROW_NUMBER: 3}
        ]
        here = TableRows(table, interval, "memory")
        assert next(here.pieces(0)).equals(piece)
        assert (here.earliest, here.lacking) == (25, lacking)


def test_views_are_read_and_selected(tmp_path: Path) -> None:
    text, binary = pa.string_view(), pa.binary_view()
    table = pa.table(
        {
            "time": [5, 15, 25],
            "name": pa.array(["a", "b", "c"], text),
            "code": pa.array([b"a", b"b", b"c"], binary),
            "tags": pa.array([["a"], [], ["b", "c"]], pa.list_(text)),
            "more": pa.array([["a"], [], ["b", "c"]], pa.large_list(text)),
        }
    )
    pq.write_table(table, tmp_path / "a.parquet")
    interval, last_two = Interval("time", 10, 30), table.to_pylist()[1:]
    (piece,) = RowGroups(tmp_path, table.column_names, interval).pieces(0)
    assert piece.drop_columns([ROW_NUMBER]).to_pylist() == last_two
    in_memory = interval.rows_of(open_parquet(tmp_path).to_table())
    assert in_memory.to_pylist() == last_two
