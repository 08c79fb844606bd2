"""Checks of the machine's free memory and disk space."""

import os
import shutil
from pathlib import Path

from learn_torchrec.host_memory import available_memory

from . import Check, good, problem

GIB = 1 << 30
LEAST_SHARED = GIB // 4  # containers start with 64 MiB, too little for loader workers
LEAST_DISK = 2 * GIB
LEAST_MEMORY = 2 * GIB


def check_shared_memory(place: Path = Path("/dev/shm")) -> Check:
    """Check the memory through which loader workers and ranks pass tensors."""
    name = "shared memory"
    if not place.is_dir():
        return good(name, f"no {place} on this system")
    usage = shutil.disk_usage(place)
    found = f"{place}: {usage.free / GIB:.2f} of {usage.total / GIB:.2f} GiB free"
    if usage.free < LEAST_SHARED:
        return problem(
            name,
            found,
            "docker run --shm-size=2g (kubernetes: an emptyDir of medium Memory), "
            f"or remove stale files from {place}",
        )
    return good(name, found)


def check_disk(directory: Path) -> Check:
    """Check the free space where runs are written."""
    free = shutil.disk_usage(directory).free
    found = f"{free / GIB:.1f} GiB free in {directory}"
    if free < LEAST_DISK:
        return problem(
            "disk", found, f"free {LEAST_DISK // GIB} GiB or run in another directory"
        )
    return good("disk", found)


def check_memory(available: int | None = None) -> Check:
    """Check the available memory in bytes, and report the number of processors."""
    available = available_memory() if available is None else available
    found = f"{available / GIB:.1f} GiB available, {processors()} processors"
    if available < LEAST_MEMORY:
        return problem(
            "memory",
            found,
            f"stop other programs or raise the limit to {LEAST_MEMORY // GIB} GiB",
        )
    return good("memory", found)


def processors() -> int:
    """Return how many processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
