"""Codes of content: a naive reference, collisions by hand, items that are added."""

import logging
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from learn_torchrec.apps import encode_codes
from learn_torchrec.artifact import read_manifest
from learn_torchrec.content import codebook, codes
from learn_torchrec.content.codebook import CodesConfig, fit_codebook, nearest
from learn_torchrec.content.codes import ContentCodes, describe_codes, joined
from learn_torchrec.content.store import KIND, ContentStore, write_content_store
from learn_torchrec.errors import UserError
from learn_torchrec.ids import IdIndex
from learn_torchrec.publish import write_artifact

# 4 corners far apart, in each of them 3 places: two levels describe a vector.
CORNERS = np.array([[0, 0, 0], [90, 0, 0], [0, 90, 0], [0, 0, 90]], np.float32)
PLACES = np.array([[4, 0, 0], [0, 4, 0], [0, 0, 4]], np.float32)


def write(directory: Path, vectors: Any, ids: Any = None, **facts: Any) -> ContentStore:
    ids = np.arange(len(vectors)) if ids is None else ids
    config = {"content": {"prompt": facts.pop("prompt", "a")}}
    facts = {"encoder": "e", **facts}
    with write_artifact(
        directory, kind=KIND, config=config, inputs={}, facts=facts
    ) as out:
        write_content_store(out, pa.array(ids), np.asarray(vectors, np.float32))
    return ContentStore.open(directory)


def run(out: Path, content: Path, *options: str) -> ContentCodes:
    encode_codes.main([f"--content={content}", f"--out={out}", *options])
    return ContentCodes.open(out)


@pytest.fixture
def clusters(tmp_path: Path) -> tuple[Path, np.ndarray, np.ndarray]:
    """A store of 240 items in a known corner and place."""
    random = np.random.default_rng(5)
    corners, places = random.integers(0, 4, 240), random.integers(0, 3, 240)
    noise = random.normal(scale=0.05, size=(240, 3))
    write(tmp_path / "content", CORNERS[corners] + PLACES[places] + noise)
    return tmp_path / "content", corners, places


def test_codes_of_separable_clusters_are_the_clusters(clusters, tmp_path):
    content, corners, places = clusters
    raw = ["--set=codes.standardize=false", "--set=codes.levels=2"]
    found = run(tmp_path / "codes", content, "--set=codes.codes_per_level=4", *raw)
    assert found.codes.dtype == np.int16
    pairs = set(zip(corners.tolist(), found.codes[:, 0].tolist(), strict=True))
    assert len(pairs) == 4  # one to one
    both = set(
        zip(*(x.tolist() for x in (corners, places, *found.codes.T)), strict=True)
    )
    assert len(both) == 12
    facts = found.manifest.facts
    assert facts["used"][0] == 4
    first, second = facts["variance_explained"]
    assert 0.99 < first < second < 1
    assert second > 0.9999


@pytest.mark.parametrize("standardize", [True, False])
@pytest.mark.parametrize("components", [5, 64])
def test_codes_equal_a_naive_loop(store, standardize, components, monkeypatch):
    config = CodesConfig(
        codes_per_level=5, standardize=standardize, components=components
    )
    monkeypatch.setattr("learn_torchrec.matrix._BLOCK_BYTES", 8 * 12 * 7)
    book = fit_codebook(store, config)
    found, left = book.encode(store.vectors)
    vectors = np.asarray(store.vectors).astype(np.float64)
    std = vectors.std(axis=0) if standardize else np.ones(12)
    centred = (vectors - vectors.mean(axis=0)) / std
    kept = np.linalg.svd(centred)[2][:components]
    directions = book.projection * std[:, None]
    np.testing.assert_allclose(directions @ directions.T, kept.T @ kept, atol=1e-6)
    expected_left = np.zeros(4)
    for item in range(40):
        rest = centred[item] @ directions
        expected_left[0] += rest @ rest
        for level in range(3):
            squares = [np.square(rest - c).sum() for c in book.centroids[level]]
            assert found[item, level] == np.argmin(squares)
            rest = rest - book.centroids[level][np.argmin(squares)]
            expected_left[level + 1] += rest @ rest
    np.testing.assert_allclose(left, expected_left, rtol=1e-9)
    if components == 64:
        assert left[0] == pytest.approx(np.square(centred).sum())


def test_centroids_are_means_of_what_earlier_levels_leave_over(store):
    config = CodesConfig(levels=2, codes_per_level=3, iterations=100)
    book = fit_codebook(store, config)
    found, _ = book.encode(store.vectors)
    rest = (np.asarray(store.vectors) - book.mean) @ book.projection
    for level in range(2):
        for code in range(3):
            own = rest[found[:, level] == code]
            np.testing.assert_allclose(
                book.centroids[level, code], own.mean(axis=0), atol=1e-5
            )
        rest = rest - book.centroids[level][found[:, level]]


def test_fewer_components_keep_more_items_apart(tmp_path):
    """In 400 dims of noise most items are nearest to the centroid of many."""
    random = np.random.default_rng(5)
    topics = random.normal(size=(1500, 12)) @ random.normal(size=(12, 400))
    lengths = random.lognormal(sigma=0.5, size=(1500, 1))
    vectors = lengths * (topics + 6 * random.normal(size=(1500, 400)))
    content = write(tmp_path / "content", vectors).directory
    distinct = {}
    for components in (400, 16):
        setting = f"--set=codes.components={components}"
        found = run(tmp_path / str(components), content, setting)
        distinct[components] = found.manifest.facts["distinct"]
    assert distinct[16] > 1.5 * distinct[400]


def test_collisions_by_hand():
    """K = 3: codes 01, 01, 02, 20 and 20, 20 again: three share one, two another."""
    rows = np.array([[0, 1], [0, 1], [0, 2], [2, 0], [2, 0], [2, 0]], np.int16)
    assert joined(rows, 3).tolist() == [1, 1, 2, 6, 6, 6]
    facts = describe_codes(rows, np.array([8.0, 2.0, 1.0]), 3)
    assert facts["items"] == 6
    assert facts["distinct"] == 3
    assert facts["sharing"] == pytest.approx(5 / 6)
    assert facts["largest_group"] == 3
    assert facts["used"] == [2, 3]
    # Level 1: a half each. Level 2: 3, 2 and 1 of 6.
    assert facts["entropy_bits"] == pytest.approx([1.0, 1.459148], abs=1e-6)
    assert facts["variance_explained"] == [0.75, 0.875]
    *levels, summary = codes.codes_table(facts).splitlines()
    assert [line.split() for line in levels[1:]] == [
        ["1", "2/3", "1.00", "75.0%"],
        ["2", "3/3", "1.46", "87.5%"],
    ]
    assert "6 items have 3 distinct codes: 83.3% of the items share theirs" in summary


def test_a_tie_goes_to_the_first_code_whatever_rounding_says():
    centroids = np.array([[1.0, 0.1], [0.1, 1.0], [1.0, 0.1]], np.float32)
    middle = np.array([[0.3, 0.3 + 1e-14], [0.3, 0.3], [2.0, 0.0], [0.0, 2.0]])
    squares = np.square(middle).sum(axis=1, keepdims=True)
    assert nearest(middle, centroids, squares).tolist() == [0, 0, 0, 1]
    # Nothing but rounding is left of vectors of length 1.
    rest = np.array([[1e-9, -1e-9], [-1e-9, 1e-9]])
    centroids = rest.astype(np.float32)
    assert nearest(rest, centroids, np.ones((2, 1))).tolist() == [0, 0]
    assert nearest(rest, centroids, np.square(rest).sum(1, keepdims=True))[1] == 1


def test_equal_content_has_equal_codes_beside_any_other_items(tmp_path):
    random = np.random.default_rng(5)
    vectors = random.normal(size=(300, 24)).astype(np.float32)
    vectors[200:] = vectors[:100]
    first = run(tmp_path / "a", write(tmp_path / "one", vectors).directory)
    assert (first.codes[200:] == first.codes[:100]).all()
    again = run(tmp_path / "b", tmp_path / "one")
    files = ("codebook.npy", "codes.npy", "mean.npy", "projection.npy")
    for name in files:
        stored = ((tmp_path / out / name).read_bytes() for out in "ab")
        assert len(set(stored)) == 1, name
    order = random.permutation(300)
    write(tmp_path / "other", vectors[order[:177]], order[:177])
    part = run(tmp_path / "c", tmp_path / "other", f"--codebook={tmp_path / 'a'}")
    assert (part.codes == again.codes[order[:177]]).all()


def test_items_that_are_added_move_no_others(tmp_path, capsys):
    random = np.random.default_rng(5)
    ids = [f"i{n}" for n in range(200)]
    vectors = random.normal(size=(200, 16)).astype(np.float32)
    before = run(tmp_path / "may", write(tmp_path / "old", vectors, ids).directory)
    # 60 items go, 3 have a new text, 1000 others come and shift mean and deviation.
    kept, changed = np.arange(60, 200), [60, 100, 199]
    later = vectors.copy()
    later[changed] = -later[changed]
    fresh = random.normal(loc=3, scale=5, size=(1000, 16)).astype(np.float32)
    new_ids = [f"n{n}" for n in range(1000)] + [ids[n] for n in kept]
    write(tmp_path / "new", np.concatenate([fresh, later[kept]]), new_ids)
    capsys.readouterr()
    option = f"--codebook={tmp_path / 'may'}"
    now = run(tmp_path / "june", tmp_path / "new", option)
    same = np.setdiff1d(kept, changed)
    rows = now.index.rows_of(pa.array([ids[n] for n in same], pa.large_string()))
    assert (now.codes[rows] == before.codes[same]).all()
    assert now.manifest.facts["new"] == 1000
    assert now.manifest.facts["changed"] == 3
    assert "1,000 items are new; 3 others have" in capsys.readouterr().out
    books = [codes.codebook_fingerprint(tmp_path / name) for name in ("may", "june")]
    assert books[0] == books[1]
    # And once more, from codes that were themselves added to.
    run(tmp_path / "july", tmp_path / "old", f"--codebook={tmp_path / 'june'}")
    july = ContentCodes.open(tmp_path / "july")
    assert (july.codes == before.codes).all()
    assert codes.codebook_fingerprint(tmp_path / "july") == books[0]


def test_changes_are_counted_by_item(tmp_path, store):
    before = run(tmp_path / "codes", store.directory)
    rows = np.array(before.codes)
    rows[[3, 5], [0, 2]] += 1  # one code of an item is enough
    assert before.changes(before.index, rows) == {"new": 0, "changed": 2}
    grown = IdIndex.build(pa.array([*range(100, 140), 7]), "items")
    rows = np.concatenate([rows, rows[:1]])
    assert before.changes(grown, rows) == {"new": 1, "changed": 2}


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("encoder", {"encoder": "f"}),
        ("prompt", {"prompt": "b"}),
        ("dim", {"vectors": np.ones((40, 5))}),
    ],
)
def test_content_of_another_space_is_refused(tmp_path, name, other):
    random = np.random.default_rng(5)
    vectors = random.normal(size=(40, 4))
    run(tmp_path / "codes", write(tmp_path / "one", vectors).directory)
    write(tmp_path / "two", other.pop("vectors", vectors), **other)
    with pytest.raises(UserError, match=f"fitted to content with another {name} than"):
        run(tmp_path / "x", tmp_path / "two", f"--codebook={tmp_path / 'codes'}")
    assert not (tmp_path / "x").exists()


def test_a_codebook_keeps_its_settings(tmp_path, store):
    content, option = store.directory, f"--codebook={tmp_path / 'codes'}"
    run(tmp_path / "codes", content, "--set=codes.levels=2")
    assert run(tmp_path / "more", content, option).levels == 2
    with pytest.raises(UserError, match=r"codes\.levels: is 4, but --codebook"):
        run(tmp_path / "x", content, option, "--set=codes.levels=4")


def test_ids_of_another_type_are_refused(tmp_path, store):
    run(tmp_path / "codes", store.directory)
    words = [str(n) for n in range(40)]
    facts = {"encoder": None, "prompt": None}
    write(tmp_path / "words", np.ones((40, 12)), words, **facts)
    with pytest.raises(UserError, match="ids are string, but int64"):
        run(tmp_path / "x", tmp_path / "words", f"--codebook={tmp_path / 'codes'}")


@pytest.mark.parametrize(
    ("items", "size"), [(1, 2), (40, 2), (1682, 32), (9_984, 256), (10**7, 256)]
)
def test_codes_of_a_level_follow_the_number_of_items(items, size):
    assert CodesConfig().size(items) == size
    assert CodesConfig(codes_per_level=1000).size(items) == 1000


def test_too_few_items_are_refused(tmp_path, store):
    setting = "--set=codes.codes_per_level=41"
    with pytest.raises(UserError, match="41 codes, but 40 items of"):
        run(tmp_path / "x", store.directory, setting)
    fewer = ("--set=codes.codes_per_level=30", "--set=codes.fit_items=20")
    with pytest.raises(UserError, match="30 codes, but 20 items of"):
        run(tmp_path / "x", store.directory, *fewer)
    with pytest.raises(ValueError, match="do not fit int64 as one id"):
        CodesConfig(levels=8)


def test_fewer_vectors_than_codes_still_have_equal_codes(tmp_path, caplog):
    """Many titles repeat in a shop: FAISS then splits centroids into equal halves."""
    random = np.random.default_rng(5)
    vectors = np.repeat(random.normal(size=(3, 8)), 20, axis=0)
    content = write(tmp_path / "content", vectors).directory
    with caplog.at_level(logging.INFO):
        found = run(tmp_path / "codes", content, "--set=codes.codes_per_level=8")
    assert len(np.unique(found.codes, axis=0)) == 3
    assert found.manifest.facts["sharing"] == 1


def test_faiss_that_is_missing_is_named(tmp_path, store, monkeypatch):
    run(tmp_path / "codes", store.directory)
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(UserError, match="encode-codes needs FAISS: pip install faiss"):
        run(tmp_path / "x", store.directory)
    # A codebook that exists needs no clustering.
    run(tmp_path / "more", store.directory, f"--codebook={tmp_path / 'codes'}")


def test_only_the_sample_is_fitted(tmp_path, monkeypatch):
    random = np.random.default_rng(5)
    seen: list[int] = []
    fit = codebook._k_means

    def spy(points: Any, size: int, config: CodesConfig) -> Any:
        seen.append(len(points))
        return fit(points, size, config)

    monkeypatch.setattr(codebook, "_k_means", spy)
    content = write(tmp_path / "content", random.normal(size=(1000, 4))).directory
    found = run(tmp_path / "codes", content, "--set=codes.codes_per_level=3")
    assert seen == [768] * 3
    assert len(found.codes) == 1000


def test_finished_codes_are_reused_and_damage_is_named(tmp_path, store):
    run(tmp_path / "codes", store.directory)
    made = read_manifest(tmp_path / "codes", codes.KIND).created
    run(tmp_path / "codes", store.directory)
    assert read_manifest(tmp_path / "codes", codes.KIND).created == made
    (tmp_path / "codes" / "codes.npy").write_bytes(b"")
    with pytest.raises(UserError, match="encode the codes again"):
        ContentCodes.open(tmp_path / "codes")
