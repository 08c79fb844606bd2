"""Candidates that the bundle does not know, with content of their own."""

import dataclasses

import numpy as np
import pytest

from learn_torchrec.content.store import ContentStore
from learn_torchrec.errors import UserError
from learn_torchrec.serving.request import ExtraItem, RankRequest
from learn_torchrec.spaces import space_of

NEW, OLD = 900, 107


@pytest.fixture(scope="module")
def runner(exported):
    return exported.runner()


@pytest.fixture(scope="module")
def store(exported):
    return ContentStore.open(exported.content)


def test_a_new_item_meets_the_history_by_its_content(exported, runner, store):
    """With the content of a known item it gets its cosines with the history."""
    content = np.asarray(store.vectors[OLD - 100])
    extra = {NEW: ExtraItem(content)}
    request = RankRequest(7, [OLD, NEW], runner.as_of, {}, (), extra)
    asked = [request, RankRequest(8, [NEW], runner.as_of)]
    rows = []
    kept = runner._model.scores
    runner._model.scores = lambda *given: rows.append(given[1]) or kept(*given)
    try:
        (known, new), (cold,) = runner.rank(asked)
    finally:
        del runner._model.scores

    (learn,) = rows
    assert learn.has_vectors[:, 1].tolist() == [True, True, False]
    assert (learn.candidates[0] == learn.candidates[1]).all()
    assert (learn.candidates[2] == 0).all()
    # All but what counts the item itself, which nobody has met.
    nearest = learn.statistics[:, 2]
    assert nearest[0] == nearest[1] != 0
    assert learn.neighbour_rates[1].tolist() == [0, 0]
    bare = runner.rank([dataclasses.replace(request, extra_items={})])[0]
    assert bare[0] == known
    assert abs(bare[1] - new) > 1e-4
    assert np.isfinite(cold).all()


def test_items_of_another_space_are_ranked_cold(runner, store):
    space = space_of(store.manifest)
    assert runner.reads_of_new(space) == {"content"}
    own = space_of(runner.manifest)
    part = next(name for name in own if name != "id")
    assert runner.reads_of_new({**space, part: "another"}) == frozenset()


def test_of_a_known_item_the_bundle_content_counts(runner, store):
    content = np.asarray(store.vectors[3])
    plain = RankRequest(7, [OLD], runner.as_of)
    told = RankRequest(7, [OLD], runner.as_of, {}, (), {OLD: ExtraItem(content)})

    one, other = runner.rank([plain, told])

    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (np.ones(5), r"content of 900 has the shape \(5,\), not \(12,\)"),
        (np.full(12, np.nan), "content of 900 is not finite"),
        (np.full(12, 1e30), "content of 900 is not finite"),
    ],
)
def test_bad_content_is_refused(runner, content, message):
    extra = {NEW: ExtraItem(content)}
    with pytest.raises(UserError, match=message):
        runner.rank([RankRequest(7, [NEW], runner.as_of, {}, (), extra)])
