"""Copies of a rank's tensors in host memory, for a thread that writes them."""

import copy
import logging
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.distributed._shard.metadata import ShardMetadata
from torch.distributed._shard.sharded_tensor import Shard, ShardedTensor
from torch.distributed.remote_device import _remote_device

from learn_torchrec.host_memory import available_memory
from learn_torchrec.training.distributed import (
    gather_objects,
    is_writer,
    local_world_size,
)

logger = logging.getLogger(__name__)

_LARGEST_SHARE = 0.8  # of the available memory


class HostCopies:
    """Copies of tensors in host memory, in buffers that are reused.

    A second thread writes the copies while training modifies the originals. Reused
    buffers cause no page faults. They are not pinned: pages as many as all GPU memory
    would be locked for the whole training, to save seconds at each checkpoint.

    PyTorch's own stagers do not fit: `DefaultStager` refuses a `ShardedTensor`;
    `BlockingAsyncStager` copies it, but reuses only pinned memory, which needs CUDA.
    `dcp.async_save` does not fit either: the thread also writes the manifest together
    with the other ranks, over its own communicator with a timeout of hours.
    """

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}
        self._fit: bool | None = None

    def fit(self, state: Mapping[str, Any]) -> bool:
        """Whether every host has room for its ranks' copies; decided and said once.

        Every rank takes part and gets the same answer.
        """
        if self._fit is None:
            size = sum(map(_bytes, _local_tensors(state))) * local_world_size()
            self._fit = all(gather_objects(size < _LARGEST_SHARE * available_memory()))
            if not self._fit and is_writer():
                logger.warning(
                    "checkpoint.asynchronous: a host's memory has no room for copies "
                    "of what its ranks save; training waits for each checkpoint"
                )
        return self._fit

    def of(self, state: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
        """Copy nested dictionaries of tensors; sharded ones keep their shards."""
        return {
            name: self._copy(value, f"{prefix}{name}") for name, value in state.items()
        }

    def _copy(self, value: Any, name: str) -> Any:
        if isinstance(value, Mapping):
            return self.of(value, f"{name}.")
        if isinstance(value, ShardedTensor):
            shards = [
                Shard(self._copy(shard.tensor, f"{name}.{n}"), _on_host(shard.metadata))
                for n, shard in enumerate(value.local_shards())
            ]
            metadata = copy.deepcopy(value.metadata())
            metadata.shards_metadata = list(map(_on_host, metadata.shards_metadata))
            metadata.tensor_properties.pin_memory = False
            return ShardedTensor._init_from_local_shards_and_global_metadata(
                shards,
                sharded_tensor_metadata=metadata,
                process_group=value._process_group,
            )
        if not isinstance(value, Tensor):
            return value
        buffer = self._buffers.get(name)
        if buffer is None or buffer.shape != value.shape or buffer.dtype != value.dtype:
            buffer = torch.empty(value.shape, dtype=value.dtype)
            self._buffers[name] = buffer
        return buffer.copy_(value.detach())


def _local_tensors(state: Mapping[str, Any]) -> Iterator[Tensor]:
    """Yield this rank's tensors of nested dictionaries."""
    for value in state.values():
        if isinstance(value, Mapping):
            yield from _local_tensors(value)
        elif isinstance(value, ShardedTensor):
            yield from (shard.tensor for shard in value.local_shards())
        elif isinstance(value, Tensor):
            yield value


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _on_host(metadata: ShardMetadata) -> ShardMetadata:
    """Return a shard's metadata with its placement moved to the CPU."""
    placement = metadata.placement
    assert isinstance(placement, _remote_device)
    return ShardMetadata(
        shard_offsets=list(metadata.shard_offsets),
        shard_sizes=list(metadata.shard_sizes),
        placement=_remote_device(f"rank:{placement.rank()}/cpu"),
    )
