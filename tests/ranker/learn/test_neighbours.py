"""Past conversions of similar items, beside a naive reference."""

import numpy as np
import pyarrow as pa
import pytest

from learn_torchrec.ids import IdIndex
from learn_torchrec.ranker.learn.neighbours import NeighbourRates, PastLabels
from learn_torchrec.ranker.learn.reduced import ReducedContent


def unit(vectors):
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)


def content(items=30, texts=12, neighbours=5, seed=0):
    random = np.random.default_rng(seed)
    distinct = unit(random.normal(size=(texts, 6)))
    of = np.r_[np.arange(texts), random.integers(0, texts, size=items - texts)]
    index = IdIndex.build(pa.array(range(items)), "items")
    return ReducedContent.build(index, distinct[of], neighbours)


def test_texts_are_equal_vectors_and_neighbours_are_others():
    made = content()
    vectors = np.asarray(made.vectors, np.float64)
    same = (vectors[:, None] == vectors).all(axis=2)
    assert np.array_equal(made.texts[:, None] == made.texts, same)
    first = [np.flatnonzero(made.texts == text)[0] for text in range(12)]
    cosines = vectors[first] @ vectors[first].T
    np.fill_diagonal(cosines, -2)
    assert np.array_equal(made.neighbours, np.argsort(-cosines, axis=1)[:, :5])
    np.testing.assert_allclose(
        made.similarities, -np.sort(-cosines, axis=1)[:, :5], atol=1e-3
    )


def test_a_catalogue_of_one_text_has_no_neighbours():
    index = IdIndex.build(pa.array(range(3)), "items")
    made = ReducedContent.build(index, unit(np.ones((3, 4))), 5)
    assert made.texts.tolist() == [0, 0, 0]
    assert made.neighbours.shape == (1, 0)


def labelled(seed=0, rows=400, items=30):
    random = np.random.default_rng(seed)
    return (
        random.integers(0, items, size=rows),
        random.integers(0, 50, size=rows),
        random.integers(0, 2, size=rows),
    )


def rates(made, items, times, labels, k=3):
    texts = np.asarray(made.texts)[items].astype(np.int64)
    past = PastLabels.of(texts, items, times, labels)
    return NeighbourRates(made, [past], k)


@pytest.mark.parametrize("seed", range(3))
def test_rates_are_what_a_naive_loop_finds(seed):
    made = content(seed=seed)
    items, times, labels = labelled(seed)
    found = rates(made, items, times, labels).of(items, times)
    for row in range(0, len(items), 7):
        earlier = times < times[row]
        overall = (labels[earlier].sum() + 1) / (earlier.sum() + 2)
        text, shown, yes = made.texts[items[row]], 0.0, 0.0
        near = zip(made.neighbours[text][:3], made.similarities[text][:3], strict=True)
        pairs = [(text, 1.0)]
        pairs += [(one, np.exp((float(s) - 1) / 0.15)) for one, s in near]
        for other, weight in pairs:
            counts = earlier & (made.texts[items] == other) & (items != items[row])
            shown += weight * counts.sum()
            yes += weight * labels[counts].sum()
        odds = (yes + 10 * overall) / (shown - yes + 10 * (1 - overall))
        expected = np.log(odds) - np.log(overall / (1 - overall)), np.log1p(shown)
        assert found[row] == pytest.approx(expected, abs=1e-4)


def test_nothing_of_a_moment_or_later_counts():
    made = content()
    items, times, labels = labelled()
    moment = 25
    before = rates(made, items, times, labels).of(items, np.full(len(items), moment))
    later = times >= moment
    labels = np.where(later, 1 - labels, labels)
    items_then = np.where(later, items[::-1], items)
    again = rates(made, items_then, times, labels).of(
        items, np.full(len(items), moment)
    )
    assert np.array_equal(before, again)


def test_an_unknown_item_and_no_impressions_give_zeros():
    made = content()
    items, times, labels = labelled()
    found = rates(made, items, times, labels)
    assert found.of(np.array([-1]), np.array([99])).tolist() == [[0.0, 0.0]]
    none = np.empty(0, np.int64)
    empty = rates(made, none, none, none)
    assert empty.of(np.array([3]), np.array([99])).tolist() == [[0.0, 0.0]]
    assert empty.width == 2
