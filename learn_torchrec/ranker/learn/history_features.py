"""What the candidate has to do with its user's history, as dense features.

They are statistics over the history, past rates of similar items, and products of
vectors. The vectors themselves are no features: they would tell the item and the user
as an id does, which ID tables already do, and be learned by heart.

Letters: B rows, D vector dim, R reduced content dim, P projected dim.
"""

import itertools
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchrec import JaggedTensor

from learn_torchrec.ranker.learn.attention import HistoryAttention
from learn_torchrec.ranker.learn.batch import HistoryBatch, LearnBatch
from learn_torchrec.ranker.learn.config import LearnConfig
from learn_torchrec.ranker.learn.shape import LearnShape
from learn_torchrec.ranker.learn.statistics import TargetStatistics, mean_of_history


class Products(nn.Module):
    """Cosines and learned products of the vectors that describe a row.

    Args:
        dims: of each vector, by name.
        projected_dim: P, of all vectors before they are multiplied.
        device: of the parameters.

    Attributes:
        out_features: width of the output.
    """

    def __init__(
        self,
        dims: Mapping[str, int],
        projected_dim: int,
        device: torch.device | None = None,
    ) -> None:
        super().__init__()
        self.projections = nn.ModuleDict(
            {
                name: nn.Linear(dim, projected_dim, bias=False, device=device)
                for name, dim in dims.items()
            }
        )
        self.out_features = len(dims) * (len(dims) - 1) // 2

    def forward(self, vectors: Mapping[str, Tensor]) -> Tensor:
        """Return the products of each pair of `vectors` [B, dim], [B, out_features]."""
        parts = [layer(vectors[name]) for name, layer in self.projections.items()]
        pairs = itertools.combinations(parts, 2)
        return torch.stack([(one * other).sum(1) for one, other in pairs], dim=1)


class HistoryFeatures(nn.Module):
    """Dense features of how a candidate meets its user, for any ranker.

    They are whether both have a vector, statistics over the history
    (`TargetStatistics`), the neighbours' past rates, cosines and learned products of
    vectors and, if configured, what attention finds.

    Args:
        shape: widths of the inputs: `LearnInputs.shape`, or that of one's own tensors.
        config: which features; that of the inputs.
        device: of the parameters.

    Attributes:
        out_features: width of the features.

    Example:
        >>> import torch
        >>> from learn_torchrec import HistoryBatch, HistoryFeatures, LearnShape
        >>> content = torch.randn(100, 32)                      # of 100 items
        >>> learn = HistoryFeatures(LearnShape(content_dim=32))
        >>> bought, days_ago = [7, 8, 7], [30.0, 4.0, 1.5]      # by the second user
        >>> history = HistoryBatch.of([5, 9], bought, [0, 3], days_ago, content)
        >>> learn(history).shape == (2, learn.out_features)
        True
    """

    def __init__(
        self,
        shape: LearnShape,
        config: LearnConfig | None = None,
        device: torch.device | None = None,
    ) -> None:
        super().__init__()
        config = (config or LearnConfig()).that_fits(shape.spaces)
        self.out_features = 2 + shape.rates
        self.statistics: TargetStatistics | None = None
        if config.statistics.spaces:
            self.statistics = TargetStatistics(config.statistics)
            self.out_features += self.statistics.out_features
        self.products: Products | None = None
        dims: dict[str, int] = {}
        if config.interactions and shape.vector_dim:
            dims |= dict.fromkeys(("user", "item"), shape.vector_dim)
        if config.interactions and shape.content_dim:
            dims |= dict.fromkeys(("history", "candidate"), shape.content_dim)
        if dims:
            self.products = Products(dims, config.projected_dim, device)
            self.out_features += self.products.out_features + len(dims) // 2
        self.attention: HistoryAttention | None = None
        if config.attention != "off":
            self.attention = HistoryAttention(
                0 if config.attention == "id" else shape.content_dim,
                config.projected_dim,
                config.attends_to_ids,
                device,
            )
            self.out_features += self.attention.out_features

    def forward(
        self,
        batch: LearnBatch | HistoryBatch,
        ids: Mapping[str, JaggedTensor] | None = None,
    ) -> Tensor:
        """Return the features, float32 [B, out_features].

        Args:
            batch: LEARN's inputs; the histories alone where there are no towers.
            ids: embeddings of `batch.item_ids`, for attention with ids.
        """
        if isinstance(batch, HistoryBatch):
            batch = LearnBatch.of(batch)
        parts = [batch.has_vectors.float()]
        if self.statistics is not None:
            found = batch.statistics
            parts.append(self.statistics(batch.history) if found is None else found)
        if batch.neighbour_rates is not None:
            parts.append(batch.neighbour_rates)
        if self.products is not None:
            vectors = self._vectors(batch)
            pairs = list(vectors.values())
            for left, right in zip(pairs[::2], pairs[1::2], strict=True):
                parts.append(F.cosine_similarity(left, right, dim=1).unsqueeze(1))
            parts.append(self.products(vectors))
        if self.attention is not None:
            parts.append(self.attention(batch.history, ids))
        return torch.cat(parts, dim=1)

    @staticmethod
    def _vectors(batch: LearnBatch) -> dict[str, Tensor]:
        """Return the vectors to be multiplied, float32, pair after pair."""
        found: dict[str, Tensor] = {}
        if batch.user_vectors is not None and batch.item_vectors is not None:
            found["user"] = batch.user_vectors.float()
            found["item"] = batch.item_vectors.float()
        if batch.candidates is not None:
            means = batch.history_means
            if means is None:
                assert batch.history is not None
                means = mean_of_history(batch.history)
            found["history"] = means.float()
            found["candidate"] = batch.candidates.float()
        return found
