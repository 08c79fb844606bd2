"""The ID features' embeddings: pooled by sum, mean or attention, projected to one dim.

Dimension letters: B rows, S ID features, E embedding dim.
"""

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torchrec import (
    EmbeddingBagCollection,
    EmbeddingCollection,
    JaggedTensor,
    KeyedJaggedTensor,
)
from torchrec.modules.mc_embedding_modules import ManagedCollisionEmbeddingBagCollection

from learn_torchrec.ranker.attention import TargetAttention, segment_sum

FEATURE_PREFIX = (
    "f_"  # of features in names of modules, which must not be `type` or `keys`
)


class SparseArch(nn.Module):
    """TorchRec's `SparseArch`, and what it lacks.

    With the tables of the first argument alone, of dim E, it is TorchRec's, with the
    same parameter names.

    Args:
        embedding_bag_collection: tables with sum pooling.
        embedding_dim: E; tables of other dims get a linear layer.
        managed_collection: further tables with sum pooling.
        embedding_collection: tables whose embeddings are pooled here.
        means: names of features that are pooled by their mean.
        queries: features pooled by attention, and the feature that each compares its
            ids with; both are of `embedding_collection`.
        attention_hidden_dim: of the attention's MLP.
        device: of the dense parameters.

    Attributes:
        names: of the S features, in the order of the embeddings.
    """

    def __init__(
        self,
        embedding_bag_collection: EmbeddingBagCollection,
        embedding_dim: int,
        managed_collection: ManagedCollisionEmbeddingBagCollection | None = None,
        embedding_collection: EmbeddingCollection | None = None,
        means: Collection[str] = (),
        queries: Mapping[str, str] | None = None,
        attention_hidden_dim: int = 32,
        device: torch.device | None = None,
    ) -> None:
        super().__init__()
        self.embedding_bag_collection = embedding_bag_collection
        self.managed_collection = managed_collection
        self.embedding_collection = embedding_collection
        self.embedding_dim, self.means = embedding_dim, frozenset(means)
        self.queries = dict(queries or {})
        pooled = _dims(embedding_bag_collection.embedding_bag_configs())
        managed, jagged = {}, {}
        if managed_collection is not None:
            tables = managed_collection._embedding_module
            managed = _dims(tables.embedding_bag_configs())
        if embedding_collection is not None:
            jagged = _dims(embedding_collection.embedding_configs())
        dims = pooled | managed | jagged
        self.names = tuple(dims)
        self._pooled, self._managed, self._jagged = map(
            tuple, (pooled, managed, jagged)
        )
        self.attention = nn.ModuleDict(
            {
                FEATURE_PREFIX + name: TargetAttention(
                    dims[query], dims[name], attention_hidden_dim, device
                )
                for name, query in self.queries.items()
            }
        )
        self.projections = nn.ModuleDict(
            {
                FEATURE_PREFIX + name: nn.Linear(dim, embedding_dim, device=device)
                for name, dim in dims.items()
                if dim != embedding_dim
            }
        )

    def forward(
        self,
        sparse_features: KeyedJaggedTensor,
        managed_features: KeyedJaggedTensor | None = None,
        sequence_features: KeyedJaggedTensor | None = None,
    ) -> Tensor:
        """Embed B rows.

        Args:
            sparse_features: of `embedding_bag_collection`.
            managed_features: of `managed_collection`, required by it.
            sequence_features: of `embedding_collection`, required by it.

        Returns:
            float [B, S, E].
        """
        sums = self.embedding_bag_collection(sparse_features).to_dict()
        embedded = self._pool(sums, self._pooled, sparse_features)
        if self.managed_collection is not None:
            sums, _ = self.managed_collection(managed_features)
            embedded |= self._pool(sums.to_dict(), self._managed, managed_features)
        if self.embedding_collection is not None:
            embedded |= self._pool_jagged(self.embedding_collection(sequence_features))
        for name in self.names:
            if FEATURE_PREFIX + name in self.projections:
                embedded[name] = self.projections[FEATURE_PREFIX + name](embedded[name])
        together = torch.cat([embedded[name] for name in self.names], dim=1)
        return together.reshape(-1, len(self.names), self.embedding_dim)

    def _pool(
        self,
        sums: Mapping[str, Tensor],
        names: Collection[str],
        features: KeyedJaggedTensor,
    ) -> dict[str, Tensor]:
        """Return the sums [B, dim] of features, divided where they are means.

        Not by TorchRec's mean pooling: `grid_shard` returns the sum for it.
        """
        pooled = {name: sums[name] for name in names}
        for name in self.means.intersection(names):
            lengths = features.lengths().view(len(names), -1)
            pooled[name] = _mean(pooled[name], lengths[features.keys().index(name)])
        return pooled

    def _pool_jagged(self, jagged: Mapping[str, JaggedTensor]) -> dict[str, Tensor]:
        """Return the pooled embeddings [B, dim] of the unpooled tables."""
        pooled: dict[str, Tensor] = {}
        for name in self._jagged:
            if name not in self.queries:
                values, lengths = jagged[name].values(), jagged[name].lengths()
                sums = segment_sum(values, lengths)
                pooled[name] = _mean(sums, lengths) if name in self.means else sums
        for name, query in self.queries.items():
            values, lengths = jagged[name].values(), jagged[name].lengths()
            attention = self.attention[FEATURE_PREFIX + name]
            pooled[name] = attention(pooled[query], values, lengths)
        return pooled


def _mean(sums: Tensor, lengths: Tensor) -> Tensor:
    """Divide sums [B, dim] by the rows' numbers of ids [B]; 0 without ids."""
    return sums / lengths.clamp(min=1).unsqueeze(1)


def _dims(configs: list[Any]) -> dict[str, int]:
    """Return the dim of each feature, in the order of the tables."""
    return {name: c.embedding_dim for c in configs for name in c.feature_names}
