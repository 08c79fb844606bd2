"""A trainable vector for every catalogue item, in a sharded TorchRec table."""

import torch
from torch import Tensor, nn
from torchrec import EmbeddingCollection, EmbeddingConfig, KeyedJaggedTensor

ITEM_TABLE = "t_item_id"
_FEATURE = "item_id"


class ItemIds(nn.Module):
    """Item ids as input of the towers: the paper's ID row, or added to the content.

    Count-based shrinkage: the vector of an item with n training events is scaled by
    n / (n + k). It is exactly zero for a cold-start item, so that content + id falls
    back to the content.

    Args:
        event_counts: int64 or float32 [N], training events of each item.
        dim: W, of a vector.
        shrinkage: k, the event count at which the factor is 1/2; 0 disables shrinkage
            of items with any event.
        device: of the table; "meta" where TorchRec shards and fills it.
    """

    trust: Tensor  # shrinkage factors [N], under this name in artefacts

    def __init__(
        self,
        event_counts: Tensor,
        dim: int,
        shrinkage: float,
        device: torch.device | None = None,
    ) -> None:
        super().__init__()
        counts = event_counts.float()
        # Not 0 / 0 for a cold-start item where shrinkage is 0.
        trust = torch.where(counts > 0, counts / (counts + shrinkage), 0.0)
        self.register_buffer("trust", trust)
        self.table = EmbeddingCollection(
            device=device or torch.device("cpu"),
            tables=[
                EmbeddingConfig(
                    name=ITEM_TABLE,
                    embedding_dim=dim,
                    num_embeddings=len(counts),
                    feature_names=[_FEATURE],
                )
            ],
        )

    def forward(self, rows: KeyedJaggedTensor) -> Tensor:
        """Look up U items, `as_kjt(rows)` -> float32 [U, W]."""
        looked_up = self.table(rows)[_FEATURE]
        return looked_up.values() * self.trust[rows.values()].unsqueeze(1)


def as_kjt(rows: Tensor) -> KeyedJaggedTensor:
    """Store rows, int64 [U], as a KJT of one id per item."""
    return KeyedJaggedTensor(
        keys=[_FEATURE],
        values=rows,
        lengths=torch.ones_like(rows, dtype=torch.int32),
        length_per_key=[len(rows)],  # so that no device is asked for it
        offset_per_key=[0, len(rows)],
    )
