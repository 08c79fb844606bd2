"""A post-norm transformer (BERT's) with causal attention over packed tokens.

Dimension letters: S tokens of all sequences together, B sequences, L longest sequence,
W width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from learn_torchrec.towers.dropout import Dropout, dropout
from learn_torchrec.towers.packing import Group, Packing


class TransformerLayer(nn.Module):
    """Causal attention and feed-forward part, each with residual and norm.

    Args:
        width: W.
        num_heads: divides W.
        feed_forward_dim: inner size of the feed-forward part.
        dropout: of both parts, and of the attention weights.
    """

    def __init__(
        self, width: int, num_heads: int, feed_forward_dim: int, dropout: float
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.attention_dropout = dropout
        self.query_key_value = nn.Linear(width, 3 * width)
        self.attention_output = nn.Linear(width, width)
        self.attention_norm = nn.LayerNorm(width, eps=1e-12)
        self.feed_forward_in = nn.Linear(width, feed_forward_dim)
        self.feed_forward_out = nn.Linear(feed_forward_dim, width)
        self.feed_forward_norm = nn.LayerNorm(width, eps=1e-12)
        self.dropout = Dropout(dropout)

    def forward(self, tokens: Tensor, packing: Packing) -> Tensor:
        """[S, W] -> [S, W]."""
        attended = self.attention_output(self._attend(tokens, packing))
        tokens = self.attention_norm(tokens + self.dropout(attended))
        output = self.feed_forward_out(F.gelu(self.feed_forward_in(tokens)))
        return self.feed_forward_norm(tokens + self.dropout(output))

    def _attend(self, tokens: Tensor, packing: Packing) -> Tensor:
        heads = self.query_key_value(tokens).unflatten(-1, (3, self.num_heads, -1))
        groups = packing.split(heads)
        return torch.cat([self._attend_group(part, group) for group, part in groups])

    def _attend_group(self, heads: Tensor, group: Group) -> Tensor:
        """[S, 3, heads, W / heads] of the group's tokens -> [S, W]."""
        query, key, value = group.pad(heads).permute(2, 0, 3, 1, 4)  # [B, heads, L, .]
        # Padding is on the right, so the causal mask already hides it from every
        # real token.
        rate = self.attention_dropout if self.training else 0.0
        if rate and query.device.type == "cpu":
            # The fused kernel has no dropout on the CPU: PyTorch would fall back to the
            # same operations with slower masks.
            attended = _causal_attention(query, key, value, rate)
        else:
            attended = F.scaled_dot_product_attention(
                query, key, value, is_causal=True, dropout_p=rate
            )
        return group.unpad(attended.transpose(1, 2)).flatten(-2)


class Transformer(nn.Module):
    """Learned positions and `num_layers` of `TransformerLayer` (paper: section 3.2).

    `max_positions` is the longest sequence; 0 disables the positions, norm and dropout
    of the input.
    """

    def __init__(
        self,
        width: int,
        num_layers: int,
        num_heads: int,
        feed_forward_dim: int,
        dropout: float,
        max_positions: int,
    ) -> None:
        super().__init__()
        self.max_positions = max_positions
        if max_positions:
            self.positions = nn.Embedding(max_positions, width)
            self.input_norm = nn.LayerNorm(width, eps=1e-12)
            self.input_dropout = Dropout(dropout)
        self.layers = nn.ModuleList(
            TransformerLayer(width, num_heads, feed_forward_dim, dropout)
            for _ in range(num_layers)
        )

    def forward(
        self, tokens: Tensor, packing: Packing, times: Tensor, actions: Tensor
    ) -> Tensor:
        """[S, W] -> [S, W]; reads neither times nor actions.

        Raises:
            ValueError: a sequence is longer than `max_positions`.
        """
        if self.max_positions:
            if packing.longest > self.max_positions:
                raise ValueError(
                    f"a sequence has {packing.longest} tokens, more than "
                    f"max_positions {self.max_positions}"
                )
            tokens = self.input_norm(tokens + self.positions(packing.positions))
            tokens = self.input_dropout(tokens)
        for layer in self.layers:
            tokens = layer(tokens, packing)
        return tokens


def _causal_attention(query: Tensor, key: Tensor, value: Tensor, p: float) -> Tensor:
    """Causal attention with dropout, [B, heads, L, W / heads] each."""
    length, size = query.shape[2:]
    future = query.new_full((length, length), -torch.inf).triu(1)
    # One product also scales and masks.
    scores = torch.baddbmm(
        future, query.flatten(0, 1), key.flatten(0, 1).mT, alpha=size**-0.5
    )
    weights = dropout(scores.softmax(-1), p, training=True)
    return (weights @ value.flatten(0, 1)).unflatten(0, query.shape[:2])
