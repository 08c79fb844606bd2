"""The memory of this host, within the container's limit."""

import os
from pathlib import Path

_CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")
_CGROUP_USED = Path("/sys/fs/cgroup/memory.current")
_MEMINFO = Path("/proc/meminfo")


def host_memory() -> int:
    """Return this host's memory in bytes."""
    memory, limit = _physical(), _limit()
    return memory if limit is None else min(memory, limit)


def available_memory() -> int:
    """Return the bytes available to a new process."""
    available, limit = _physical(), _limit()
    if _MEMINFO.exists():
        fields = dict(
            line.split(":", 1) for line in _MEMINFO.read_text().splitlines() if line
        )
        available = int(fields["MemAvailable"].split()[0]) * 1024  # given in kB
    if limit is not None:
        available = min(available, limit - int(_CGROUP_USED.read_text()))
    return available


def _physical() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _limit() -> int | None:
    """Return the container's limit; None without one."""
    limit = _CGROUP_LIMIT.read_text().strip() if _CGROUP_LIMIT.exists() else "max"
    return None if limit == "max" else int(limit)
