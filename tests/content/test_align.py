"""A new encoder's content is brought into an earlier encoder's space."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from learn_torchrec.apps import align_space
from learn_torchrec.content.align import Alignment, SharedItems
from learn_torchrec.content.store import KIND, ContentStore, write_content_store
from learn_torchrec.errors import UserError
from learn_torchrec.publish import write_artifact
from learn_torchrec.spaces import SPACE, space, space_of

ITEMS, DIM, WIDER = 600, 8, 12


def write(directory, ids, vectors, encoder):
    facts = {SPACE: space(encoder=encoder, prompt="p")}
    with write_artifact(
        directory, kind=KIND, config={}, inputs={"of": encoder}, facts=facts
    ) as out:
        write_content_store(out, pa.array(ids), vectors)
    return ContentStore.open(directory)


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.fixture
def vectors():
    """Two encoders' vectors of the same 650 items: a rotation, and wider with noise."""
    random = np.random.default_rng(0)
    meaning = random.normal(size=(ITEMS + 50, DIM))
    rotation, _ = np.linalg.qr(random.normal(size=(DIM, DIM)))
    wider = meaning @ random.normal(size=(DIM, WIDER))
    wider += 0.05 * random.normal(size=wider.shape)
    return meaning + 3, meaning @ rotation - 1, wider


@pytest.fixture
def stores(vectors, tmp_path):
    """The old store has 600 items, the new ones those but ten, and 50 later ones."""
    old = write(tmp_path / "old", range(ITEMS), vectors[0][:ITEMS], "one")
    ids = range(10, ITEMS + 50)
    rotated = write(tmp_path / "rotated", ids, vectors[1][10:], "two")
    wider = write(tmp_path / "wider", ids, vectors[2][10:], "three")
    return old, rotated, wider


@pytest.mark.parametrize("method", ["ridge", "procrustes"])
def test_a_rotation_is_undone(stores, vectors, method):
    old, rotated, _ = stores
    shared = SharedItems.of(old, rotated)
    assert len(shared.old) == ITEMS - 10
    assert (old.item_ids.take(pa.array(shared.old))).equals(
        rotated.item_ids.take(pa.array(shared.new))
    )
    mapped = Alignment.fit(old, rotated, shared, method).apply(vectors[1][ITEMS:])
    # A rotation of standardized dims is nearly one of the dims.
    tolerance = 0.03 if method == "ridge" else 0.5
    assert np.abs(mapped - vectors[0][ITEMS:]).max() < tolerance


def test_noise_is_not_fitted_and_other_dims_are_mapped(stores, vectors):
    old, _, wider = stores
    shared = SharedItems.of(old, wider)
    mapped = Alignment.fit(old, wider, shared, "ridge").apply(vectors[2][ITEMS:])
    error = np.abs(mapped - vectors[0][ITEMS:]).mean()
    assert mapped.shape == (50, DIM)
    assert error < 0.15  # of a standard deviation of 1
    with pytest.raises(UserError, match=r"has 12 dims and .* 8; use --method ridge"):
        Alignment.fit(old, wider, shared, "procrustes")


def test_unit_vectors_stay_unit_vectors(vectors, tmp_path):
    old = write(tmp_path / "old", range(ITEMS), unit(vectors[0][:ITEMS]), "one")
    new = write(tmp_path / "new", range(ITEMS), unit(vectors[1][:ITEMS]), "two")
    alignment = Alignment.fit(old, new, SharedItems.of(old, new), "ridge")
    lengths = np.linalg.norm(alignment.apply(unit(vectors[1])), axis=1)
    assert np.allclose(lengths, 1, atol=1e-5)


def test_the_output_is_in_the_old_space(stores, vectors, tmp_path, capsys):
    old, rotated, _ = stores
    out = tmp_path / "aligned"
    given = [str(old.directory), str(rotated.directory)]
    align_space.main([*given, "--out", str(out)])
    aligned = ContentStore.open(out)
    assert aligned.item_ids.equals(rotated.item_ids)
    assert space_of(aligned.manifest) == space_of(old.manifest)
    found = aligned.gather(np.arange(len(aligned)))
    known, new = found[: ITEMS - 10], found[ITEMS - 10 :]
    assert np.array_equal(known, old.gather(np.arange(10, ITEMS)))  # to the bit
    assert np.abs(new - vectors[0][ITEMS:]).max() < 0.02
    cost = aligned.manifest.facts["alignment"]["all"]
    assert cost["items"] == 59
    assert cost["cosine"] > 0.999
    assert cost["neighbours"] > 0.95
    assert "all" in capsys.readouterr().out
    # As if the old encoder were gone.
    align_space.main([*given, "--map-known", "--out", str(tmp_path / "mapped")])
    mapped = ContentStore.open(tmp_path / "mapped")
    assert mapped.manifest.facts["mapped"] == len(mapped)
    assert not np.array_equal(mapped.gather(np.arange(5)), known[:5])
    # The map stays tomorrow, whatever else is shared then.
    more = write(tmp_path / "more", range(300, ITEMS + 50), vectors[1][300:], "two")
    given = [str(old.directory), str(more.directory), "--map", str(out)]
    align_space.main([*given, "--out", str(tmp_path / "tomorrow")])
    later = ContentStore.open(tmp_path / "tomorrow").gather(np.arange(300, 350))
    assert np.array_equal(later, new)


def test_costs_are_stated_by_cohort(stores, tmp_path, market):
    old, _, wider = stores
    # The market's log: events of the items 100 to 139.
    items = pq.read_table(market / "items.parquet")
    ids = pa.array(range(ITEMS), items.schema.field("item_id").type)
    table = pa.table({"item_id": ids, "title": [f"thing {n}" for n in range(ITEMS)]})
    pq.write_table(table, market / "items.parquet")
    out = tmp_path / "aligned"
    given = [str(old.directory), str(wider.directory), "--out", str(out)]
    align_space.main([*given, "--data", f"parquet:{market}"])
    costs = json.loads((out / "manifest.json").read_text())["facts"]["alignment"]
    assert costs["item_cold"]["items"] + costs["item_others"]["items"] == 59
    assert costs["item_cold"]["items"] > 40
    assert 0.9 < costs["all"]["cosine"] < 0.9999
    assert costs["all"]["neighbours"] < 0.99


def test_what_cannot_be_aligned_is_one_line(stores, vectors, tmp_path):
    old, rotated, wider = stores
    out = ["--out", str(tmp_path / "out")]
    few = write(tmp_path / "few", range(580, 640), vectors[1][580:640], "two")
    with pytest.raises(UserError, match="share 20 items, at least 50 are needed"):
        align_space.main([str(old.directory), str(few.directory), *out])
    same = write(tmp_path / "same", range(ITEMS), vectors[0][:ITEMS], "one")
    with pytest.raises(UserError, match=r"is in the space of .* already"):
        align_space.main([str(old.directory), str(same.directory), *out])
    align_space.main([str(old.directory), str(rotated.directory), *out])
    given = [str(old.directory), str(wider.directory), "--map", str(tmp_path / "out")]
    with pytest.raises(UserError, match="is no map from 12 dims to the space of"):
        align_space.main([*given, "--out", str(tmp_path / "other")])
    given = [str(old.directory), str(rotated.directory), "--map", str(old.directory)]
    with pytest.raises(UserError, match="name an output of align-space"):
        align_space.main([*given, "--out", str(tmp_path / "other")])
