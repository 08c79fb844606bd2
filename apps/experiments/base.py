"""What the tables share: content by encoder, goals, and the result's form."""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from learn_torchrec.artifact import verify
from learn_torchrec.content.backbone import SMOLLM2, refuse_absent
from learn_torchrec.content.minilm import MINILM
from learn_torchrec.content.store import KIND
from learn_torchrec.presets import Run

from .. import encode_content
from ..common import options

LLM, BERT = "llm", "bert"
# A small causal language model, and a BERT that was trained to compare sentences.
ENCODERS = {
    LLM: (f"content.encoder.model={SMOLLM2}",),
    BERT: (f"content.encoder.model={MINILM}",),
}


@dataclass(frozen=True, kw_only=True)
class Goal:
    """What the paper finds: a row is better than another.

    Attributes:
        row: that should be better.
        than: the other.
        times: how much better at least.
        group: of targets, see `target_groups`.
    """

    row: str
    than: str
    times: float = 1.0
    group: str = "all"


@dataclass(frozen=True)
class Request:
    """What a command asks for.

    Attributes:
        args: options of the command; its settings may be extended for a row.
        encoders: settings of the text encoders, by name.
    """

    args: argparse.Namespace
    encoders: Mapping[str, Sequence[str]]

    def with_settings(self, settings: Sequence[str]) -> "Request":
        """Return the request with settings that the user's own may still change."""
        args = argparse.Namespace(**vars(self.args))
        args.overrides = [*settings, *self.args.overrides]
        return Request(args, self.encoders)

    def content(self, encoder: str) -> Path:
        """Return where an encoder's content lies in --out."""
        out: Path = self.args.out / "content" / encoder
        return out

    @property
    def towers(self) -> Path:
        """Where the table's towers lie in --out."""
        out: Path = self.args.out / "towers" / self.args.table
        return out

    @property
    def shared(self) -> list[str]:
        """Options that every stage takes as they were given."""
        args = self.args
        return [
            *(["--strict"] if args.strict else []),
            *(["--preset", args.preset] if args.preset else []),
            *(["--config", str(args.config)] if args.config else []),
        ]

    def sets(self, *sections: str) -> list[str]:
        """Return the option that sets the user's settings of some sections."""
        mine = [one for one in self.args.overrides if one.startswith(sections)]
        return ["--set", *mine] if mine else []

    def refuse_absent(self, encoders: Sequence[str]) -> None:
        """Check that encoders are on this machine.

        Raises:
            UserError: one is not.
        """
        for encoder in encoders:
            config = self.resolved(encoder).content.encoder
            refuse_absent(config.model, config.revision)

    def encode(self, encoder: str) -> Path:
        """Encode the items with an encoder, unless that was done; return the store.

        Raises:
            UserError: the store of an earlier run is damaged.
        """
        out = self.content(encoder)
        out.parent.mkdir(parents=True, exist_ok=True)
        given = ["--data", self.args.data, "--out", str(out), "--overwrite"]
        given += self.shared
        encode_content.main([*given, "--set", *self._settings(encoder)])
        verify(out, KIND)
        return out

    def _settings(self, encoder: str) -> list[str]:
        mine = [one for one in self.args.overrides if one.startswith("content")]
        return [*mine, *self.encoders[encoder]]

    def resolved(self, encoder: str) -> Run:
        """Return the configuration of an encoder."""
        args = argparse.Namespace(**vars(self.args))
        args.overrides = self._settings(encoder)
        return options.resolve(args, ("content",))


class Experiment(Protocol):
    """A table: what it compares, checked before any work, and run."""

    @property
    def title(self) -> str:
        """What it asks."""

    def check(self, request: Request) -> None:
        """Check what can be known before any work.

        Raises:
            UserError: the data, an encoder or a setting does not fit.
        """

    def run(self, request: Request) -> dict[str, Any]:
        """Return the result: `rows` by name, `metrics`, `goals`, `notes` and more."""


def judged(
    goals: Sequence[Goal], groups: Mapping[str, Mapping[str, Mapping[str, Any]]]
) -> list[dict[str, Any]]:
    """Return what became of each goal; none of a group without targets.

    Args:
        goals: of a table.
        groups: a metric of each row, by group of targets, see `compare_rows`.
    """
    found = []
    for goal in goals:
        if goal.group not in groups:
            continue
        rows = groups[goal.group]
        row, than = rows[goal.row]["mean"], rows[goal.than]["mean"]
        found.append(
            {
                "row": goal.row,
                "than": goal.than,
                "group": goal.group,
                "wanted": goal.times,
                "ratio": row / than if than else None,
                "is_met": row > 0 and row >= goal.times * than,
                "is_clear": _is_clear(rows[goal.row], rows[goal.than]),
            }
        )
    return found


def _is_clear(row: Mapping[str, Any], than: Mapping[str, Any]) -> bool | None:
    """Whether the interval of two rows' difference excludes 0.

    None without one: only a difference from the reference has an interval.
    """
    known = [one["below"] for one in (row, than) if "below" in one]
    if len(known) != 1 or known[0]["low"] is None:
        return None
    return bool(known[0]["low"] > 0 or known[0]["high"] < 0)
