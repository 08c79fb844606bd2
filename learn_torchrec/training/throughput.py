"""Throughput of a run: rates, utilization of the device, memory."""

import resource
import time

import torch
import torch.distributed as dist

_PROBE_SIZE = {"cpu": 1024, "cuda": 8192}
_PROBE_SECONDS = 0.2


class Throughput:
    """Counts what a rank processes in an epoch.

    Args:
        peak: FLOP/s of the rank's device, see `gemm_flops_per_second`.
    """

    def __init__(self, peak: float) -> None:
        self._peak = peak
        self._start = time.monotonic()
        self._users = 0
        self._tokens = 0
        self._flops = 0.0

    def add(self, users: int, tokens: int, flops: float) -> None:
        """Count one batch; `flops` are those of its forward and backward pass."""
        self._users += users
        self._tokens += tokens
        self._flops += flops

    def result(self) -> dict[str, float]:
        """Return the rates of all ranks together, as estimated by this rank.

        `peak_share` is the share of the device's matrix-product throughput in the run's
        precision; `peak_memory_mb` is of this rank's process (CPU) or device (CUDA).
        """
        seconds = time.monotonic() - self._start
        scale = dist.get_world_size() / seconds
        return {
            "users_per_s": round(self._users * scale, 1),
            "tokens_per_s": round(self._tokens * scale, 1),
            "peak_share": round(self._flops / seconds / self._peak, 3),
            "peak_memory_mb": round(peak_memory() / 2**20, 1),
        }


def peak_memory() -> int:
    """Return this process's peak memory in bytes, on the device where that is CUDA."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def gemm_flops_per_second(device: torch.device, dtype: torch.dtype) -> float:
    """Measure the matrix-product throughput of a device for a fraction of a second.

    Ranks that share a processor measure at the same time, so each sees its share.
    """
    size = _PROBE_SIZE.get(device.type, 1024)
    a = torch.randn(size, size, device=device).to(dtype)
    torch.mm(a, a)
    count, start = 0, time.monotonic()
    while time.monotonic() - start < _PROBE_SECONDS:
        torch.mm(a, a)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        count += 1
    return 2.0 * size**3 * count / (time.monotonic() - start)
