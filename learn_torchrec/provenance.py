"""Provenance: may this stage read that artefact? Judged by manifests alone.

- **No leak.** A model learned from nothing at or after its manifest's `cutoff`, so what
  it is trained on further, scores or is judged by must not start before it.
- **Same inputs.** What is given beside a model has the fingerprints that the model was
  trained with.
- **Same split.** Where users or events are held out by a rule, the model was trained
  under the same rule.

Times are unix seconds. Every function raises a `UserError` of one line: what the
artefact knows, what was given, and the fix.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from learn_torchrec.artifact import Manifest
from learn_torchrec.errors import UserError
from learn_torchrec.schema import INTERACTIONS_FILE

Settings = Mapping[str, Any]


def refuse_leak(
    manifest: Manifest, source: str | Path, start: int | None, what: str, fix: str
) -> None:
    """Refuse a model that may have learned from what it is about to meet.

    Args:
        manifest: of the model, or of what the model made.
        source: what learned, for the message: a directory or a phrase.
        start: of the events or impressions ahead; None where there are none.
        what: those, for the message, in the plural.
        fix: what the user can do.

    Raises:
        UserError: `start` lies before the cut-off.
    """
    cutoff = manifest.cutoff
    if cutoff is not None and start is not None and start < cutoff:
        raise UserError(
            f"leak: {source} learned from events up to {cutoff}, but {what} start at "
            f"{start} (unix seconds); {fix}"
        )


def refuse_vectors_leak(manifest: Manifest, start: int | None, purpose: str) -> None:
    """Refuse impressions that the towers behind LEARN's vectors may know.

    Args:
        manifest: of the vectors.
        start: of the impressions; None where there are none.
        purpose: what they are for: "train on" or "score".

    Raises:
        UserError: an impression lies before the towers' cut-off.
    """
    refuse_leak(
        manifest,
        "the vectors' towers",
        start,
        f"the impressions to {purpose}",
        "train the towers with an earlier split.towers_until, or use later impressions",
    )


def origin(manifest: Manifest, role: str) -> str:
    """Return the fingerprint of what an artefact was made from, by its role.

    An artefact that was not made from such a thing stands for itself: a ranker goes
    on reading vectors that the same towers make of a later log, and vectors that are
    not of our towers.
    """
    return manifest.inputs.get(role, manifest.fingerprint)


def refuse_other_inputs(
    manifest: Manifest,
    source: str | Path,
    given: Mapping[str, str],
    options: Mapping[str, str],
) -> None:
    """Refuse what a model was not trained with, and the lack of what it was.

    Args:
        manifest: of the model.
        source: its directory.
        given: fingerprints by role; roles that `options` does not name do not matter.
        options: the option, without dashes, that gives each role.

    Raises:
        UserError: something is missing, superfluous or another.
    """
    for role, option in options.items():
        wanted = manifest.inputs.get(role)
        if wanted is None and role in given:
            raise UserError(
                f"{source}: was trained without {option}; leave out --{option}"
            )
        if wanted is not None and role not in given:
            raise UserError(f"{source}: was trained with {option}; add --{option}")
        if wanted is not None and given[role] != wanted:
            raise UserError(
                f"{source}: was trained with other {role} than those behind "
                f"--{option}; name those of its run"
            )


def refuse_other_split(manifest: Manifest, source: str | Path, split: Settings) -> None:
    """Refuse a split that a model was not trained under.

    Args:
        manifest: of the model.
        source: its directory.
        split: this run's settings, see `config.to_dict`.

    Raises:
        UserError: names the first setting that differs.
    """
    for name, trained, given in _split_changes(manifest, split):
        raise UserError(
            f"split.{name} is {given}, {source} was trained with {trained}; pass "
            "the --preset, --config or --set of its training"
        )


def refuse_known_holdout(
    manifest: Manifest, source: str | Path, interactions: str, split: Settings
) -> None:
    """Refuse weights that may have learned from what is held out of the same log now.

    Where both runs hold out new users alone, their cut-offs tell (`refuse_leak`), and
    nothing is refused here.

    Args:
        manifest: of the earlier model.
        source: its directory.
        interactions: fingerprint of this run's log.
        split: this run's settings, see `config.to_dict`.

    Raises:
        UserError: names the first setting that differs.
    """
    if manifest.inputs[INTERACTIONS_FILE] != interactions:
        return
    if manifest.config["split"]["holdout"] == split["holdout"] == "new_users":
        return
    for name, trained, given in _split_changes(manifest, split):
        raise UserError(
            f"leak: split.{name} is {given}, {source} was trained with {trained} on "
            "the same interactions and may know what is held out now; pass the split "
            "of its training, or leave out --warm-start"
        )


def _split_changes(
    manifest: Manifest, split: Settings
) -> Iterator[tuple[str, Any, Any]]:
    """Yield the settings of a split that differ: name, in the manifest, and now."""
    trained = manifest.config["split"]
    for name, given in split.items():
        if given != trained.get(name):
            yield name, trained.get(name), given
