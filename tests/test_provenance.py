"""Which artefacts a stage may read, by their manifests."""

import pytest

from learn_torchrec import provenance
from learn_torchrec.artifact import Manifest
from learn_torchrec.errors import UserError

SPLIT = {"holdout": "new_users", "towers_until": "50%", "actions": ["like"]}
LOG = "interactions.parquet"


def model(cutoff=None, split=SPLIT, **inputs) -> Manifest:
    return Manifest(
        kind="towers",
        recipe="r",
        config={"split": split},
        inputs={LOG if role == "log" else role: of for role, of in inputs.items()},
        cutoff=cutoff,
    )


# --- no leak ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cutoff", "start"),
    [(100, 100), (100, 101), (None, 0), (100, None), (None, None), (0, 0)],
)
def test_what_starts_at_the_cutoff_or_later_is_no_leak(cutoff, start):
    provenance.refuse_leak(model(cutoff), "runs/t", start, "events", "wait")
    provenance.refuse_vectors_leak(model(cutoff), start, "score")


@pytest.mark.parametrize(("cutoff", "start"), [(100, 99), (1, 0), (0, -1)])
def test_what_starts_before_the_cutoff_is_a_leak(cutoff, start):
    with pytest.raises(UserError) as caught:
        provenance.refuse_leak(model(cutoff), "runs/t", start, "events", "wait")
    assert str(caught.value) == (
        f"leak: runs/t learned from events up to {cutoff}, but events start at {start} "
        "(unix seconds); wait"
    )


def test_a_leak_of_vectors_names_the_towers_and_the_setting():
    with pytest.raises(UserError) as caught:
        provenance.refuse_vectors_leak(model(100), 99, "train on")
    assert str(caught.value) == (
        "leak: the vectors' towers learned from events up to 100, but the impressions "
        "to train on start at 99 (unix seconds); train the towers with an earlier "
        "split.towers_until, or use later impressions"
    )


# --- same inputs ------------------------------------------------------------------

OPTIONS = {"towers": "vectors", "content": "content"}


@pytest.mark.parametrize(
    ("trained", "given"),
    [
        ({}, {}),
        ({"towers": "a"}, {"towers": "a"}),
        ({"towers": "a", "log": "x"}, {"towers": "a", "log": "y", "warm_start": "z"}),
        ({"content": "b"}, {"content": "b"}),
    ],
)
def test_the_inputs_of_its_training_are_taken(trained, given):
    provenance.refuse_other_inputs(model(**trained), "runs/r", given, OPTIONS)


@pytest.mark.parametrize(
    ("trained", "given", "message"),
    [
        ({"towers": "a"}, {}, "was trained with vectors; add --vectors"),
        ({"content": "b"}, {}, "was trained with content; add --content"),
        ({}, {"towers": "a"}, "was trained without vectors; leave out --vectors"),
        (
            {"content": "b"},
            {"towers": "a", "content": "b"},
            "was trained without vectors; leave out --vectors",
        ),
        (
            {"towers": "a"},
            {"towers": "c"},
            "was trained with other towers than --vectors gives; pass those of its "
            "training",
        ),
    ],
)
def test_other_inputs_are_refused(trained, given, message):
    with pytest.raises(UserError) as caught:
        provenance.refuse_other_inputs(model(**trained), "runs/r", given, OPTIONS)
    assert str(caught.value) == f"runs/r: {message}"


def test_the_origin_of_an_artefact_is_its_input_or_itself():
    ours, foreign = model(towers="abc"), model()
    assert provenance.origin(ours, "towers") == "abc"
    assert provenance.origin(foreign, "towers") == foreign.fingerprint


# --- same split -------------------------------------------------------------------


def test_the_split_of_its_training_is_taken():
    provenance.refuse_other_split(model(), "runs/t", dict(SPLIT))


@pytest.mark.parametrize(
    ("setting", "value"), [("towers_until", "40%"), ("actions", ["buy"]), ("new", 1)]
)
def test_another_split_is_refused(setting, value):
    with pytest.raises(UserError) as caught:
        provenance.refuse_other_split(model(), "runs/t", {**SPLIT, setting: value})
    assert str(caught.value) == (
        f"split.{setting} is {value}, but runs/t was trained with "
        f"{SPLIT.get(setting)}; pass the --preset, --config or --set of its training"
    )


BY_TIME = {**SPLIT, "holdout": "time"}


@pytest.mark.parametrize(
    ("trained", "log", "split"),
    [
        (BY_TIME, "x", BY_TIME),  # the same rule
        (BY_TIME, "w", SPLIT),  # another log, and the cut-offs tell
        (BY_TIME, "y", BY_TIME),  # another log, the same users
        (SPLIT, "x", {**SPLIT, "towers_until": "40%"}),  # the cut-offs tell
    ],
)
def test_weights_that_cannot_know_what_is_held_out(trained, log, split):
    earlier = model(split=trained, log="x")
    provenance.refuse_known_holdout(earlier, "runs/t", log, split)


@pytest.mark.parametrize(
    ("trained", "split", "names"),
    [
        (BY_TIME, SPLIT, "split.holdout is new_users"),
        (SPLIT, BY_TIME, "split.holdout is time"),
        (BY_TIME, {**BY_TIME, "towers_until": "40%"}, "split.towers_until is 40%"),
    ],
)
def test_weights_that_may_know_what_is_held_out(trained, split, names):
    with pytest.raises(UserError) as caught:
        provenance.refuse_known_holdout(model(split=trained, log="x"), "t", "x", split)
    assert str(caught.value).startswith(f"leak: {names}, but t was trained with ")
    assert "on the same interactions" in str(caught.value)


LAST = {**SPLIT, "holdout": "leave_one_out"}


@pytest.mark.parametrize(
    ("trained", "split"),
    [(BY_TIME, LAST), (LAST, LAST), (SPLIT, BY_TIME), (SPLIT, LAST)],
)
def test_on_another_log_the_cutoff_must_lie_before_what_is_held_out(trained, split):
    earlier = model(split=trained, log="x", cutoff=100)
    provenance.refuse_known_holdout(earlier, "runs/t", "y", split, 100)
    with pytest.raises(UserError, match="leak: runs/t learned from events up to 100"):
        provenance.refuse_known_holdout(earlier, "runs/t", "y", split, 99)


def test_other_draws_of_users_are_no_excuse_on_another_log():
    earlier = model(split={**BY_TIME, "test_users": 0.1}, log="x", cutoff=100)
    with pytest.raises(UserError, match="leak: runs/t learned"):
        provenance.refuse_known_holdout(
            earlier, "runs/t", "y", {**BY_TIME, "test_users": 0.2}, 99
        )
