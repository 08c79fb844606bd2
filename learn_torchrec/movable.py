"""The base class of batches: groups of tensors that move between devices as one."""

import dataclasses
from collections.abc import Callable
from typing import Any, Self

import torch


class Movable:
    """Moves every field; subclasses are plain dataclasses.

    Fields are tensors, TorchRec's `KeyedJaggedTensor`s, other such batches,
    dictionaries of them, numbers, or None.
    """

    def to(self, device: torch.device, non_blocking: bool = False) -> Self:
        """Return the batch on `device`."""
        return self._map(lambda x: x.to(device=device, non_blocking=non_blocking))

    def record_stream(self, stream: torch.Stream) -> None:
        """Tell the allocator that `stream` uses the batch."""
        self._map(lambda x: x.record_stream(stream))

    def pin_memory(self) -> Self:
        """Return the batch in pinned memory."""
        return self._map(lambda x: x.pin_memory())

    def _map(self, function: Callable[[Any], Any]) -> Self:
        def moved(value: Any) -> Any:
            if isinstance(value, dict):
                return {name: moved(part) for name, part in value.items()}
            return value if value is None or isinstance(value, int) else function(value)

        fields = dataclasses.fields(self)  # type: ignore[arg-type]
        return type(self)(**{f.name: moved(getattr(self, f.name)) for f in fields})
