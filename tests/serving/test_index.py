"""The index of items: what it finds beside plain sorting, its kinds and its changes."""

import shutil
from pathlib import Path

import clustered
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from forging import forge, listed_anew

from learn_torchrec.apps import build_index
from learn_torchrec.artifact import read_manifest
from learn_torchrec.errors import UserError
from learn_torchrec.serving import index_build
from learn_torchrec.serving.index import FLAT, HNSW, IVFPQ, KIND, ItemIndex

pytest.importorskip("faiss", reason="needs faiss-cpu")

ITEMS, USERS = clustered.unit_vectors(3000, 0), clustered.unit_vectors(50, 1)
IDS = [f"item-{n}" for n in range(3000)]


def build(tmp_path: Path, *arguments: str, items=ITEMS, ids=IDS, name="index") -> Path:
    vectors = tmp_path / f"vectors-{name}"
    clustered.write_vectors(vectors, ids, items, USERS)
    out = tmp_path / name
    build_index.main(["--vectors", str(vectors), "--out", str(out), *arguments])
    return out


@pytest.fixture(scope="module", params=index_build.KINDS)
def opened(request, tmp_path_factory: pytest.TempPathFactory) -> ItemIndex:
    folder = tmp_path_factory.mktemp(request.param)
    return ItemIndex.open(build(folder, "--kind", request.param))


def ids_of(index: ItemIndex, rows) -> list[str]:
    return index.items.index.ids.take(pa.array(rows)).to_pylist()


def recall(index: ItemIndex, allowed=None, k: int = 20) -> float:
    top = index.search(USERS.astype(np.float32), k)
    wanted = [clustered.best(ITEMS, user, k, allowed) for user in USERS]
    shared = [len(set(a) & set(b)) for a, b in zip(wanted, top.items, strict=True)]
    return sum(shared) / (k * len(USERS))


def test_it_finds_what_sorting_finds(opened: ItemIndex) -> None:
    assert recall(opened) >= (1.0 if opened.kind == FLAT else 0.97)
    top = opened.search(USERS.astype(np.float32), 20)
    exact = np.einsum("qkd,qd->qk", ITEMS[top.items].astype(np.float32), USERS)
    assert np.allclose(top.scores, exact, atol=2e-3)
    assert (np.diff(top.scores, axis=1) <= 1e-6).all()


def test_the_stated_recall_is_the_measured_one(opened: ItemIndex) -> None:
    facts = opened.manifest.facts
    assert facts["recall_at_100"] == pytest.approx(recall(opened, k=100), abs=2e-3)
    assert facts["recall_at_100"] >= 0.97
    assert (facts["kind"], facts["items"], facts["recall_users"]) == (
        opened.kind,
        3000,
        50,
    )


@pytest.mark.parametrize("share", [0.5, 0.01])
def test_only_allowed_items_are_found(opened: ItemIndex, share: float) -> None:
    allowed = np.random.default_rng(2).random(3000) < share
    restricted = opened.restricted(allowed)
    top = restricted.search(USERS.astype(np.float32), 20)
    assert allowed[top.items].all()
    assert recall(restricted, allowed) >= 0.95


def test_excluded_items_are_left_out(opened: ItemIndex) -> None:
    query = USERS[:2].astype(np.float32)
    first = opened.search(query, 10).items
    left_out = [first[0, :4], np.empty(0, np.int64)]
    again = opened.search(query, 10, left_out).items
    assert not np.isin(first[0, :4], again[0]).any()
    if opened.kind != IVFPQ:  # which finds more where it looks at more
        assert again[0, :6].tolist() == first[0, 4:].tolist()
        assert again[1].tolist() == first[1].tolist()
    assert len(set(again[0]) & set(first[0, 4:])) >= 5


def test_too_few_items_are_padded(opened: ItemIndex) -> None:
    allowed = np.zeros(3000, bool)
    allowed[[5, 7, 9]] = True
    top = opened.restricted(allowed).search(
        USERS[:1].astype(np.float32), 4, [np.array([7])]
    )
    assert set(top.items[0, :2]) == {5, 9}
    assert top.items[0, 2:].tolist() == [-1, -1]
    assert np.isneginf(top.scores[0, 2:]).all()


def test_all_items_can_be_asked_for(opened: ItemIndex) -> None:
    top = opened.search(USERS[:1].astype(np.float32), 3000)
    assert sorted(top.items[0]) == list(range(3000))


def test_vectors_of_another_length_are_refused(opened: ItemIndex) -> None:
    with pytest.raises(UserError, match="the index has 16 columns"):
        opened.search(np.zeros((1, 8), np.float32), 3)


@pytest.mark.parametrize(
    ("items", "memory", "kind"),
    [
        (50_000, 1 << 30, FLAT),
        (50_001, 1 << 30, HNSW),
        (1_000_000, 1 << 30, HNSW),
        (1_000_000, 128 << 20, IVFPQ),
        (30_000, 1 << 20, IVFPQ),
    ],
)
def test_the_kind_follows_from_size_and_memory(items, memory, kind) -> None:
    assert index_build.choose_kind(items, 64, memory) == kind


@pytest.mark.parametrize("kind", index_build.KINDS)
def test_an_update_equals_a_new_index(tmp_path: Path, kind: str) -> None:
    # 100 items leave, 60 come, 30 get another vector, and all stand elsewhere.
    items = np.concatenate([ITEMS[100:], clustered.unit_vectors(60, 7)])
    items[:30] = clustered.unit_vectors(30, 8)
    ids = [*IDS[100:], *(f"new-{n}" for n in range(60))]
    order = np.random.default_rng(4).permutation(len(items))
    items, ids = items[order], [ids[n] for n in order]
    earlier = build(tmp_path, "--kind", kind)
    before = sorted(path.read_bytes() for path in earlier.rglob("*") if path.is_file())
    options = ["--kind", kind, "--from", str(earlier)]
    out = build(tmp_path, *options, items=items, ids=ids, name="updated")
    updated = ItemIndex.open(out)

    assert updated.manifest.facts["removed"] == 130
    assert len(updated) == 2960
    top = updated.search(USERS.astype(np.float32), 50)
    wanted = [{ids[n] for n in clustered.best(items, user, 50)} for user in USERS]
    shared = [
        len(set(ids_of(updated, rows)) & best)
        for rows, best in zip(top.items, wanted, strict=True)
    ]
    assert sum(shared) / (50 * len(USERS)) >= (1.0 if kind == FLAT else 0.97)
    files = (path.read_bytes() for path in earlier.rglob("*") if path.is_file())
    assert sorted(files) == before


def test_too_many_changes_build_anew(tmp_path: Path, capsys) -> None:
    earlier = build(tmp_path)
    items = clustered.unit_vectors(3000, 9)
    out = build(tmp_path, "--from", str(earlier), items=items, name="new")
    assert "built anew" in capsys.readouterr().out
    assert read_manifest(out, KIND).facts["removed"] == 0


def test_titles_and_popularity_come_from_the_data(tmp_path: Path) -> None:
    vectors = clustered.write_vectors(
        tmp_path / "vectors", [1, 2, 3], ITEMS[:3], USERS[:2]
    )
    data = tmp_path / "data"
    data.mkdir()
    titles = {"item_id": [3, 1], "title": ["cup", "jug"]}
    pq.write_table(pa.table(titles), data / "items.parquet")
    log = {"user_id": [0, 0, 1], "item_id": [3, 1, 3], "timestamp": [5, 6, 7]}
    log["action"] = ["buy"] * 3
    pq.write_table(pa.table(log), data / "interactions.parquet")
    command = ["--vectors", str(vectors), "--out", str(tmp_path / "index")]
    build_index.main([*command, "--data", f"parquet:{data}"])
    index = ItemIndex.open(tmp_path / "index")
    assert index.titles.to_pylist() == ["jug", None, "cup"]
    assert index.popular.tolist() == [2, 0, 1]


def test_without_data_the_average_user_decides(tmp_path: Path) -> None:
    index = ItemIndex.open(build(tmp_path))
    mean = USERS.astype(np.float32).mean(axis=0)
    assert index.popular[:20].tolist() == clustered.best(ITEMS, mean, 20)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--memory-mb", "0"], "--memory-mb 0: use 1 or more"),
        (["--recall", "1.5"], "--recall 1.5: use a share"),
        (["--from", "nowhere"], "no index artefact here"),
    ],
)
def test_unfit_options_are_refused(tmp_path: Path, arguments, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(tmp_path, *arguments)
    assert not (tmp_path / "index").exists()


def test_other_ids_cannot_be_updated(tmp_path: Path) -> None:
    earlier = build(tmp_path)
    with pytest.raises(UserError, match="vectors or ids of another kind"):
        build(tmp_path, "--from", str(earlier), ids=range(3000), name="numbers")


def test_a_damaged_index_is_named(tmp_path: Path) -> None:
    out = build(tmp_path)
    path = out / "index.faiss"
    content = bytearray(path.read_bytes())
    content[:8] = b"\0" * 8
    path.write_bytes(bytes(content))
    with pytest.raises(
        UserError, match=r"damaged .*index.faiss.*build the index again"
    ):
        ItemIndex.open(out)


@pytest.mark.parametrize("name", ["positions.npy", "popular.npy"])
@pytest.mark.parametrize(
    "rows",
    [np.full(3000, 3000), np.full(3000, -2), np.zeros((2, 2), np.int64), np.ones(3)],
    ids=["beyond", "below", "a matrix", "fractions"],
)
def test_forged_rows_are_refused(tmp_path: Path, name: str, rows) -> None:
    out = build(tmp_path)
    np.save(out / name, rows)
    listed_anew(out)
    with pytest.raises(UserError, match=f"damaged .{name}: no rows of the items"):
        ItemIndex.open(out)


def test_parts_of_another_index_are_refused(tmp_path: Path) -> None:
    out = build(tmp_path)
    other = build(tmp_path, items=ITEMS[:5], ids=IDS[:5], name="other")
    shutil.copy(other / "index.faiss", out / "index.faiss")
    listed_anew(out)
    with pytest.raises(UserError, match=r"damaged .index\.faiss: of other vectors"):
        ItemIndex.open(out)


def test_forged_facts_are_refused(tmp_path: Path) -> None:
    out = build(tmp_path)
    forge(out, lambda body: body["facts"].update(recall_at_100="perfect"))
    with pytest.raises(UserError, match=r"damaged .*perfect"):
        ItemIndex.open(out)
