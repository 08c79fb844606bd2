"""The process group: the only library file that reads rank variables.

`LOCAL_RANK` chooses the device and nothing else; rank 0 of the job writes.
"""

import contextlib
import datetime
import logging
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from learn_torchrec.artifact import write_artifact

_TIMEOUT = datetime.timedelta(minutes=10)


@contextlib.contextmanager
def process_group() -> Iterator[torch.device]:
    """Join the job that torchrun describes, or make one of a single rank.

    Yields:
        This rank's device: `cuda:LOCAL_RANK` where there is CUDA (NCCL), else the
        CPU (gloo).
    """
    quiet_known_warnings()
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
        backend = "nccl"
    else:
        device = torch.device("cpu")
        backend = "gloo"
    _init(backend)
    try:
        yield device
    finally:
        dist.destroy_process_group()


def _init(backend: str) -> None:
    if "RANK" not in os.environ:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    elif os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        # The agent's store outlives a restart and keeps the addresses of the dead
        # workers; a prefix for each attempt hides them.
        rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        agent = dist.TCPStore(host, port, world_size, False, timeout=_TIMEOUT)
        store = dist.PrefixStore(f"attempt_{attempt}", agent)
        dist.init_process_group(
            backend, store=store, rank=rank, world_size=world_size, timeout=_TIMEOUT
        )
    else:
        dist.init_process_group(backend, timeout=_TIMEOUT)


def local_world_size() -> int:
    """Ranks on this host (the planner's topology asks)."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", dist.get_world_size()))


def is_writer() -> bool:
    """Whether this rank writes files and logs: rank 0 of the job."""
    return dist.get_rank() == 0


def from_writer(value: Any) -> Any:
    """Return rank 0's value on every rank."""
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def gather_objects(value: Any) -> list[Any]:
    """Return every rank's value on every rank, in rank order."""
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def rank_share(count: int) -> slice:
    """Return this rank's contiguous share of `count` things; shares differ by one."""
    world_size, rank = dist.get_world_size(), dist.get_rank()
    return slice(rank * count // world_size, (rank + 1) * count // world_size)


@contextlib.contextmanager
def write_artifact_together(directory: Path, **manifest: Any) -> Iterator[Path]:
    """Write one artefact from all ranks: see `artifact.write_artifact`.

    Every rank may write its own files into the working directory that is yielded;
    rank 0 adds the manifest and makes the artefact visible once all are done.
    """
    if is_writer():
        with write_artifact(directory, **manifest) as working:
            yield from_writer(working)
            dist.barrier()
    else:
        yield from_writer(None)
        dist.barrier()
    dist.barrier()


def quiet_known_warnings() -> None:
    """Silence messages of TorchRec and torch.fx that ask nothing of the user."""
    logging.getLogger("torchrec").setLevel(logging.ERROR)
    logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)
    for message in (
        "HeuristicalStorageReservation is known",
        "`broadcast_buffers` is deprecated",
        "Please use DTensor instead and we are deprecating ShardedTensor",
    ):
        warnings.filterwarnings("ignore", message=message, category=FutureWarning)
