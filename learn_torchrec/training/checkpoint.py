"""Checkpoints: what a killed training needs to resume as if nothing had happened.

A checkpoint is an artefact (written aside, checksums, one rename) in a directory of its
own, `checkpoints/NAME/step-N` beside the artefact that is being made. It holds tensors
(model, dense and fused optimizer state) and, as JSON, the position and running sums.
There is no random state in it: everything random follows from the seed and the step,
the epoch, the user or the rank, and the learning rate follows from the step.
"""

import contextlib
import functools
import json
import logging
import re
import shutil
import signal
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveInt
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizer

from learn_torchrec.artifact import damaged_file, read_manifest, recipe_of
from learn_torchrec.config import configuration
from learn_torchrec.errors import Stopped, UserError
from learn_torchrec.training.distributed import (
    is_writer,
    new_host_group,
    on_rank0,
    raise_on_all_ranks,
    write_artifact_on_all_ranks,
)
from learn_torchrec.training.sharding import load_state
from learn_torchrec.training.tensors import HostCopies, load_tensors, save_tensors
from learn_torchrec.training.watchdog import Watchdog

logger = logging.getLogger(__name__)

KIND_CHECKPOINT = "checkpoint"
_TENSORS, _PROGRESS, _LOCAL = "tensors", "progress.json", "local"
_STEP_DIRECTORY = re.compile(r"step-(\d{9})")


@configuration
class CheckpointConfig:
    """How often a training saves what it needs to resume; decides no result.

    Attributes:
        every_steps: steps between two checkpoints; 0 saves none but on SIGTERM.
        keep: checkpoints that stay, the newest ones.
        asynchronous: write in a second thread while training continues, from a copy of
            each rank's state in its host's memory.
        hang_seconds: a rank that takes longer for a step prints its stack and ends;
            below the process group's ten minutes, 0 waits for ever.
    """

    every_steps: NonNegativeInt = 1000
    keep: PositiveInt = 2
    asynchronous: bool = True
    hang_seconds: NonNegativeFloat = 540.0


@dataclass(frozen=True)
class Saved:
    """A checkpoint to resume from.

    Attributes:
        directory: where it is.
        progress: what `Checkpoints.after_step` was given, the same on every rank.
    """

    directory: Path
    progress: dict[str, Any]

    def local(self) -> dict[str, Tensor]:
        """Return the tensors that this rank saved for itself.

        Empty where there were none, or where another number of ranks saved.
        """
        path = self.directory / _local_file()
        return load_file(path) if path.exists() else {}

    def restore(
        self, model: torch.nn.Module, optimizer: CombinedOptimizer | KeyedOptimizer
    ) -> None:
        """Load model and optimizer; every rank takes part.

        Any number of ranks may have saved them, under another plan of sharding.

        Raises:
            UserError: something is stored that has no place here, or the reverse.
        """
        _fill_state(optimizer)  # what is not there yet would silently not be loaded
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
        load_tensors(state, self.directory / _TENSORS)
        load_state(model, state["model"])
        optimizer.load_state_dict(state["optimizer"])


class Checkpoints:
    """The checkpoints of one artefact that is being made; every rank has one.

    Args:
        out: the artefact.
        made_from: what decides the weights, JSON-able: settings and inputs. A
            checkpoint made from something else is not resumed.
        settings: how often.
        overwrite: whether checkpoints made from something else may be removed.

    Attributes:
        directory: where they are.
        watchdog: of the steps between them; it rests while one is written or waited
            for.
    """

    def __init__(
        self,
        out: Path,
        made_from: Mapping[str, Any],
        settings: CheckpointConfig,
        overwrite: bool = False,
    ) -> None:
        self.directory = out.parent / "checkpoints" / out.name
        self._settings, self._overwrite = settings, overwrite
        self._recipe: dict[str, Any] = {"config": made_from, "inputs": {}}
        self._asked_to_stop = False
        self.watchdog = Watchdog(settings.hang_seconds)
        self._group = dist.new_group(backend="gloo")
        # The second thread, what it says to other ranks, what it is writing, and where
        # the copies are that it writes from.
        self._thread = ThreadPoolExecutor(
            1, thread_name_prefix="checkpoint", initializer=_same_device()
        )
        self._thread_group = new_host_group()
        self._pending: Future[str | None] | None = None
        self._copies = HostCopies()

    def latest(self) -> Saved | None:
        """Return the newest checkpoint that is whole, the same on every rank.

        Raises:
            UserError: on every rank, if the newest is of other settings or inputs.
        """
        return on_rank0(self._newest)

    def after_step(
        self,
        step: int,
        state: Callable[[], dict[str, Any]],
        progress: Callable[[], dict[str, Any]],
        write: Callable[[Path], None] | None = None,
    ) -> None:
        """Save where it is time to; every rank calls it after each trained step.

        A save that fails, on a full disk say, leaves the last checkpoint as it is,
        and the training continues unless it is to stop.

        Args:
            step: steps trained since the beginning.
            state: gives the tensors, each rank its own shards; those under "local" are
                a rank's own, for `Saved.local`.
            progress: gives what JSON holds, the same on every rank; a collective.
            write: called on rank 0, maybe later in a second thread, to add files.

        Raises:
            Stopped: SIGTERM came, and the step is saved.
            UserError: SIGTERM came, and the step could not be saved.
        """
        stops = self._all_stop()
        every = self._settings.every_steps
        if not stops and not (every and step % every == 0):
            return
        with self.watchdog.paused():
            self._finish_pending()
            if not stops and self._settings.asynchronous:
                copy = self._copies.of(state())
                self._pending = self._thread.submit(
                    self._save, step, copy, progress(), write
                )
                return
            problem = self._save(step, state(), progress(), write)
        if stops and problem:
            raise UserError(problem)
        if stops:
            raise Stopped(f"stopped at step {step}; run it again to resume")

    def is_saving(self) -> bool:
        """Whether a checkpoint is being written beside the training."""
        return self._pending is not None and not self._pending.done()

    def remove(self) -> None:
        """Remove all checkpoints: the artefact is made."""
        self._finish_pending()
        if is_writer() and self.directory.exists():
            shutil.rmtree(self.directory, ignore_errors=True)
            with contextlib.suppress(OSError):  # others' may lie beside it
                self.directory.parent.rmdir()

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Take SIGTERM as a wish to save and stop, instead of ending at once.

        What is being written when the block ends is written to its end.
        """

        def ask(*_: Any) -> None:
            self._asked_to_stop = True

        before = signal.signal(signal.SIGTERM, ask)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)
            self._thread.shutdown()

    def _all_stop(self) -> bool:
        # Signals reach ranks at different steps; all must stop at the same one.
        asked = torch.tensor([int(self._asked_to_stop)])
        if dist.get_world_size() > 1:
            dist.all_reduce(asked, dist.ReduceOp.MAX, group=self._group)
        return bool(asked.item())

    def _finish_pending(self) -> None:
        if self._pending is not None:
            self._pending.result()
            self._pending = None

    def _save(
        self,
        step: int,
        state: dict[str, Any],
        progress: dict[str, Any],
        write: Callable[[Path], None] | None,
    ) -> str | None:
        """Return what went wrong, on all ranks, if anything did."""
        group, local = self._thread_group, state.get(_LOCAL)
        state = {name: part for name, part in state.items() if name != _LOCAL}
        try:
            with write_artifact_on_all_ranks(
                self._at(step), group, kind=KIND_CHECKPOINT, **self._recipe
            ) as working:
                save_tensors(state, working / _TENSORS, group)
                with raise_on_all_ranks(group):
                    if local:
                        save_file(local, working / _local_file())
                    if is_writer():
                        (working / _PROGRESS).write_text(json.dumps(progress))
                        if write is not None:
                            write(working)
        except (OSError, SafetensorError, UserError) as error:
            problem = (
                f"checkpoint at step {step} was not saved ({error}); the last good one "
                f"is of step {max(self._steps(), default=0)}"
            )
            if is_writer():
                logger.warning("%s", problem)
            return problem
        if is_writer():
            # A resumed run may leave an earlier attempt's later steps behind.
            known = [each for each in self._steps() if each <= step]
            for old in known[: -self._settings.keep]:
                shutil.rmtree(self._at(old), ignore_errors=True)
        return None

    def _at(self, step: int) -> Path:
        return self.directory / f"step-{step:09d}"

    def _steps(self) -> list[int]:
        if not self.directory.is_dir():
            return []
        names = (path.name for path in self.directory.iterdir())
        matches = map(_STEP_DIRECTORY.fullmatch, names)
        return sorted(int(match[1]) for match in matches if match)

    def _newest(self) -> Saved | None:
        recipe = recipe_of(KIND_CHECKPOINT, **self._recipe)
        for step in reversed(self._steps()):
            directory = self._at(step)
            try:
                manifest = read_manifest(directory, KIND_CHECKPOINT)
                damaged = damaged_file(directory, manifest)
            except UserError as error:
                logger.warning("%s; an earlier checkpoint is used", error)
                continue
            if damaged is not None:
                logger.warning(
                    "%s: %s is damaged; removed, an earlier checkpoint is used",
                    *(directory, damaged),
                )
                shutil.rmtree(directory)
                continue
            if manifest.recipe != recipe:
                if self._overwrite:
                    shutil.rmtree(self.directory)
                    return None
                raise UserError(
                    f"{self.directory}: holds checkpoints of other settings or inputs; "
                    "choose another --out, or pass --overwrite to remove them"
                )
            logger.info("resuming after step %d", step)
            return Saved(directory, json.loads((directory / _PROGRESS).read_text()))
        return None


def _local_file() -> str:
    return f"{_LOCAL}-{dist.get_rank():05d}-of-{dist.get_world_size():05d}.safetensors"


def _same_device() -> Callable[[], None] | None:
    """Return what gives a thread this one's GPU: a new thread has the first."""
    if not torch.cuda.is_initialized():
        return None
    return functools.partial(torch.cuda.set_device, torch.cuda.current_device())


def fast_forward(schedule: LambdaLR, steps: int) -> None:
    """Put a fresh schedule where it is after `steps` steps: rates follow from them."""
    schedule.last_epoch = steps
    groups = schedule.optimizer.param_groups
    for group, rate, factor in zip(
        groups, schedule.base_lrs, schedule.lr_lambdas, strict=True
    ):
        group["lr"] = rate * factor(steps)


def _fill_state(optimizer: CombinedOptimizer | KeyedOptimizer) -> None:
    """Make the state that an optimizer otherwise makes at its first step."""
    if isinstance(optimizer, CombinedOptimizer):
        for _, part in optimizer.optimizers:
            part.init_state()
    else:
        optimizer.init_state()
    optimizer.zero_grad()
