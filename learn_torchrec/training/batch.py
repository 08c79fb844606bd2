"""The base class of batches that TorchRec's pipelines move between devices."""

from collections.abc import Generator, Iterable
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torchrec.streamable import Pipelineable

from learn_torchrec.movable import Movable


class PipelineableBatch(Movable, Pipelineable):
    """A batch as a whole; its parts need only be `Movable`."""


Batch = TypeVar("Batch", bound=PipelineableBatch)


def pinned(batches: Iterable[Batch], device: torch.device) -> Generator[Batch]:
    """Yield the batches, in pinned memory where `device` is a GPU.

    Only from pinned memory does a copy to the GPU run beside its computations.
    """
    for batch in batches:
        yield batch.pin_memory() if device.type == "cuda" else batch


def to_device(array: np.ndarray[Any, Any], device: torch.device) -> Tensor:
    """Copy an array to a device, to a GPU from pinned memory, without waiting."""
    tensor = torch.from_numpy(array)
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
