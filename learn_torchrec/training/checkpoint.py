"""Checkpoints: a killed training resumes as if it had not been interrupted.

A checkpoint is an artefact (written aside, with checksums, then renamed) in its own
directory, `checkpoints/NAME/step-N` beside the artefact in the making. It holds tensors
(model, dense and fused optimizer state) and, as JSON, the progress. It needs no random
state: everything random derives from the seed and the step, epoch, user or rank, and
the learning rate from the step.
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
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizer

from learn_torchrec.artifact import damaged_file, read_manifest, recipe_of, verify
from learn_torchrec.config import configuration
from learn_torchrec.errors import Stopped, UserError, first_line
from learn_torchrec.refusals import one_line
from learn_torchrec.text import parse_json
from learn_torchrec.training.column_states import column_states
from learn_torchrec.training.distributed import (
    is_writer,
    new_host_group,
    on_rank0,
    raise_on_all_ranks,
    write_artifact_on_all_ranks,
)
from learn_torchrec.training.host_copies import HostCopies
from learn_torchrec.training.optimizer_state import create_state
from learn_torchrec.training.sharding import load_state
from learn_torchrec.training.tensors import load_tensors, save_tensors
from learn_torchrec.training.watchdog import Watchdog

logger = logging.getLogger(__name__)

KIND_CHECKPOINT = "checkpoint"
_TENSORS, _PROGRESS, _LOCAL = "tensors", "progress.json", "local"
_STEP_DIRECTORY = re.compile(r"step-(\d{9})")


@configuration
class CheckpointConfig:
    """How often training is checkpointed; has no influence on its result.

    Attributes:
        every_steps: steps between two checkpoints; 0 saves only on SIGTERM.
        keep: number of checkpoints to keep.
        asynchronous: write in a second thread while training continues, from a copy of
            each rank's state in host memory; where a host has no room for its ranks'
            copies, training waits instead.
        hang_seconds: a rank whose step takes longer prints its stack and exits; keep it
            below the process group's ten minutes. 0 waits forever.
    """

    every_steps: NonNegativeInt = 1000
    keep: PositiveInt = 2
    asynchronous: bool = True
    hang_seconds: NonNegativeFloat = 540.0


@dataclass(frozen=True)
class SavedCheckpoint:
    """A checkpoint to resume from.

    Attributes:
        directory: where it is.
        progress: as passed to `Checkpoints.after_step`, the same on every rank.
    """

    directory: Path
    progress: dict[str, Any]

    def local(self) -> dict[str, Tensor]:
        """Return the tensors that this rank saved for itself.

        Empty if there were none, or if another number of ranks saved.
        """
        path = self.directory / _local_file()
        return load_file(path) if path.exists() else {}

    def restore(
        self, model: torch.nn.Module, optimizer: CombinedOptimizer | KeyedOptimizer
    ) -> None:
        """Load model and optimizer; every rank takes part.

        They may have been saved by any number of ranks, under another sharding plan.

        Raises:
            UserError: stored tensors and this run's do not match.
        """
        create_state(optimizer)  # missing state would silently not be loaded
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
        tensors = self.directory / _TENSORS
        others = column_states(state["model"], state["optimizer"], tensors)
        load_tensors(state, tensors, left_out=[one.name for one in others])
        with raise_on_all_ranks():
            for one in others:
                one.load(tensors)
        load_state(model, state["model"])
        optimizer.load_state_dict(state["optimizer"])


class Checkpoints:
    """The checkpoints of one artefact in the making; every rank has one instance.

    Args:
        out: the artefact.
        made_from: what determines the weights, JSON-able: settings and inputs. Only a
            checkpoint with the same is resumed.
        settings: how often to save.
        overwrite: whether checkpoints of other settings or inputs may be removed.

    Attributes:
        directory: where they are.
        watchdog: of the training steps; paused while a checkpoint is written.
        pinned: a step whose checkpoint is kept; None for none.
    """

    def __init__(
        self,
        out: Path,
        made_from: Mapping[str, Any],
        settings: CheckpointConfig,
        overwrite: bool = False,
    ) -> None:
        self.pinned: int | None = None
        self.directory = out.parent / "checkpoints" / out.name
        self._settings, self._overwrite = settings, overwrite
        self._recipe: dict[str, Any] = {"config": made_from, "inputs": {}}
        self._stop_requested = False
        self.watchdog = Watchdog(settings.hang_seconds)
        self._group = dist.new_group(backend="gloo")
        # The writing thread, its communicator, its current task and its buffers.
        self._thread = ThreadPoolExecutor(
            1, thread_name_prefix="checkpoint", initializer=_inherit_device()
        )
        self._thread_group = new_host_group()
        self._pending: Future[str | None] | None = None
        self._copies = HostCopies()

    def latest(self) -> SavedCheckpoint | None:
        """Return the newest intact checkpoint, the same on every rank.

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
        pin: bool = False,
    ) -> None:
        """Save if it is time to; every rank calls it after each training step.

        A save that fails, on a full disk say, leaves the last checkpoint in place, and
        training continues unless it is to stop.

        Args:
            step: steps trained since the beginning.
            state: returns the tensors, each rank its own shards; those under "local"
                belong to this rank alone, see `SavedCheckpoint.local`.
            progress: returns the JSON content, the same on every rank; a collective.
            write: adds files; called on rank 0, possibly later in a second thread.
            pin: save this step now, and keep it until another one is pinned.

        Raises:
            Stopped: SIGTERM arrived, and the step is saved.
            UserError: the step could not be saved, and is pinned or SIGTERM arrived.
        """
        must_stop = self._should_stop()
        every = self._settings.every_steps
        if not (must_stop or pin or (every and step % every == 0)):
            return
        with self.watchdog.paused():
            self._finish_pending()
            if pin:
                self.pinned = step
            tensors = state()
            may_copy = self._settings.asynchronous and not (must_stop or pin)
            if may_copy and self._copies.fit(tensors):
                copy = self._copies.of(tensors)
                self._pending = self._thread.submit(
                    self._save, step, copy, progress(), write
                )
                return
            problem = self._save(step, tensors, progress(), write)
        if problem and (must_stop or pin):
            raise UserError(problem)
        if must_stop:
            raise Stopped(f"stopped at step {step}; run it again to resume")

    def at(self, step: int) -> SavedCheckpoint:
        """Return the checkpoint of a pinned step, without its progress.

        Every rank takes part.

        Raises:
            UserError: it is damaged or gone.
        """
        self._finish_pending()
        on_rank0(lambda: verify(self._at(step), KIND_CHECKPOINT))
        return SavedCheckpoint(self._at(step), {})

    def is_saving(self) -> bool:
        """Whether a checkpoint is being written in the background."""
        return self._pending is not None and not self._pending.done()

    def remove(self) -> None:
        """Remove all checkpoints once the artefact is finished."""
        self._finish_pending()
        if is_writer() and self.directory.exists():
            shutil.rmtree(self.directory, ignore_errors=True)
            with contextlib.suppress(OSError):  # not empty: other runs' checkpoints
                self.directory.parent.rmdir()

    @contextlib.contextmanager
    def stop_on_sigterm(self) -> Iterator[None]:
        """Let SIGTERM save a checkpoint and stop, instead of ending at once.

        A write in progress at the end of the block is completed.
        """

        def request_stop(*_: Any) -> None:
            self._stop_requested = True

        previous = signal.signal(signal.SIGTERM, request_stop)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, previous)
            self._thread.shutdown()

    def _should_stop(self) -> bool:
        # Ranks receive the signal at different steps, but must stop at the same one.
        requested = torch.tensor([int(self._stop_requested)])
        if dist.get_world_size() > 1:
            dist.all_reduce(requested, dist.ReduceOp.MAX, group=self._group)
        return bool(requested.item())

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
        """Return what went wrong, the same on all ranks; None if saved."""
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
                        (working / _PROGRESS).write_text(
                            json.dumps(progress), encoding="utf-8"
                        )
                        if write is not None:
                            write(working)
        except Exception as error:
            reason = one_line(error)
            if reason is None and not isinstance(error, OSError):
                raise
            reason = reason or first_line(error)
            problem = (
                f"checkpoint at step {step} was not saved ({reason}); the last "
                f"good one is of step {max(self._steps(), default=0)}"
            )
            if is_writer():
                logger.warning("%s", problem)
            return problem
        if is_writer():
            # Later steps belong to a run that was rolled back, and do not count.
            known = [each for each in self._steps() if each <= step]
            for old in known[: -self._settings.keep]:
                if old != self.pinned:
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

    def _newest(self) -> SavedCheckpoint | None:
        recipe = recipe_of(KIND_CHECKPOINT, **self._recipe)
        for step in reversed(self._steps()):
            directory = self._at(step)
            try:
                manifest = read_manifest(directory, KIND_CHECKPOINT)
                damaged = damaged_file(directory, manifest)
            except UserError as error:
                logger.warning("%s; using an earlier checkpoint", error)
                continue
            if damaged is not None:
                logger.warning(
                    "%s: %s is damaged; removed it, using an earlier checkpoint",
                    *(directory, damaged),
                )
                shutil.rmtree(directory)
                continue
            if manifest.recipe != recipe:
                if self._overwrite:
                    shutil.rmtree(self.directory)
                    return None
                raise UserError(
                    f"{self.directory}: has checkpoints of other settings or inputs; "
                    "choose another --out, or pass --overwrite to remove them"
                )
            logger.info("resuming after step %d", step)
            return SavedCheckpoint(
                directory,
                parse_json((directory / _PROGRESS).read_text(encoding="utf-8")),
            )
        return None


def _local_file() -> str:
    return f"{_LOCAL}-{dist.get_rank():05d}-of-{dist.get_world_size():05d}.safetensors"


def _inherit_device() -> Callable[[], None] | None:
    """Return what gives a new thread this one's GPU instead of the first."""
    if not torch.cuda.is_initialized():
        return None
    return functools.partial(torch.cuda.set_device, torch.cuda.current_device())


def fast_forward(schedule: LambdaLR, steps: int) -> None:
    """Advance a fresh schedule, whose rates depend on the step alone."""
    schedule.last_epoch = steps
    groups = schedule.optimizer.param_groups
    for group, rate, factor in zip(
        groups, schedule.base_lrs, schedule.lr_lambdas, strict=True
    ):
        group["lr"] = rate * factor(steps)
