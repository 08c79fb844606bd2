"""LEARN's part of the logit: zero at the start, and what training makes of it.

The baseline's logit stays as it is; a small network adds to it. Its inputs say how the
candidate meets the user: statistics over the history, past rates of similar items, and
products of vectors. The vectors themselves are no inputs: they would tell the item and
the user as an id does, which the ID tables already do, and be learned by heart.

Letters: B rows, D vector dim, R reduced content dim, P projected dim, E embedding dim.
"""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchrec import JaggedTensor
from torchrec.models.dlrm import InteractionArch

from learn_torchrec.ranker.learn.attention import ContentAttention
from learn_torchrec.ranker.learn.batch import LearnBatch
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
        self.products = InteractionArch(len(dims) - 1)
        self.out_features = len(dims) * (len(dims) - 1) // 2

    def forward(self, vectors: Mapping[str, Tensor]) -> Tensor:
        """Return the products of each pair of `vectors` [B, dim], [B, out_features]."""
        parts = [layer(vectors[name]) for name, layer in self.projections.items()]
        first, others = parts[0], torch.stack(parts[1:], dim=1)
        return self.products(first, others)[:, first.shape[1] :]


class LearnResidual(nn.Module):
    """Adds to a ranker's logits what LEARN knows.

    Args:
        config: which inputs, and the network's shape.
        shape: widths of the inputs.
        embedding_dim: E, of the baseline's dense embedding.
        tasks: names; each gets a logit.
        device: of the parameters.
    """

    def __init__(
        self,
        config: LearnConfig,
        shape: LearnShape,
        embedding_dim: int,
        tasks: Sequence[str],
        device: torch.device | None = None,
    ) -> None:
        super().__init__()
        self.tasks, self.alone = tuple(tasks), config.alone
        config = config.that_fits(shape.spaces)
        width = 2 + shape.rates + embedding_dim
        self.statistics: TargetStatistics | None = None
        if config.statistics.spaces:
            self.statistics = TargetStatistics(config.statistics)
            width += self.statistics.out_features
        self.products: Products | None = None
        self.attention: ContentAttention | None = None
        if config.attention != "off":
            dim = config.projected_dim
            self.attention = ContentAttention(shape.content_dim, dim, device)
            width += self.attention.out_features
        dims: dict[str, int] = {}
        if config.interactions and shape.vector_dim:
            dims |= dict.fromkeys(("user", "item"), shape.vector_dim)
        if config.interactions and shape.content_dim:
            dims |= dict.fromkeys(("history", "candidate"), shape.content_dim)
        self.cosines = len(dims) // 2
        if dims:
            self.products = Products(dims, config.projected_dim, device)
            width += self.products.out_features + self.cosines
        layers: list[nn.Module] = []
        for size in config.hidden_layers:
            layers += [
                nn.Linear(width, size, device=device),
                nn.ReLU(),
                nn.Dropout(config.dropout),
            ]
            width = size
        last = nn.Linear(width, len(tasks), device=device)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.network = nn.Sequential(*layers, last)

    def forward(
        self,
        batch: LearnBatch,
        embedded_dense: Tensor,
        ids: Mapping[str, JaggedTensor] | None = None,
    ) -> dict[str, Tensor]:
        """Return what is added to the logits, [B] by task.

        Args:
            batch: LEARN's inputs.
            embedded_dense: [B, E], of the baseline; not trained from here.
            ids: embeddings of `batch.item_ids`, for attention with ids.
        """
        parts = [embedded_dense.detach(), batch.has_vectors.to(embedded_dense)]
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
        added = self.network(torch.cat(parts, dim=1))
        return dict(zip(self.tasks, added.unbind(1), strict=True))

    def _vectors(self, batch: LearnBatch) -> dict[str, Tensor]:
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
