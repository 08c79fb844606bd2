"""Conversion of the authors' checkpoints to this library's parameter names.

Their public code (Amazon experiments) has the encoder of `EncoderShape(num_layers=4,
vector_dim=4096, max_positions=0)`: no positions, no input norm, and content vectors
that are not standardized.
"""

from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from learn_torchrec.errors import UserError, first_line

_UNREADABLE = (
    *(OSError, EOFError, SafetensorError, UnpicklingError, RuntimeError, MemoryError),
    *(ValueError, TypeError, AttributeError, LookupError),
)
_LAYER = "summary_encoder.layer."
_RENAMED = {
    "attention.output.dense": "attention_output",
    "attention.output.LayerNorm": "attention_norm",
    "intermediate.dense": "feed_forward_in",
    "output.dense": "feed_forward_out",
    "output.LayerNorm": "feed_forward_norm",
}
_HEADS = {"adaptor": "content_projection", "mlp.0": "vector_projection"}


def read_official_checkpoint(path: Path) -> dict[str, Tensor]:
    """Read a checkpoint of the authors' model without executing code from it.

    It is a .safetensors file, or a state dict from `torch.save`, alone or under the key
    `state_dict`.

    Raises:
        UserError: a file that cannot be read, or holds another model.
    """
    if path.exists() and not path.is_file():  # a pipe would wait for its writer
        raise UserError(f"{path}: not a plain file; pass the model's state dict")
    try:
        if path.suffix == ".safetensors":
            state: dict[str, Any] = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        raise UserError(
            f"{path}: cannot be read as a checkpoint ({first_line(error)}); pass the "
            "model's state dict alone"
        ) from None
    if isinstance(state, dict):
        state = state.get("state_dict", state)
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and isinstance(value, Tensor)
        for name, value in state.items()
    ):
        raise UserError(
            f"{path}: holds more than tensors; pass the model's state dict alone"
        )
    return convert_official_checkpoint(state, str(path))


def convert_official_checkpoint(
    state: Mapping[str, Tensor], source: str = "checkpoint"
) -> dict[str, Tensor]:
    """Convert a state dict of the authors' model to one of `PreferenceEncoder`.

    Names may begin with `module.`, as saved from data-parallel training. The content
    mean is 0 and the standard deviation 1. `source` is its file, for messages.

    Raises:
        UserError: a name that their model does not have, or one that is missing.
    """
    state = {name.removeprefix("module."): value for name, value in state.items()}
    converted = {}
    layers: dict[str, dict[str, Tensor]] = {}
    for name, value in state.items():
        if name.startswith(_LAYER):
            number, _, rest = name.removeprefix(_LAYER).partition(".")
            layers.setdefault(number, {})[rest] = value
            continue
        module, _, kind = name.rpartition(".")
        if module not in _HEADS:
            raise UserError(
                f"{source}: {name} is not a parameter of the authors' model; "
                f"expected {_LAYER}*, {', '.join(_HEADS)}"
            )
        converted[f"{_HEADS[module]}.{kind}"] = value
    for number, parameters in layers.items():
        for name, value in _convert_layer(number, parameters, source).items():
            converted[f"sequence_encoder.layers.{number}.{name}"] = value
    for head in _HEADS.values():
        if f"{head}.weight" not in converted:
            raise UserError(f"{source}: has no {head}; is it one of the authors'?")
    content_dim = converted["content_projection.weight"].shape[1]
    return {
        "mean": torch.zeros(content_dim),
        "std": torch.ones(content_dim),
        **converted,
    }


def _convert_layer(
    number: str, layer: dict[str, Tensor], source: str
) -> dict[str, Tensor]:
    converted = {}
    try:
        for kind in ("weight", "bias"):
            converted[f"query_key_value.{kind}"] = torch.cat(
                [
                    layer[f"attention.self.{part}.{kind}"]
                    for part in ("query", "key", "value")
                ]
            )
            for theirs, ours in _RENAMED.items():
                converted[f"{ours}.{kind}"] = layer[f"{theirs}.{kind}"]
    except KeyError as error:
        raise UserError(
            f"{source}: layer {number} has no {error.args[0]}; is it one of the "
            "authors'?"
        ) from None
    return converted
