"""The process group of the job that the rank variables describe.

`LOCAL_RANK` chooses the device and nothing else; rank 0 of the job writes files.
Where a function takes a `group`, it is a communicator of all ranks, and None means the
job's own for CPU objects, which waits for hours. A second thread needs its own.
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
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from learn_torchrec.credentials import hide
from learn_torchrec.errors import Stopped, UserError, first_line, record_failure
from learn_torchrec.publish import making, write_artifact
from learn_torchrec.refusals import one_line
from learn_torchrec.training.environment import JOIN, RankVariables, read_ranks

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

_TIMEOUT = datetime.timedelta(minutes=10)
# For work that ranks do alone: encoding texts, checking and writing files.
_LONG_TIMEOUT = datetime.timedelta(hours=6)
# Messages of gloo and NCCL when another rank is gone, besides their error types.
_PEER_LOST = ("gloo/transport", "Connection closed by peer", "Connection reset by peer")
_VISIBLE_SECONDS = 60.0  # for files of another host to appear
_PEER_LOST_SECONDS = 5.0  # torchrun ends this rank sooner
_host_groups: list[dist.ProcessGroup] = []


@contextlib.contextmanager
def process_group() -> Iterator[torch.device]:
    """Join the job that torchrun describes, or create one of a single rank.

    Yields:
        This rank's device: `cuda:LOCAL_RANK` (NCCL) where CUDA is available, else the
        CPU (gloo).

    Raises:
        UserError: this host has more ranks than GPUs, or the variables that describe
            the job are malformed.
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
        _report_failure(error)
        raise
    finally:
        _host_groups.pop()
        # NCCL's shutdown waits for the other ranks; a failed rank must not.
        if not failed or device.type == "cpu" or dist.get_world_size() == 1:
            dist.destroy_process_group()


def new_host_group() -> dist.ProcessGroup:
    """Return a new gloo communicator of all ranks with a timeout of hours.

    Every rank calls it. A rank that dies is noticed at once.
    """
    return dist.new_group(backend="gloo", timeout=_LONG_TIMEOUT)


def host_group() -> dist.ProcessGroup | None:
    """Return the job's communicator for CPU objects and tensors; None: the default."""
    return _host_groups[-1] if _host_groups else None


def ranks_on_this_host(most: int) -> int:
    """Return how many ranks this host has devices for, up to `most`."""
    return min(most, torch.cuda.device_count()) if _uses_cuda() else most


def _device() -> torch.device:
    if not _uses_cuda():
        return torch.device("cpu")
    ranks = read_ranks()
    local_rank = ranks.local_rank if ranks else 0
    devices = torch.cuda.device_count()
    if local_rank >= devices:
        raise UserError(
            f"local rank {local_rank}: this host has {devices} GPUs; start one rank "
            "per GPU, or set CUDA_VISIBLE_DEVICES= to use the CPU"
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
                "GPUs stay unused: fbgemm-gpu-cpu has kernels for the CPU only; "
                "make clean-env env ACCELERATOR=cuda installs the CUDA build"
            )
        return False
    return True


def _report_failure(error: Exception) -> None:
    """Print a rank's own error before the others lose their connection to it.

    Raises:
        SystemExit: after the report, with exit code 1.
    """
    if dist.get_world_size() == 1 or isinstance(error, Stopped):
        return
    if _is_lost_connection(error):
        time.sleep(_PEER_LOST_SECONDS)
        sys.stderr.write(
            f"{rank_name()}: another rank is gone; see its own error "
            f"({first_line(error)})\n"
        )
        sys.exit(1)
    if one_line(error) is not None:
        return
    text = hide("".join(traceback.format_exception(error)))
    sys.stderr.write(f"{rank_name()} failed:\n{text}")
    sys.stderr.flush()
    record_failure(text)
    sys.exit(1)


def _is_lost_connection(error: BaseException) -> bool:
    """Whether an error only says that another rank is gone."""
    if isinstance(error, dist.DistError):
        return True
    return isinstance(error, RuntimeError) and any(x in str(error) for x in _PEER_LOST)


def _init(backend: str) -> None:
    ranks = read_ranks()
    if ranks is None:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
        return
    try:
        store = _store(ranks)
        _meet(store, ranks)
        store.set_timeout(_TIMEOUT)
        dist.init_process_group(
            backend,
            store=store,
            rank=ranks.rank,
            world_size=ranks.world_size,
            timeout=_TIMEOUT,
        )
    except dist.DistError as error:
        raise UserError(
            f"MASTER_ADDR={ranks.address} MASTER_PORT={ranks.port}: "
            f"{first_line(error)}; name rank 0's host and a free port there, and start "
            f"all ranks within {ranks.join_seconds} seconds (or set {JOIN})"
        ) from None


def _store(ranks: RankVariables) -> dist.Store:
    if _has_agent():
        # The agent's store outlives a restart and keeps the addresses of dead workers;
        # a prefix per attempt hides them.
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        agent = dist.TCPStore(
            *(ranks.address, ranks.port, ranks.world_size, False), timeout=_LONG_TIMEOUT
        )
        return dist.PrefixStore(f"attempt_{attempt}", agent)
    join = datetime.timedelta(seconds=ranks.join_seconds)
    store, _, _ = next(rendezvous("env://", timeout=join))
    return store


def _has_agent() -> bool:
    """Whether torchrun's agents started the ranks, and end them all if one is lost."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def _meet(store: dist.Store, ranks: RankVariables) -> None:
    """Wait for all ranks before timeouts apply: rank 0 may still check its inputs.

    Raises:
        UserError: one does not come, has a number that another has, or another number
            of ranks.
    """
    if store.add(f"taken/{ranks.rank}", 1) > 1:
        raise UserError(
            f"RANK={ranks.rank}: another process has it, too; give each its own"
        )
    store.set(f"here/{ranks.rank}", str(ranks.world_size))
    everyone = [f"here/{each}" for each in range(ranks.world_size)]
    join = datetime.timedelta(seconds=ranks.join_seconds)
    try:
        store.wait(everyone, _LONG_TIMEOUT if _has_agent() else join)
    except dist.DistStoreError:
        absent = [each for each, key in enumerate(everyone) if not store.check([key])]
        raise UserError(
            f"rank {absent[0]} of {ranks.world_size} did not come in "
            f"{ranks.join_seconds} seconds; start all ranks, or set {JOIN}"
        ) from None
    for each, key in enumerate(everyone):
        size = store.get(key).decode()
        if size != str(ranks.world_size):
            raise UserError(
                f"WORLD_SIZE={ranks.world_size} on rank {ranks.rank}, but {size} on "
                f"rank {each}; give all ranks the same"
            )


def local_world_size() -> int:
    """Return the number of ranks on this host, for the planner's topology."""
    ranks = read_ranks()
    return ranks.local_world_size if ranks else dist.get_world_size()


def is_writer() -> bool:
    """Whether this rank writes files and logs: rank 0 of the job."""
    return dist.get_rank() == 0


def rank_name() -> str:
    """Return this rank's name for messages."""
    return f"rank {dist.get_rank()}"


def broadcast_from_rank0(value: Any, group: dist.ProcessGroup | None = None) -> Any:
    """Return rank 0's value on every rank."""
    box = [value]
    dist.broadcast_object_list(box, src=0, group=group or host_group())
    return box[0]


def on_rank0(function: Callable[[], Result]) -> Result:
    """Call a function on rank 0; return its result, or raise its error, on every rank.

    Raises:
        UserError: what the function raised, or something that the system refused it.
        OSError: the same.
    """
    outcome: Result | UserError | OSError | None = None
    if is_writer():
        try:
            outcome = function()
        except (UserError, OSError) as error:
            outcome = error
        except Exception as error:
            line = one_line(error)
            if line is None:
                raise
            outcome = UserError(line)
    outcome = broadcast_from_rank0(outcome)
    if isinstance(outcome, UserError | OSError):
        raise outcome
    return typing.cast(Result, outcome)


def gather_objects(value: Any, group: dist.ProcessGroup | None = None) -> list[Any]:
    """Return every rank's value on every rank, in rank order."""
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value, group=group or host_group())
    return values


def sum_on_hosts(values: torch.Tensor) -> torch.Tensor:
    """Return the sum over ranks of a CPU tensor."""
    total = values.clone()
    dist.all_reduce(total, group=host_group())
    return total


def rank_share(count: int) -> slice:
    """Return this rank's contiguous slice of `count` items; sizes differ by one."""
    world_size, rank = dist.get_world_size(), dist.get_rank()
    return slice(rank * count // world_size, (rank + 1) * count // world_size)


@contextlib.contextmanager
def locked_on_rank0(directory: Path) -> Iterator[None]:
    """Keep other runs from making `directory`: rank 0 holds the lock, see `making`.

    Raises:
        UserError: on every rank, if another run holds it.
    """
    with contextlib.ExitStack() as stack:
        on_rank0(lambda: stack.enter_context(making(directory)))
        yield


@contextlib.contextmanager
def write_artifact_on_all_ranks(
    directory: Path, group: dist.ProcessGroup | None = None, **manifest: Any
) -> Iterator[Path]:
    """Write one artefact from all ranks: see `publish.write_artifact`.

    Yields the working directory, to which every rank may write its own files; rank 0
    adds the manifest and publishes the artefact once all are done. Whatever a single
    rank does there, and may fail at, belongs in `raise_on_all_ranks`.

    Raises:
        UserError: rank 0 could not write the artefact, on a full disk say.
    """
    with contextlib.ExitStack() as stack:
        working = None
        with raise_on_all_ranks(group):
            if is_writer():
                working = stack.enter_context(write_artifact(directory, **manifest))
        working = broadcast_from_rank0(working, group)
        with raise_on_all_ranks(group):
            _wait_for(lambda: [] if working.is_dir() else [working])
        yield working
        gather_objects(None, group)  # every rank has written its files
        seen = gather_objects(_sizes(working), group)
        with raise_on_all_ranks(group):
            if is_writer():
                _wait_for(lambda: _lacking(working, seen))  # the manifest lists all
                stack.close()


def _sizes(directory: Path) -> dict[str, int]:
    """Return the size of every file, as this rank sees it."""
    return {
        str(path.relative_to(directory)): path.stat().st_size
        for path in directory.rglob("*")
        if path.is_file()
    }


def _lacking(directory: Path, seen: Iterable[Mapping[str, int]]) -> list[Path]:
    """Return the files that some rank sees, and this one not or not whole."""
    mine = _sizes(directory)
    return [
        directory / name
        for sizes in seen
        for name, size in sizes.items()
        if mine.get(name, -1) < size
    ]


def _wait_for(missing: Callable[[], Collection[Any]]) -> None:
    """Wait until this rank sees what others wrote: shared file systems may be late.

    Raises:
        UserError: something is still missing after a minute.
    """
    end = time.monotonic() + _VISIBLE_SECONDS
    while lacking := missing():
        if time.monotonic() > end:
            raise UserError(
                f"{rank_name()} does not see {next(iter(lacking))}, which another rank "
                "wrote; put --out on a file system that all hosts share"
            )
        time.sleep(0.1)


@contextlib.contextmanager
def raise_on_all_ranks(group: dist.ProcessGroup | None = None) -> Iterator[None]:
    """Leave the block the same way on all ranks: normally, or with an error on each.

    The block must not communicate.

    Raises:
        UserError: another rank's error; a rank's own error is raised unchanged.
    """
    error: Exception | None = None
    try:
        yield
    except Exception as raised:
        error = raised
    reasons = gather_objects(error and (one_line(error) or str(error)), group)
    if error is not None:
        raise error
    for rank, reason in enumerate(reasons):
        if reason is not None:
            raise UserError(f"rank {rank} failed: {reason}")


def quiet_known_warnings() -> None:
    """Silence messages of TorchRec and torch.fx that the user cannot act on."""
    logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)
    for message in (
        "`broadcast_buffers` is deprecated",
        "Please use DTensor instead and we are deprecating ShardedTensor",
        r"`torch\.distributed\.\w+` is deprecated",
    ):
        warnings.filterwarnings("ignore", message=message, category=FutureWarning)
