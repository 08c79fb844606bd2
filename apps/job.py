"""A job: what an app would make, known before any work is done."""

import argparse
import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from apps import options
from learn_torchrec import config
from learn_torchrec.artifact import is_finished, recipe_of
from learn_torchrec.presets import Run
from learn_torchrec.training.checkpoint import Checkpoints
from learn_torchrec.training.distributed import locked_together, process_group
from learn_torchrec.training.run_log import RunLog


@dataclass(frozen=True, kw_only=True)
class Job:
    """One artefact to make.

    Attributes:
        kind: what the artefact holds.
        run: the whole configuration.
        config: the part of it that decides the artefact.
        inputs: fingerprints of what it is made from.
        out: where it goes.
        overwrite: replace an artefact made with other settings or inputs.
    """

    kind: str
    run: Run
    config: Mapping[str, Any]
    inputs: Mapping[str, str]
    out: Path
    overwrite: bool

    def is_done(self) -> bool:
        """Whether the artefact is there already.

        Raises:
            UserError: something else is there, and `overwrite` is off.
        """
        recipe = recipe_of(self.kind, self.config, self.inputs)
        return is_finished(self.out, self.kind, recipe, self.overwrite)

    @contextlib.contextmanager
    def training(self) -> Iterator[tuple[torch.device, RunLog, Checkpoints]]:
        """Join the job's ranks to train: device, log and checkpoints of this rank.

        Raises:
            UserError: another run is making the artefact.
        """
        with process_group() as device, locked_together(self.out):
            checkpoints = Checkpoints(
                self.out, self.config, self.inputs, self.run.checkpoint, self.overwrite
            )
            with checkpoints.listening(), RunLog(self.out) as log:
                yield device, log, checkpoints

    def manifest(self, cutoff: int | None, facts: dict[str, Any]) -> dict[str, Any]:
        """Return the arguments of `artifact.write_artifact`, the directory apart."""
        return {
            "kind": self.kind,
            "config": self.config,
            "inputs": self.inputs,
            "cutoff": cutoff,
            "facts": facts,
            "run_config": config.to_dict(self.run),
        }


def describe(
    args: argparse.Namespace,
    kind: str,
    sections: tuple[str, ...],
    inputs: Mapping[str, str],
) -> Job:
    """Return the job that an app's options describe.

    Args:
        args: with the options of `options.parser` and `options.add_output`.
        kind: what the artefact holds.
        sections: of the configuration, those that decide the artefact.
        inputs: fingerprints of what it is made from.
    """
    run = options.resolve(args)
    return Job(
        kind=kind,
        run=run,
        config={name: config.to_dict(getattr(run, name)) for name in sections},
        inputs=inputs,
        out=args.out,
        overwrite=args.overwrite,
    )
