"""Tries torch for real, in a child process of the doctor.

A broken library can kill the process, so each finding is printed, as a line of JSON, as
soon as it is known.
"""

import json
import tempfile
from collections.abc import Callable
from typing import Any

STEPS: dict[str, Callable[[], Any]] = {}


def _step(function: Callable[[], Any]) -> Callable[[], Any]:
    STEPS[function.__name__] = function
    return function


@_step
def devices() -> dict[str, Any]:
    """Return the backends and the GPUs that torch offers."""
    import torch
    from torch import distributed

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return {
        "gloo": distributed.is_gloo_available(),
        "nccl": distributed.is_nccl_available(),
        "cuda_build": torch.version.cuda,
        "gpus": [torch.cuda.get_device_name(index) for index in range(count)],
    }


@_step
def fbgemm() -> list[int]:
    """Return the offsets [0, 2, 2, 5] of lengths [2, 0, 3], from an fbgemm op."""
    import fbgemm_gpu  # noqa: F401 - importing it registers the ops
    import torch

    lengths = torch.tensor([2, 0, 3])
    offsets: list[int] = torch.ops.fbgemm.asynchronous_complete_cumsum(lengths).tolist()
    return offsets


@_step
def torchrec() -> list[float]:
    """Return row (4, 5, 6, 7) plus row (8, 9, 10, 11) of an embedding table."""
    import torch
    from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor

    table = EmbeddingBagConfig(
        name="t_item", embedding_dim=4, num_embeddings=3, feature_names=["item"]
    )
    tables = EmbeddingBagCollection(tables=[table])
    with torch.no_grad():
        weight = tables.embedding_bags["t_item"].weight
        weight.copy_(torch.arange(12.0).reshape(3, 4))
    bag = KeyedJaggedTensor(["item"], torch.tensor([1, 2]), lengths=torch.tensor([2]))
    pooled: list[float] = tables(bag)["item"][0].tolist()
    return pooled


@_step
def all_reduce() -> float:
    """Return 3.0 after a gloo all_reduce in a group of one process."""
    import torch
    from torch import distributed

    with tempfile.TemporaryDirectory() as folder:
        distributed.init_process_group(
            "gloo", init_method=f"file://{folder}/store", rank=0, world_size=1
        )
        value = torch.tensor([3.0])
        distributed.all_reduce(value)
        distributed.destroy_process_group()
    return value.item()


def main() -> None:
    """Print what each step returned or raised, as a line of JSON."""
    for name, step in STEPS.items():
        try:
            finding = {"step": name, "value": step()}
        except Exception as error:  # whatever a broken installation raises
            reason = (str(error).splitlines() or [""])[0]
            finding = {"step": name, "error": f"{type(error).__name__}: {reason}"}
        print(json.dumps(finding), flush=True)


if __name__ == "__main__":
    main()
