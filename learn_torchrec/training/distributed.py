"""The process group: the only library file that reads rank variables.

`LOCAL_RANK` chooses the device and nothing else; rank 0 of the job writes.
"""

import contextlib
import datetime
import importlib.metadata
import logging
import os
import sys
import time
import traceback
import typing
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from learn_torchrec.artifact import locked, write_artifact
from learn_torchrec.errors import Stopped, UserError

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

_TIMEOUT = datetime.timedelta(minutes=10)
# For what ranks do alone and unevenly long: encode texts, check and write files.
_PATIENCE = datetime.timedelta(hours=6)
# What gloo and NCCL say when another rank is gone, besides their own error types.
_LOST = ("gloo/transport", "Connection closed by peer", "Connection reset by peer")
_LOST_SECONDS = 5.0  # torchrun ends this rank sooner
_host_groups: list[dist.ProcessGroup] = []


@contextlib.contextmanager
def process_group() -> Iterator[torch.device]:
    """Join the job that torchrun describes, or make one of a single rank.

    Yields:
        This rank's device: `cuda:LOCAL_RANK` where there is CUDA (NCCL), else the
        CPU (gloo).

    Raises:
        UserError: more ranks on this host than GPUs.
    """
    quiet_known_warnings()
    device = _device()
    _init("nccl" if device.type == "cuda" else "gloo")
    _host_groups.append(new_host_group())
    failed = True
    try:
        yield device
        failed = False
    except Exception as error:
        _explain(error)
        raise
    finally:
        _host_groups.pop()
        # NCCL's farewell waits for the other ranks; one that failed must not.
        if not failed or device.type == "cpu" or dist.get_world_size() == 1:
            dist.destroy_process_group()


def new_host_group() -> dist.ProcessGroup:
    """Return a new group of all ranks that speaks between hosts and waits for hours.

    Every rank calls it. A rank that is gone is noticed at once.
    """
    return dist.new_group(backend="gloo", timeout=_PATIENCE)


def host_group() -> dist.ProcessGroup | None:
    """Return the job's group for objects and tensors on the CPU; None: the default."""
    return _host_groups[-1] if _host_groups else None


def ranks_on_this_host(most: int) -> int:
    """Return how many ranks this host has devices for, up to `most`."""
    return min(most, torch.cuda.device_count()) if _uses_cuda() else most


def _device() -> torch.device:
    if not _uses_cuda():
        return torch.device("cpu")
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    devices = torch.cuda.device_count()
    if local_rank >= devices:
        raise UserError(
            f"local rank {local_rank}: this host has {devices} GPUs; start one rank "
            "for each, or set CUDA_VISIBLE_DEVICES= to use the CPU"
        )
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)


def _uses_cuda() -> bool:
    if not torch.cuda.is_available():
        return False
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        importlib.metadata.version("fbgemm-gpu-cpu")
        if os.environ.get("LOCAL_RANK", "0") == "0":
            logger.warning(
                "GPUs stay unused, fbgemm-gpu-cpu has kernels for the CPU alone; "
                "make clean-env env ACCELERATOR=cuda installs the other"
            )
        return False
    return True


def _explain(error: Exception) -> None:
    """Let a rank's own error be read first: before the others lose its connection.

    Raises:
        SystemExit: this rank failed only because another one did.
    """
    one_line = isinstance(error, (Stopped, UserError, OSError))
    if dist.get_world_size() == 1 or one_line:
        return
    if _is_lost_connection(error):
        time.sleep(_LOST_SECONDS)
        reason = str(error).strip().splitlines()[0]
        sys.stderr.write(
            f"{rank_name()}: another rank is gone, its own error says why ({reason})\n"
        )
        sys.exit(1)
    sys.stderr.write(f"{rank_name()} failed:\n")
    traceback.print_exception(error)
    sys.stderr.flush()
    sys.exit(1)


def _is_lost_connection(error: BaseException) -> bool:
    """Whether an error says no more than that another rank is gone."""
    if isinstance(error, dist.DistError):
        return True
    return isinstance(error, RuntimeError) and any(x in str(error) for x in _LOST)


def _init(backend: str) -> None:
    if "RANK" not in os.environ:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
        return
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    store: dist.Store
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        # The agent's store outlives a restart and keeps the addresses of the dead
        # workers; a prefix for each attempt hides them.
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        agent = dist.TCPStore(host, port, world_size, False, timeout=_PATIENCE)
        store = dist.PrefixStore(f"attempt_{attempt}", agent)
    else:
        store, _, _ = next(rendezvous("env://", timeout=_PATIENCE))
    # Rank 0 may still be checking its inputs; from here on nobody is.
    store.set(f"here/{rank}", "")
    store.wait([f"here/{each}" for each in range(world_size)], _PATIENCE)
    store.set_timeout(_TIMEOUT)
    dist.init_process_group(
        backend, store=store, rank=rank, world_size=world_size, timeout=_TIMEOUT
    )


def local_world_size() -> int:
    """Ranks on this host (the planner's topology asks)."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", dist.get_world_size()))


def is_writer() -> bool:
    """Whether this rank writes files and logs: rank 0 of the job."""
    return dist.get_rank() == 0


def rank_name() -> str:
    """Name this rank in a message."""
    return f"rank {dist.get_rank()}"


def broadcast_from_rank0(value: Any, group: dist.ProcessGroup | None = None) -> Any:
    """Return rank 0's value on every rank.

    Args:
        value: of rank 0.
        group: of all ranks; None for the job's own, which waits for hours. What a
            second thread says to the other ranks needs a group of its own.
    """
    box = [value]
    dist.broadcast_object_list(box, src=0, group=group or host_group())
    return box[0]


def on_rank0(function: Callable[[], Result]) -> Result:
    """Call a function on rank 0; return its result, or raise its error, on every rank.

    Raises:
        UserError: what the function raised.
    """
    outcome: Result | UserError | None = None
    if is_writer():
        try:
            outcome = function()
        except UserError as error:
            outcome = error
    outcome = broadcast_from_rank0(outcome)
    if isinstance(outcome, UserError):
        raise outcome
    return typing.cast(Result, outcome)


def gather_objects(value: Any, group: dist.ProcessGroup | None = None) -> list[Any]:
    """Return every rank's value on every rank, in rank order.

    Args:
        value: of this rank.
        group: see `broadcast_from_rank0`.
    """
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value, group=group or host_group())
    return values


def rank_share(count: int) -> slice:
    """Return this rank's contiguous share of `count` things; shares differ by one."""
    world_size, rank = dist.get_world_size(), dist.get_rank()
    return slice(rank * count // world_size, (rank + 1) * count // world_size)


@contextlib.contextmanager
def locked_on_rank0(directory: Path) -> Iterator[None]:
    """Keep other runs from making `directory`: rank 0 holds the lock of the job.

    Raises:
        UserError: on every rank, if another run holds it.
    """
    with contextlib.ExitStack() as stack:
        on_rank0(lambda: stack.enter_context(locked(directory)))
        yield


@contextlib.contextmanager
def write_artifact_on_all_ranks(
    directory: Path, group: dist.ProcessGroup | None = None, **manifest: Any
) -> Iterator[Path]:
    """Write one artefact from all ranks: see `artifact.write_artifact`.

    Every rank may write its own files into the working directory that is yielded;
    rank 0 adds the manifest and makes the artefact visible once all are done. What a
    rank does there alone, and may fail at, belongs into `raise_on_all_ranks`.

    Args:
        directory: where the artefact appears.
        group: see `broadcast_from_rank0`.
        manifest: the other arguments of `write_artifact`.

    Raises:
        UserError: rank 0 could not make the artefact, on a full disk say.
    """
    with contextlib.ExitStack() as stack:
        working = None
        with raise_on_all_ranks(group):
            if is_writer():
                working = stack.enter_context(write_artifact(directory, **manifest))
        yield broadcast_from_rank0(working, group)
        gather_objects(None, group)  # every rank's files are whole
        with raise_on_all_ranks(group):
            stack.close()


@contextlib.contextmanager
def raise_on_all_ranks(group: dist.ProcessGroup | None = None) -> Iterator[None]:
    """Leave the block on all ranks alike: well, or with an error on each.

    The block must not speak to other ranks.

    Args:
        group: see `broadcast_from_rank0`.

    Raises:
        UserError: another rank's error; a rank's own error is raised as it is.
    """
    error: Exception | None = None
    try:
        yield
    except Exception as raised:
        error = raised
    reasons = gather_objects(None if error is None else str(error), group)
    if error is not None:
        raise error
    for rank, reason in enumerate(reasons):
        if reason is not None:
            raise UserError(f"rank {rank} failed: {reason}")


def quiet_known_warnings() -> None:
    """Silence messages of TorchRec and torch.fx that ask nothing of the user."""
    logging.getLogger("torchrec").setLevel(logging.ERROR)
    logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)
    for message in (
        "HeuristicalStorageReservation is known",
        "`broadcast_buffers` is deprecated",
        "Please use DTensor instead and we are deprecating ShardedTensor",
        r"`torch\.distributed\.\w+` is deprecated",
    ):
        warnings.filterwarnings("ignore", message=message, category=FutureWarning)
