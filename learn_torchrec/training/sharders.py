"""TorchRec's sharders of tables, and the precision in which ranks send embeddings."""

from typing import Any

import torch
from torch import nn
from torchrec.distributed.embedding import EmbeddingCollectionSharder
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.fbgemm_qcomm_codec import (
    CommType,
    QCommsConfig,
    get_qcomm_codecs_registry,
)
from torchrec.distributed.mc_embeddingbag import (
    ManagedCollisionEmbeddingBagCollectionSharder,
)
from torchrec.distributed.types import ModuleSharder

from learn_torchrec.errors import UserError
from learn_torchrec.training.precision import Communication

# Sharding types that work on the CPU, although TorchRec's sharder omits them there.
_HIDDEN_ON_CPU = ("row_wise", "table_row_wise", "grid_shard")
_TYPES: dict[Communication, CommType] = {
    "float32": CommType.FP32,
    "float16": CommType.FP16,
    "bfloat16": CommType.BF16,
}
_GRADIENT_SCALE = 1024.0  # of float16, whose smallest number is 6e-8


def codecs(precision: Communication, device: torch.device) -> dict[str, Any] | None:
    """Return what TorchRec's sharders call their `qcomm_codecs_registry`.

    Raises:
        UserError: bfloat16 on the CPU.
    """
    if precision == "bfloat16" and device.type == "cpu":
        raise UserError(
            "ranker.training.communication=bfloat16: gloo cannot send it; use float16 "
            "or float32, or train on CUDA"
        )
    kind = _TYPES[precision]
    scale = _GRADIENT_SCALE if precision == "float16" else None
    config = QCommsConfig(
        forward_precision=kind, backward_precision=kind, backward_loss_scale=scale
    )
    registry: dict[str, Any] | None = get_qcomm_codecs_registry(config, device=device)
    return registry


def sharders(
    sent_as: dict[str, Any] | None = None,
) -> list[ModuleSharder[nn.Module]]:
    """Return the sharders of every kind of table collection.

    `sent_as` are the `codecs` of embeddings; None for float32.
    """
    bags, items = (
        kind(qcomm_codecs_registry=sent_as)
        for kind in (_BagSharder, EmbeddingCollectionSharder)
    )
    managed = ManagedCollisionEmbeddingBagCollectionSharder(
        ebc_sharder=bags, qcomm_codecs_registry=sent_as
    )
    return [bags, items, managed]


class _BagSharder(EmbeddingBagCollectionSharder):
    """TorchRec's sharder, plus the sharding types it omits on the CPU."""

    def sharding_types(self, compute_device_type: str) -> list[str]:
        types: list[str] = super().sharding_types(compute_device_type)
        return types + [kind for kind in _HIDDEN_ON_CPU if kind not in types]
