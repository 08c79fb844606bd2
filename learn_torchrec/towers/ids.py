"""A trainable vector for every item of the catalogue, in a sharded TorchRec table."""

import torch
from torch import Tensor, nn
from torchrec import EmbeddingCollection, EmbeddingConfig, KeyedJaggedTensor

ITEM_TABLE = "t_item_id"
_FEATURE = "item_id"


class ItemIds(nn.Module):
    """Item ids as input of the towers (the paper's ID row, or added to the content).

    Vectors are shrunk by counts: an item with n training events has its vector times
    n / (n + k). A new item's is exactly zero, so that content + id falls back to
    content where nothing is known of the id.

    Args:
        event_counts: int64 or float32 [N], training events of each item.
        dim: W, of a vector.
        shrinkage: k, the events at which an id counts half; 0 shrinks no item with
            any.
        device: of the table; "meta" where TorchRec shards and fills it.
    """

    trust: Tensor

    def __init__(
        self,
        event_counts: Tensor,
        dim: int,
        shrinkage: float,
        device: torch.device | None = None,
    ) -> None:
        super().__init__()
        counts = event_counts.float()
        # 0 / 0 for a new item where shrinkage is 0.
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
        """Look items up: `keyed(rows)` of U rows -> float32 [U, W]."""
        looked_up = self.table(rows)[_FEATURE]
        return looked_up.values() * self.trust[rows.values()].unsqueeze(1)


def keyed(rows: Tensor) -> KeyedJaggedTensor:
    """Store rows, int64 [U], in the form that TorchRec's tables read."""
    return KeyedJaggedTensor(
        keys=[_FEATURE], values=rows, lengths=torch.ones_like(rows, dtype=torch.int32)
    )
