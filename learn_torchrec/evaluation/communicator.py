"""Collective operations of the metrics: over one process, or over several ranks."""

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


class Communicator(Protocol):
    """The processes that together hold the rows of one table.

    Attributes:
        rank: of this process.
        size: number of ranks.
    """

    rank: int
    size: int

    def gather(self, value: Any) -> list[Any]:
        """Return every rank's value on every rank, in rank order."""

    def exchange(self, parts: list[Array]) -> list[Array]:
        """Send `parts[r]` to rank r; return what each rank sent here, in rank order.

        Arrays are one-dimensional and of one dtype.
        """


class LocalCommunicator:
    """A single process, which holds all rows."""

    rank = 0
    size = 1

    def gather(self, value: Any) -> list[Any]:
        """Return this rank's value alone."""
        return [value]

    def exchange(self, parts: list[Array]) -> list[Array]:
        """Return what this rank sent to itself."""
        return parts


class TorchCommunicator:
    """The ranks of torch.distributed's default process group.

    Args:
        device: `torch.device` whose tensors the backend sends (NCCL: this rank's GPU).
    """

    def __init__(self, device: Any) -> None:
        import torch.distributed as dist  # a single process needs no torch

        self.rank = dist.get_rank()
        self.size = dist.get_world_size()
        self._device = device

    def gather(self, value: Any) -> list[Any]:
        """Return every rank's value on every rank, in rank order."""
        import torch.distributed as dist

        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def exchange(self, parts: list[Array]) -> list[Array]:
        """Send `parts[r]` to rank r; return what each rank sent here."""
        import torch
        import torch.distributed as dist

        lengths = self.gather([len(part) for part in parts])
        received = [sent_to[self.rank] for sent_to in lengths]
        width = parts[0].dtype.itemsize
        sent = np.concatenate(parts).view(np.uint8)
        result = torch.empty(width * sum(received), dtype=torch.uint8)
        result = result.to(self._device)
        dist.all_to_all_single(
            result,
            torch.from_numpy(sent).to(self._device),
            [width * length for length in received],
            [width * len(part) for part in parts],
        )
        flat = result.cpu().numpy().view(parts[0].dtype)
        return np.split(flat, np.cumsum(received)[:-1])
