"""Provenance: may this stage read that artefact? Decided by manifests alone.

- **No leak.** A model learned from events strictly before its manifest's `cutoff`, so
  the data that it is trained on, scores or is evaluated on next must not start earlier.
- **Same inputs.** Inputs given with a model have the fingerprints of its training.
- **Same split.** If a rule holds out users or events, the model was trained under it.

Times are unix seconds. Every check raises a `UserError` of one line: what the artefact
was made from, what was given, and the fix. `manifest` is the model's, `source` its
directory, `split` this run's settings (see `config.to_dict`).
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
    """Refuse a model that may have learned from the data ahead.

    Args:
        manifest: of the model or of its output.
        source: the model's directory, or a phrase, for the message.
        start: of the events or impressions ahead; None if there are none.
        what: the name of that data, a plural, for the message.
        fix: for the message.

    Raises:
        UserError: `start` is before the cut-off.
    """
    cutoff = manifest.cutoff
    if cutoff is not None and start is not None and start < cutoff:
        raise UserError(
            f"leak: {source} learned from events up to {cutoff}, but {what} start at "
            f"{start} (unix seconds); {fix}"
        )


def refuse_vectors_leak(manifest: Manifest, start: int | None, purpose: str) -> None:
    """Refuse impressions that the towers behind LEARN's vectors may have learned from.

    Args:
        manifest: of the vectors.
        start: of the impressions; None if there are none.
        purpose: "train on" or "score".

    Raises:
        UserError: an impression is before the towers' cut-off.
    """
    refuse_leak(
        manifest,
        "the vectors' towers",
        start,
        f"the impressions to {purpose}",
        "train the towers with an earlier split.towers_until, or use later impressions",
    )


def origin(manifest: Manifest, role: str) -> str:
    """Return the fingerprint of an artefact's input by role, else the artefact's own.

    A ranker may thus read vectors that the same towers export from a later log, and
    vectors that were not made by towers.
    """
    return manifest.inputs.get(role, manifest.fingerprint)


def refuse_other_inputs(
    manifest: Manifest,
    source: str | Path,
    given: Mapping[str, str],
    options: Mapping[str, str],
) -> None:
    """Refuse inputs other than those that a model was trained with.

    Args:
        manifest: of the model.
        source: its directory.
        given: fingerprints by role; only the roles of `options` are checked.
        options: the option, without dashes, of each role.

    Raises:
        UserError: an input is missing, superfluous or different.
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
                f"{source}: was trained with other {role} than --{option} gives; "
                "pass those of its training"
            )


def refuse_other_split(manifest: Manifest, source: str | Path, split: Settings) -> None:
    """Refuse a split other than the one that a model was trained under.

    Raises:
        UserError: names the first setting that differs.
    """
    for name, trained, given in _split_changes(manifest, split):
        raise UserError(
            f"split.{name} is {given}, but {source} was trained with {trained}; pass "
            "the --preset, --config or --set of its training"
        )


def refuse_known_holdout(
    manifest: Manifest,
    source: str | Path,
    interactions: str,
    split: Settings,
    held_out_from: int | None = None,
) -> None:
    """Refuse weights that may have learned from this run's held-out data.

    If both runs hold out new users alone, comparing cut-offs (`refuse_leak`) is enough.
    On the same log (`interactions` is its fingerprint) any other split must be the same
    one. On another log users are held out by their ids, so that under the paper's split
    the same rule holds out the same users; other events are safe only if the earlier
    run's cut-off lies before them.

    Args:
        manifest: of the earlier run.
        source: its directory.
        interactions: fingerprint of this run's log.
        split: of this run.
        held_out_from: time of this run's first held-out event; None if all are at or
            after its cut-off.

    Raises:
        UserError: names the first setting that differs, or both times.
    """
    if manifest.inputs[INTERACTIONS_FILE] != interactions:
        changes = {name for name, *_ in _split_changes(manifest, split)}
        same_users = split["holdout"] == "time" and changes <= {"test_from"}
        if split["holdout"] != "new_users" and not same_users:
            refuse_leak(
                manifest,
                source,
                held_out_from,
                "the events that this run holds out of another log",
                "leave out --warm-start, or start from an older one",
            )
        return
    if manifest.config["split"]["holdout"] == split["holdout"] == "new_users":
        return
    for name, trained, given in _split_changes(manifest, split):
        raise UserError(
            f"leak: split.{name} is {given}, but {source} was trained with {trained} "
            "on the same interactions and may have learned from the holdout; pass the "
            "split of its training, or leave out --warm-start"
        )


def _split_changes(
    manifest: Manifest, split: Settings
) -> Iterator[tuple[str, Any, Any]]:
    """Yield the settings that differ: name, value in the manifest, value now."""
    trained = manifest.config["split"]
    for name, given in split.items():
        if given != trained.get(name):
            yield name, trained.get(name), given
