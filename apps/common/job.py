"""A job: what an app would make, known before any work is done."""

import argparse
import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from learn_torchrec import config
from learn_torchrec.artifact import read_manifest, recipe_of, verify, versions
from learn_torchrec.datasets.adapters.base import Dataset
from learn_torchrec.outputs import refuse_inputs
from learn_torchrec.presets import Run
from learn_torchrec.publish import is_finished, make_once
from learn_torchrec.training.agreement import (
    part_of_shared,
    refuse_different_ranks,
    refuse_unshared,
)
from learn_torchrec.training.checkpoint import Checkpoints
from learn_torchrec.training.distributed import (
    locked_on_rank0,
    on_rank0,
    process_group,
    raise_on_all_ranks,
)
from learn_torchrec.training.environment import read_ranks
from learn_torchrec.training.run_log import RunLog

from . import options

Artefacts = tuple[tuple[Path, str], ...]  # directory and kind of each


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
        paths: option and path of everything that is read.
        dataset: the data set, if the stage reads one.
    """

    kind: str
    run: Run
    config: Mapping[str, Any]
    deciding: Mapping[str, Any]
    inputs: Mapping[str, str]
    artefacts: Artefacts
    out: Path
    overwrite: bool
    paths: tuple[tuple[str, Path], ...]
    dataset: Dataset | None

    @property
    def recipe(self) -> str:
        """What identifies the artefact."""
        return recipe_of(self.kind, self.deciding, self.inputs)

    def is_done(self) -> bool:
        """Whether the artefact exists already.

        Raises:
            UserError: `out` holds something else and `overwrite` is off, would destroy
                an input, or cannot be written.
        """
        if is_finished(self.out, self.kind, self.recipe, self.overwrite):
            return True
        refuse_inputs(self.out, self.paths)
        return False

    def make(self, work: Callable[[], None]) -> None:
        """Call `work` to make the artefact in this process, unless it is there.

        Raises:
            UserError: see `is_done`; an input is damaged, or another run is making it.
        """

        def checked() -> None:
            self._verify()
            work()

        make_once(self.out, self.is_done, checked)

    def make_on_all_ranks(self, work: Callable[[torch.device], None]) -> None:
        """Join the ranks; call `work` with this one's device, unless it was done.

        Raises:
            UserError: on all ranks, as of `make`, or if they were not given the same
                or do not share the file system of `out`.
        """
        with process_group() as device:
            refuse_different_ranks(self._given())
            if on_rank0(self.is_done):
                return
            refuse_unshared(self.out.parent)
            with locked_on_rank0(self.out):
                if on_rank0(self.is_done):  # made before the lock was free
                    return
                place, ranks = part_of_shared(folder for folder, _ in self.artefacts)
                with raise_on_all_ranks():
                    self._verify(place, ranks)
                work(device)

    @contextlib.contextmanager
    def training(self) -> Iterator[tuple[RunLog, Checkpoints]]:
        """Yield the log and the checkpoints of a training run, once all ranks are here.

        From here on a rank that stays away is noticed in minutes, not hours.
        """
        with raise_on_all_ranks():
            self.refuse_changed_data()
        made_from = {"config": self.deciding, "inputs": self.inputs}
        checkpoints = Checkpoints(
            self.out, made_from, self.run.checkpoint, self.overwrite
        )
        with checkpoints.stop_on_sigterm(), RunLog(self.out) as log:
            yield log, checkpoints

    def refuse_changed_data(self) -> None:
        """Refuse data that changed since its fingerprints were taken.

        Raises:
            UserError: names the table.
        """
        if self.dataset is not None:
            self.dataset.refuse_changed()

    def _given(self) -> dict[str, object]:
        """Return what all ranks must have been given alike, by name."""
        settings = {
            key: value
            for section, body in config.to_dict(self.run).items()
            for key, value in config.dotted(body, section).items()
        }
        inputs = {f"input {role}": digest for role, digest in self.inputs.items()}
        wheels = {f"version of {name}": one for name, one in versions().items()}
        return {
            "artefact": self.kind,
            "--overwrite": self.overwrite,
            **inputs,
            **settings,
            **wheels,
        }

    def _verify(self, place: int = 0, ranks: int = 1) -> None:
        """Check the inputs' files, of which each of `ranks` ranks takes its part."""
        for directory, kind in self.artefacts:
            files = read_manifest(directory, kind).files
            verify(directory, kind, only=list(files)[place::ranks])

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
    read_ranks()  # a malformed one is refused before the data is read
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
        paths=tuple(options.paths_read(args)),
        dataset=getattr(args, "opened", None),
    )
