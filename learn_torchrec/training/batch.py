"""The base class of batches that TorchRec's pipelines move between devices."""

from collections.abc import Generator, Iterable
from typing import TypeVar

import torch
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
