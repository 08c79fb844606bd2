import pickle
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from learn_torchrec.artifact import read_manifest
from learn_torchrec.content.store import (
    KIND,
    ContentStore,
    finish_content_store,
    write_content_store,
    write_shard,
)
from learn_torchrec.errors import UserError
from learn_torchrec.publish import write_artifact

VECTORS = np.array([[1.0, 5.0, 0.25], [2.0, 5.0, -0.5], [6.0, 5.0, 1.0]], np.float32)


def write(directory: Path, ids: Any, vectors: np.ndarray = VECTORS) -> ContentStore:
    with write_artifact(directory, kind=KIND, config={"a": 1}, inputs={}) as working:
        write_content_store(working, pa.array(ids), vectors)
    return ContentStore.open(directory)


@pytest.mark.parametrize("ids", [[30, 10, 20], ["c", "a", "b"]])
def test_roundtrip(tmp_path: Path, ids: list[Any]) -> None:
    store = write(tmp_path / "content", ids)
    assert len(store) == 3
    assert store.dim == 3
    assert store.item_ids.to_pylist() == ids
    assert store.manifest.kind == "content"
    assert store.manifest.config == {"a": 1}
    rows = store.rows_of(pa.array([ids[2], ids[0], ids[2]]))
    assert rows.dtype == np.int64
    assert rows.tolist() == [2, 0, 2]
    gathered = store.gather(rows)
    assert gathered.dtype == np.float16
    np.testing.assert_array_equal(gathered, VECTORS[[2, 0, 2]].astype(np.float16))


def test_statistics_by_hand_with_a_constant_dimension(tmp_path: Path) -> None:
    store = write(tmp_path / "content", [1, 2, 3])
    assert store.mean.dtype == store.std.dtype == np.float64
    # 1, 2, 6: mean 3, variance (4 + 1 + 9) / 3. The second dimension is constant.
    # 1/4, -1/2, 1: mean 1/4, variance (0 + 9/16 + 9/16) / 3 = 3/8.
    np.testing.assert_allclose(store.mean, [3.0, 5.0, 0.25], rtol=1e-12)
    np.testing.assert_allclose(
        store.std, [(14 / 3) ** 0.5, 1.0, (3 / 8) ** 0.5], rtol=1e-12
    )


def test_statistics_of_many_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("learn_torchrec.matrix._BLOCK_BYTES", 8 * 4 * 7)
    vectors = np.random.default_rng(0).normal(3.0, 0.1, (100, 4)).astype(np.float32)
    store = write(tmp_path / "content", np.arange(100), vectors)
    stored = vectors.astype(np.float16)
    np.testing.assert_array_equal(store.vectors, stored)
    np.testing.assert_allclose(store.mean, stored.astype(np.float64).mean(0))
    np.testing.assert_allclose(store.std, stored.astype(np.float64).std(0))


def test_a_deviation_below_the_rounding_is_no_content(tmp_path: Path) -> None:
    # Adjacent half-precision values, 1 and 1 + 2**-10, beside a real deviation.
    vectors = np.array([[1.0, 1.0], [1.0 + 2**-10, 1.0 + 2**-6]], np.float32)
    store = write(tmp_path / "content", [1, 2], vectors)
    np.testing.assert_allclose(store.std, [1.0, 2**-7], rtol=1e-12)


def test_rows_of_unknown_ids_and_other_containers(tmp_path: Path) -> None:
    store = write(tmp_path / "content", [30, 10, 20])
    assert store.rows_of(np.array([20, 99, 30], np.int32)).tolist() == [2, -1, 0]
    assert store.rows_of(pa.chunked_array([[10], [11]])).tolist() == [1, -1]
    assert store.rows_of(pa.array([10, None])).tolist() == [1, -1]
    assert store.rows_of(pa.array([20, 20]).dictionary_encode()).tolist() == [2, 2]
    assert store.rows_of(np.array([], np.int64)).tolist() == []
    with pytest.raises(UserError, match="ids are string, but int64 in"):
        store.rows_of(np.array(["10"]))
    with pytest.raises(UserError, match="ids are double"):
        store.rows_of(np.array([10.0]))


def test_rows_of_strings_from_numpy(tmp_path: Path) -> None:
    store = write(tmp_path / "content", pa.array(["c", "a", "b"], pa.large_string()))
    assert store.item_ids.type == pa.large_string()
    assert store.rows_of(np.array(["a", "zz"])).tolist() == [1, -1]
    assert store.rows_of(np.array(["b"], dtype=object)).tolist() == [2]
    log = pa.array(["b", "c", "b"])
    for kind in (pa.string(), pa.large_string(), pa.string_view()):
        assert store.rows_of(log.cast(kind)).tolist() == [2, 0, 2]
    assert store.rows_of(log.dictionary_encode()).tolist() == [2, 0, 2]


def test_gather_refuses_items_without_content(tmp_path: Path) -> None:
    store = write(tmp_path / "content", [30, 10, 20])
    rows = np.array([-1, 0, -1])
    with pytest.raises(UserError, match="2 of 3 items have no content"):
        store.gather(rows)
    found = store.gather(np.array([2, 0, 2]))
    assert found.dtype == np.float16
    np.testing.assert_array_equal(found, VECTORS[[2, 0, 2]])
    assert store.gather(np.array([], np.int64)).shape == (0, 3)


def test_the_matrix_is_mapped_read_only_and_never_pickled(tmp_path: Path) -> None:
    vectors = np.ones((50_000, 8), np.float16)
    store = write(tmp_path / "content", np.arange(50_000), vectors)
    assert isinstance(store.vectors.shards[0].base, np.memmap)
    assert type(store.gather(np.array([1]))) is np.ndarray
    with pytest.raises(ValueError, match="read-only"):
        store.vectors.shards[0][0, 0] = 1
    sent = pickle.dumps(store)
    assert len(sent) < 1000
    again = pickle.loads(sent)
    assert len(again) == 50_000
    assert isinstance(again.vectors.shards[0].base, np.memmap)


@pytest.mark.parametrize(
    ("ids", "row", "message"),
    [
        ([1, 2, 1], None, "item_id: id 1 occurs 2 times"),
        (["x", "y", "y"], None, "item_id: id 'y' occurs 2 times"),
        ([1, None, 3], None, "item_id: null id in row 1"),
        ([1.5, 2.5, 3.5], None, "ids are double"),
        ([7, 8, 9], [0, np.nan, 0], "vector of item_id 8 is not finite"),
        ([7, 8, 9], [0, -np.inf, 0], "vector of item_id 8 is not finite"),
        ([7, 8, 9], [0, -7e4, 0], "item_id 8 holds 70000, too large for half"),
    ],
)
def test_bad_catalogues_leave_nothing_behind(
    tmp_path: Path, ids: list[Any], row: list[float] | None, message: str
) -> None:
    vectors = VECTORS.copy()
    if row is not None:
        vectors[1] = row
    with pytest.raises(UserError, match=message):
        write(tmp_path / "content", ids, vectors)
    assert list(tmp_path.iterdir()) == []


def test_an_empty_catalogue_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no items"):
        write(tmp_path / "content", pa.array([], pa.int64()), np.empty((0, 3)))


FILES = ["vectors-00000.npy", "ids.arrow", "id_keys.npy", "statistics.npz"]


@pytest.mark.parametrize("name", FILES)
def test_missing_and_damaged_files_are_named(tmp_path: Path, name: str) -> None:
    directory = tmp_path / "content"
    write(directory, [1, 2, 3])
    whole = (directory / name).read_bytes()
    (directory / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=rf"{name}: damaged .*make the content store"):
        ContentStore.open(directory)
    (directory / name).write_bytes(b"PK\x03\x04".ljust(len(whole), b"?"))
    with pytest.raises(UserError, match=r"damaged .*make the content store"):
        ContentStore.open(directory)
    (directory / name).unlink()
    with pytest.raises(UserError, match=rf"{name}: missing; make"):
        ContentStore.open(directory)


def test_other_directories_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no content artefact here"):
        ContentStore.open(tmp_path)
    write(tmp_path / "a", [1, 2, 3])
    write(tmp_path / "b", [1, 2], VECTORS[:2])
    for name in ("id_keys.npy", "id_rows.npy", "ids.arrow"):
        shutil.copy(tmp_path / "b" / name, tmp_path / "a" / name)
    manifest = read_manifest(tmp_path / "a", KIND)
    for name, entry in manifest.files.items():
        entry["bytes"] = (tmp_path / "a" / name).stat().st_size
    manifest.write(tmp_path / "a")
    with pytest.raises(UserError, match="do not match"):
        ContentStore.open(tmp_path / "a")
    replace(manifest, files={}).write(tmp_path / "a")
    with pytest.raises(UserError, match="it lists no files"):
        ContentStore.open(tmp_path / "a")


def test_shards_are_one_matrix(tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).normal(size=(10, 4)).astype(np.float16)
    hashes = np.arange(20, dtype=np.uint64).reshape(10, 2)
    parts = [slice(0, 4), slice(4, 4), slice(4, 10)]  # a rank without items
    with write_artifact(tmp_path / "c", kind=KIND, config={}, inputs={}) as working:
        moments = [
            write_shard(
                working, n, lambda rows, p=p: vectors[p][rows], hashes[p], dim=4
            )
            for n, p in enumerate(parts)
        ]
        total = moments[0] + moments[1] + moments[2]
        finish_content_store(working, pa.array(range(10)), total)
    store = ContentStore.open(tmp_path / "c")
    assert len(store.vectors.shards) == 2
    rows = np.array([9, 0, 3, 4, 4])
    np.testing.assert_array_equal(store.gather(rows), vectors[rows])
    np.testing.assert_array_equal(store.vectors[5], vectors[5])
    np.testing.assert_array_equal(store.vectors, vectors)
    np.testing.assert_array_equal(store.text_hashes(), hashes)
    np.testing.assert_allclose(store.mean, vectors.astype(np.float64).mean(0))
    np.testing.assert_allclose(store.std, vectors.astype(np.float64).std(0))


@pytest.mark.parametrize("prefix", ["", "é" * 40])
def test_lookups_equal_a_dictionary(tmp_path: Path, prefix: str) -> None:
    random = np.random.default_rng(1)
    names = [f"{prefix}{k}" for k in random.permutation(2000)]
    if not prefix:
        names[7] = ""
    for ids in (names, random.integers(-(2**63), 2**63, 2000).tolist()):
        store = write(tmp_path / f"c{type(ids[0])}", ids, np.ones((2000, 1)))
        unknown = [f"{prefix}x{k}" for k in range(50)]
        if isinstance(ids[0], int):
            unknown = list(range(50))
        asked = random.permutation(np.array([*ids, *unknown], object)).tolist()
        row = {id_: number for number, id_ in enumerate(ids)}
        expected = [row.get(id_, -1) for id_ in asked]
        assert store.rows_of(pa.array(asked)).tolist() == expected


@pytest.mark.slow
def test_ten_million_items_open_in_under_a_second(tmp_path: Path) -> None:
    count = 10_000_000
    write(tmp_path / "content", np.arange(count) * 7, np.ones((count, 8), np.float16))
    code = (
        "import resource, time, sys; from pathlib import Path\n"
        "from learn_torchrec.content.store import ContentStore\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "start = time.perf_counter(); store = ContentStore.open(Path(sys.argv[1]))\n"
        "seconds = time.perf_counter() - start\n"
        "grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before\n"
        "print(len(store), seconds, grown / 1024, store.rows_of([70, 71])[0])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "content")],
        **{"check": True, "capture_output": True, "text": True},
    )
    size, seconds, megabytes, row = map(float, done.stdout.split())
    assert (size, row) == (count, 10)
    assert seconds < 1
    assert megabytes < 10  # the matrix alone is 160 MB
