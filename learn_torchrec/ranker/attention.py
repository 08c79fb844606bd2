"""Target attention: a history, weighted by what the candidate is.

Dimension letters: B rows, V history entries of all rows, Q and K dims, H hidden size.
"""

import torch
from torch import Tensor, nn

from learn_torchrec.ranker.blocked_attention import Scoring, pooled


class TargetAttention(nn.Module):
    """The weighted sum of a row's history, as in DIN (Zhou et al., KDD 2018).

    An entry's weight is an MLP of (key, query, key - query, key * query). As in DIN,
    weights are not normalized: a history with much that fits the query gives a larger
    vector than one with little.

    Args:
        query_dim: Q, of the candidate.
        key_dim: K, of a history entry; a linear layer brings other queries to it.
        hidden_dim: H, of the MLP.
        device: of the parameters.

    Example:
        >>> import torch
        >>> from learn_torchrec.ranker.attention import TargetAttention
        >>> attention = TargetAttention(query_dim=8, key_dim=4)
        >>> history = torch.randn(5, 4)  # of three rows, the second without any
        >>> attention(torch.randn(3, 8), history, torch.tensor([2, 0, 3])).shape
        torch.Size([3, 4])
    """

    def __init__(
        self,
        query_dim: int,
        key_dim: int,
        hidden_dim: int = 32,
        device: torch.device | None = None,
    ) -> None:
        super().__init__()
        self.query: nn.Module = nn.Identity()
        if query_dim != key_dim:
            self.query = nn.Linear(query_dim, key_dim, device=device)
        self.hidden = nn.Linear(4 * key_dim, hidden_dim, device=device)
        self.score = nn.Linear(hidden_dim, 1, device=device)

    def forward(self, query: Tensor, keys: Tensor, lengths: Tensor) -> Tensor:
        """Pool histories, stored one after another.

        Args:
            query: float [B, Q].
            keys: float [V, K].
            lengths: int32 or int64 [B], entries of each row; their sum is V.

        Returns:
            float [B, K]; zeros for an empty history.
        """
        query = self.query(query)
        # The linear layer of all four, without storing them and once per query.
        of_key, of_query, of_difference, of_product = self.hidden.weight.chunk(4, dim=1)
        of_key = of_key + of_difference
        hidden = query @ (of_query - of_difference).T + self.hidden.bias
        score, bias = self.score.weight.squeeze(0), self.score.bias
        return _pooled(keys, query, hidden, lengths, of_key, of_product, score, bias)


@torch.fx.wrap  # TorchRec's pipelines trace the model, and here its inputs decide
def _pooled(
    keys: Tensor, query: Tensor, hidden: Tensor, lengths: Tensor, *parts: Tensor
) -> Tensor:
    """Return `blocked_attention.pooled`, in blocks where they pay."""
    scoring = Scoring(*parts)
    if torch.is_grad_enabled() and not keys.is_cuda:
        return pooled(keys, query, hidden, lengths, scoring)
    hidden = spread(hidden, keys, lengths)
    hidden = torch.addmm(hidden, keys, scoring.of_key.T)
    products = keys * spread(query, keys, lengths)
    hidden = torch.addmm(hidden, products, scoring.of_product.T)
    weights = hidden.relu() @ scoring.score + scoring.bias
    return segment_sum(weights.unsqueeze(1) * keys, lengths)


def spread(rows: Tensor, values: Tensor, lengths: Tensor) -> Tensor:
    """Repeat `rows` [B, D] for each of their values: [V, D]."""
    # With the size given, the device need not be asked for it.
    return rows.repeat_interleave(lengths, dim=0, output_size=values.shape[0])


def segment_sum(values: Tensor, lengths: Tensor) -> Tensor:
    """Sum the values [V, D] of each row: [B, D]; `lengths` [B] sum to V."""
    # `unsafe` leaves out a check that would wait for the device.
    return torch.segment_reduce(
        values, "sum", lengths=lengths, axis=0, initial=0.0, unsafe=True
    )
