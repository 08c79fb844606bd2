"""The candidate attends to the history: learned similarities of content and ids.

Letters: B rows, V history items, M distinct items, R reduced content dim, P projected
dim.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torchrec import JaggedTensor

from learn_torchrec.ranker.attention import TargetAttention
from learn_torchrec.ranker.learn.batch import HistoryBatch


class HistoryAttention(nn.Module):
    """Target attention (DIN) over projected content, over ids, or over both.

    An item of the history also says how often and how long ago it was met.

    Args:
        content_dim: R; 0 for ids alone.
        projected_dim: P.
        with_ids: whether embeddings of ids are given, too.
        device: of the parameters.

    Attributes:
        out_features: width of the output: the attended history, and its product with
            the candidate.
    """

    def __init__(
        self,
        content_dim: int,
        projected_dim: int,
        with_ids: bool = False,
        device: torch.device | None = None,
    ) -> None:
        super().__init__()
        self.with_ids = with_ids
        self.projection: nn.Linear | None = None
        if content_dim:
            self.projection = nn.Linear(content_dim, projected_dim, device=device)
        self.recency = nn.Linear(2, projected_dim, bias=False, device=device)
        self.attention = TargetAttention(projected_dim, projected_dim, device=device)
        self.out_features = projected_dim + 1

    def forward(
        self, history: HistoryBatch, ids: Mapping[str, JaggedTensor] | None = None
    ) -> Tensor:
        """Return what the candidates find in their histories, [B, P + 1].

        `ids` are embeddings [., P] of the "candidate" (none or one each) and of the
        "history" items, in the order of `history.items`.

        Raises:
            ValueError: no `ids` although it was made for them.
        """
        if self.with_ids and ids is None:
            raise ValueError("attention needs the embeddings of the ids")
        queries, keyed = [], []
        if self.projection is not None:
            # Each distinct item is projected once.
            projected = self.projection(history.vectors["content"].float())
            queries.append(projected.index_select(0, history.candidates))
            keyed.append(projected.index_select(0, history.items))
        if ids is not None:
            queries.append(_first_or_zeros(ids["candidate"]))
            keyed.append(ids["history"].values())
        query, keys = sum(queries[1:], queries[0]), sum(keyed[1:], keyed[0])
        met = torch.stack([history.ages, history.counts], dim=1)
        keys = torch.addmm(keys, torch.log1p(met), self.recency.weight.T)
        found = self.attention(query, keys, history.lengths)
        return torch.cat([found, (found * query).sum(1, keepdim=True)], dim=1)


def _first_or_zeros(ids: JaggedTensor) -> Tensor:
    """Return the embedding [B, P] of each row's id, zeros where it has none."""
    first: Tensor = torch.ops.fbgemm.jagged_to_padded_dense(
        ids.values(), [ids.offsets()], [1], 0.0
    )
    return first.squeeze(1)
