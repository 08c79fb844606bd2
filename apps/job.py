"""A job: what an app would make, known before any work is done."""

import argparse
import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from learn_torchrec import config
from learn_torchrec.artifact import read_manifest, recipe_of, verify
from learn_torchrec.presets import Run
from learn_torchrec.publish import is_finished
from learn_torchrec.training.checkpoint import Checkpoints
from learn_torchrec.training.distributed import locked_on_rank0, process_group
from learn_torchrec.training.run_log import RunLog

from . import options
from .program import is_first_rank


@dataclass(frozen=True, kw_only=True)
class Job:
    """One artefact to make.

    Attributes:
        kind: what the artefact holds.
        run: the whole configuration.
        config: the sections of it that the stage reads.
        deciding: the same without operational settings, see `config.deciding`.
        inputs: fingerprints of what it is made from.
        artefacts: the inputs that earlier stages made, with their kinds.
        out: where it goes.
        overwrite: replace an artefact made with other settings or inputs.
    """

    kind: str
    run: Run
    config: Mapping[str, Any]
    deciding: Mapping[str, Any]
    inputs: Mapping[str, str]
    artefacts: tuple[tuple[Path, str], ...]
    out: Path
    overwrite: bool

    @property
    def recipe(self) -> str:
        """What identifies the artefact."""
        return recipe_of(self.kind, self.deciding, self.inputs)

    def is_done(self) -> bool:
        """Whether the artefact exists already; if not, its inputs are checked.

        Raises:
            UserError: `out` holds something else and `overwrite` is off, or a file of
                an input is damaged.
        """
        if is_finished(self.out, self.kind, self.recipe, self.overwrite):
            return True
        if is_first_rank():  # an error here ends the other ranks too
            for directory, kind in self.artefacts:
                verify(directory, kind)
        return False

    @contextlib.contextmanager
    def training(self) -> Iterator[tuple[torch.device, RunLog, Checkpoints]]:
        """Join the ranks of a training run; yield this rank's device, log, checkpoints.

        Raises:
            UserError: another run is making the artefact.
        """
        with process_group() as device, locked_on_rank0(self.out):
            made_from = {"config": self.deciding, "inputs": self.inputs}
            checkpoints = Checkpoints(
                self.out, made_from, self.run.checkpoint, self.overwrite
            )
            with checkpoints.stop_on_sigterm(), RunLog(self.out) as log:
                yield device, log, checkpoints

    def manifest(self, cutoff: int | None, facts: dict[str, Any]) -> dict[str, Any]:
        """Return the arguments of `publish.write_artifact` but the directory."""
        return {
            "kind": self.kind,
            "config": self.config,
            "inputs": self.inputs,
            "cutoff": cutoff,
            "facts": facts,
            "run_config": config.to_dict(self.run),
            "recipe": self.recipe,
        }


def describe(
    args: argparse.Namespace,
    kind: str,
    sections: tuple[str, ...],
    inputs: Mapping[str, str],
    artefacts: Mapping[str, tuple[Path, str]] | None = None,
    run: Run | None = None,
) -> Job:
    """Return the job that an app's options describe.

    Args:
        args: with the options of `options.parser` and `options.add_output`.
        kind: what the artefact holds.
        sections: of the configuration, that the stage reads.
        inputs: fingerprints of what it is made from.
        artefacts: directories and kinds of earlier stages' artefacts, by role.
        run: the resolved configuration, where the app already has it.
    """
    artefacts = artefacts or {}
    fingerprints = {
        role: read_manifest(*artefact).fingerprint
        for role, artefact in artefacts.items()
    }
    run = options.resolve(args, sections) if run is None else run
    used = {name: getattr(run, name) for name in sections}
    return Job(
        kind=kind,
        run=run,
        config={name: config.to_dict(value) for name, value in used.items()},
        deciding={name: config.deciding(value) for name, value in used.items()},
        inputs={**inputs, **fingerprints},
        artefacts=tuple(artefacts.values()),
        out=args.out,
        overwrite=args.overwrite,
    )
