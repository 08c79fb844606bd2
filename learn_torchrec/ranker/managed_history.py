"""The ids that managed-collision tables have collected since the last eviction.

TorchRec collects a rank's ids for some steps before it assigns rows to frequent ones,
but keeps them out of the state dict. Without them, a resumed training would assign rows
to other ids than an uninterrupted one.
"""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from torchrec.modules.mc_modules import MCHManagedCollisionModule

_COUNTS, _IDS = "counts", "ids"


def input_history(model: nn.Module) -> dict[str, Tensor]:
    """Return this rank's collected ids, by table and kind; views, not copies.

    Empty without managed tables, or before their first batch.
    """
    history = {}
    for name, module in _modules(model):
        if module._input_history_buffer_size < 0:
            continue
        used = module._current_history_buffer_offset
        counts = (module._input_history_buffer_size, module._last_eviction_iter)
        history[f"{name}.{_COUNTS}"] = torch.tensor(counts)
        history[f"{name}.{_IDS}"] = module._history_accumulator[:used]
        for kind, values in module._history_metadata.items():
            history[f"{name}.{kind}"] = values[:used]
    return history


@torch.no_grad()
def restore_input_history(model: nn.Module, history: Mapping[str, Tensor]) -> None:
    """Restore this rank's history after the state dict of the model is loaded.

    The model is sharded over the same number of ranks; tables without a history stay as
    they are.
    """
    for name, module in _modules(model):
        if f"{name}.{_COUNTS}" not in history:
            continue
        size, last_eviction = history[f"{name}.{_COUNTS}"].tolist()
        used = len(history[f"{name}.{_IDS}"])
        module._input_history_buffer_size = size
        module._current_history_buffer_offset = used
        module._current_iter = int(module._current_iter_tensor.item())
        module._last_eviction_iter = last_eviction
        module._history_accumulator = _buffer(size, history[f"{name}.{_IDS}"], module)
        for kind, _, is_history in module._eviction_policy.metadata_info:
            if is_history:
                buffer = _buffer(size, history[f"{name}.{kind}"], module)
                module.register_buffer(f"_history_{kind}", buffer, persistent=False)
                module._history_metadata[kind] = buffer


def _modules(model: nn.Module) -> Iterator[tuple[str, MCHManagedCollisionModule]]:
    for name, module in model.named_modules():
        if isinstance(module, MCHManagedCollisionModule):
            yield name, module


def _buffer(size: int, used: Tensor, module: MCHManagedCollisionModule) -> Tensor:
    buffer = torch.zeros(size, dtype=torch.int64, device=module.device)
    buffer[: len(used)] = used
    return buffer
