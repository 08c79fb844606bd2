"""HSTU: gated attention with SiLU instead of softmax, biased by position and time.

Zhai et al. 2024, "Actions Speak Louder than Words" (equations 1 to 3), over packed
tokens. The time bias uses the gap between the two events themselves: a query does not
know the time of the next event.

Dimension letters: S tokens of all sequences together, B sequences, L longest sequence,
W width, H heads.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from learn_torchrec.towers.dropout import Dropout
from learn_torchrec.towers.packing import Group, Packing

_TIME_BUCKETS = 32  # powers of two in seconds: the last starts at 68 years


class HSTULayer(nn.Module):
    """Gated pointwise attention with a residual connection.

    It replaces both the attention and the feed-forward part of a transformer.

    Args:
        width: W.
        num_heads: H; divides W.
        dropout: of the gated output.
        max_positions: distances with a bias of their own; larger ones share the last
            bias. 0 disables it.
    """

    def __init__(
        self, width: int, num_heads: int, dropout: float, max_positions: int
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm = nn.LayerNorm(width)
        self.gate_value_query_key = nn.Linear(width, 4 * width)
        self.position_bias = None
        if max_positions:
            self.position_bias = nn.Parameter(torch.zeros(max_positions, num_heads))
        self.time_bias = nn.Parameter(torch.zeros(_TIME_BUCKETS, num_heads))
        self.attention_norm = nn.LayerNorm(width)
        self.output = nn.Linear(width, width)
        self.dropout = Dropout(dropout)

    def forward(self, tokens: Tensor, packing: Packing, times: Tensor) -> Tensor:
        """[S, W], times int64 [S] -> [S, W]."""
        projected = F.silu(self.gate_value_query_key(self.norm(tokens)))
        gate, heads = projected.tensor_split((tokens.shape[-1],), dim=-1)
        heads = heads.unflatten(-1, (3, self.num_heads, -1))
        parts = zip(packing.split(heads), packing.split(times), strict=True)
        attended = torch.cat(
            [self._attend(group, part, when) for (group, part), (_, when) in parts]
        )
        gated = self.attention_norm(attended) * gate
        return tokens + self.output(self.dropout(gated))

    def _attend(self, group: Group, heads: Tensor, times: Tensor) -> Tensor:
        """[S, 3, H, W / H] and [S] of the group's tokens -> [S, W]."""
        value, query, key = group.pad(heads).permute(2, 0, 3, 1, 4)  # [B, H, L, W / H]
        position = torch.arange(group.longest, device=times.device)
        distance = position[:, None] - position  # [L, L]
        weights = F.silu(query @ key.mT + self._bias(distance, group.pad(times)))
        # The mean over visible tokens: unlike the paper's 1 / L, it does not depend on
        # the other sequences. Padding is on the right, where the mask hides it.
        weights = weights.masked_fill(distance < 0, 0.0) / (position + 1)[:, None]
        return group.unpad((weights @ value).transpose(1, 2)).flatten(-2)

    def _bias(self, distance: Tensor, times: Tensor) -> Tensor:
        """Distances [L, L] and times [B, L] -> [B, H, L, L]."""
        gaps = (times[:, :, None] - times[:, None, :]).clamp(min=0)
        # Double precision separates 2^n - 1 seconds from 2^n.
        bucket = (gaps.double() + 1).log2().long().clamp(max=_TIME_BUCKETS - 1)
        bias = self.time_bias[bucket]
        if self.position_bias is not None:
            last = len(self.position_bias) - 1
            bias = bias + self.position_bias[distance.clamp(0, last)]
        return bias.permute(0, 3, 1, 2)


class HSTU(nn.Module):
    """A stack of `num_layers` of `HSTULayer`; reads times, not actions."""

    def __init__(
        self,
        width: int,
        num_layers: int,
        num_heads: int,
        dropout: float,
        max_positions: int,
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            HSTULayer(width, num_heads, dropout, max_positions)
            for _ in range(num_layers)
        )

    def forward(
        self, tokens: Tensor, packing: Packing, times: Tensor, actions: Tensor
    ) -> Tensor:
        """[S, W], times int64 [S] -> [S, W]."""
        for layer in self.layers:
            tokens = layer(tokens, packing, times)
        return tokens
