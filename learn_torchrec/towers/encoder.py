"""The preference encoder: content or item ids in, unit vectors of preference out.

The paper's PCH (v1) / PAL (v2), section 3.2. Sequences stay packed: every linear
layer works on real tokens only, and attention alone sees padding.

Dimension letters: U distinct items, S tokens of all sequences together, B sequences,
L longest sequence, W width, C content dim, D vector dim.
"""

from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeInt, PositiveInt
from torch import Tensor, nn

from learn_torchrec.config import configuration, require
from learn_torchrec.towers.dropout import Dropout, dropout
from learn_torchrec.towers.packing import Group, PackedLayout

_INIT_STD = 0.02  # BERT's


@configuration
class EncoderShape:
    """Shape of the transformer; the defaults are the paper's (BERT-base).

    Attributes:
        width: W, hidden size.
        num_layers: transformer layers.
        num_heads: attention heads; divides `width`.
        feed_forward_dim: inner size of the feed-forward part.
        vector_dim: D, size of user and item vectors.
        dropout: in every sub-layer, and of the attention weights.
        max_positions: longest sequence; 0 leaves learned positions out, as the
            authors' public code does.
    """

    width: PositiveInt = 768
    num_layers: PositiveInt = 12
    num_heads: PositiveInt = 12
    feed_forward_dim: PositiveInt = 3072
    vector_dim: PositiveInt = 64
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    max_positions: NonNegativeInt = 80

    def __post_init__(self) -> None:
        require(
            self.width % self.num_heads == 0,
            f"width: {self.width} is not a multiple of num_heads, {self.num_heads}",
        )


class TransformerLayer(nn.Module):
    """A post-norm transformer layer (BERT's) with causal attention over packed tokens.

    Args:
        shape: see `EncoderShape`.
    """

    def __init__(self, shape: EncoderShape) -> None:
        super().__init__()
        self.num_heads = shape.num_heads
        self.attention_dropout = shape.dropout
        self.query_key_value = nn.Linear(shape.width, 3 * shape.width)
        self.attention_output = nn.Linear(shape.width, shape.width)
        self.attention_norm = nn.LayerNorm(shape.width, eps=1e-12)
        self.feed_forward_in = nn.Linear(shape.width, shape.feed_forward_dim)
        self.feed_forward_out = nn.Linear(shape.feed_forward_dim, shape.width)
        self.feed_forward_norm = nn.LayerNorm(shape.width, eps=1e-12)
        self.dropout = Dropout(shape.dropout)

    def forward(self, tokens: Tensor, layout: PackedLayout) -> Tensor:
        """[S, W] -> [S, W]."""
        attended = self.attention_output(self._attend(tokens, layout))
        tokens = self.attention_norm(tokens + self.dropout(attended))
        inner = F.gelu(self.feed_forward_in(tokens))
        output = self.feed_forward_out(inner)
        normed: Tensor = self.feed_forward_norm(tokens + self.dropout(output))
        return normed

    def _attend(self, tokens: Tensor, layout: PackedLayout) -> Tensor:
        heads = self.query_key_value(tokens).unflatten(-1, (3, self.num_heads, -1))
        groups = layout.split(heads)
        return torch.cat([self._attend_group(part, group) for group, part in groups])

    def _attend_group(self, heads: Tensor, group: Group) -> Tensor:
        """[S, 3, heads, W / heads] of the group's tokens -> [S, W]."""
        query, key, value = group.pad(heads).permute(2, 0, 3, 1, 4)  # [B, heads, L, .]
        # Padding is on the right, so the causal mask already hides it from every
        # real token.
        rate = self.attention_dropout if self.training else 0.0
        if rate and query.device.type == "cpu":
            # The fused kernel has no dropout on the CPU: PyTorch would take the same
            # steps with slower masks.
            attended = _causal_attention(query, key, value, rate)
        else:
            attended = F.scaled_dot_product_attention(
                query, key, value, is_causal=True, dropout_p=rate
            )
        return group.unpad(attended.transpose(1, 2)).flatten(-2)


def _causal_attention(query: Tensor, key: Tensor, value: Tensor, p: float) -> Tensor:
    """Causal attention with dropout, [B, heads, L, W / heads] each."""
    length, size = query.shape[2:]
    future = query.new_full((length, length), -torch.inf).triu(1)
    # One product scales and masks as well.
    scores = torch.baddbmm(
        future, query.flatten(0, 1), key.flatten(0, 1).mT, alpha=size**-0.5
    )
    weights = dropout(scores.softmax(-1), p, training=True)
    return (weights @ value.flatten(0, 1)).unflatten(0, query.shape[:2])


class PreferenceEncoder(nn.Module):
    """Content projection, causal transformer, vector projection (paper: 768 -> 64).

    Args:
        mean: float32 [C], of the catalogue's content vectors; see
            `ContentStore.mean`. Raw vectors of a language model are a narrow cone,
            so they are standardised before the projection.
        std: float32 [C], positive.
        shape: see `EncoderShape`.
        reads_content: false for the paper's ID row: items are their ids alone.

    Attributes:
        precision: of the matrix products over tokens, float32 or bfloat16 (autocast);
            parameters and the vectors that come out are float32 either way.

    Example:
        >>> import torch
        >>> from learn_torchrec.towers.encoder import EncoderShape, PreferenceEncoder
        >>> shape = EncoderShape(width=8, num_layers=1, num_heads=2,
        ...                      feed_forward_dim=16, vector_dim=4)
        >>> encoder = PreferenceEncoder(torch.zeros(6), torch.ones(6), shape).eval()
        >>> content = torch.randn(3, 6)            # three distinct items
        >>> items = torch.tensor([0, 1, 2, 1])     # two histories: 0 1 2, and 1
        >>> vectors = encoder(content, items, torch.tensor([3, 1]))
        >>> vectors.shape                          # one vector after every event
        torch.Size([4, 4])
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        mean: Tensor,
        std: Tensor,
        shape: EncoderShape,
        reads_content: bool = True,
    ) -> None:
        super().__init__()
        self.max_positions = shape.max_positions
        self.precision = torch.float32
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)
        self.content_projection = None
        if reads_content:
            self.content_projection = nn.Linear(mean.shape[0], shape.width)
        if shape.max_positions:
            self.positions = nn.Embedding(shape.max_positions, shape.width)
            self.input_norm = nn.LayerNorm(shape.width, eps=1e-12)
            self.input_dropout = Dropout(shape.dropout)
        self.layers = nn.ModuleList(
            TransformerLayer(shape) for _ in range(shape.num_layers)
        )
        self.vector_projection = nn.Linear(shape.width, shape.vector_dim)
        self.apply(_init_like_bert)

    def forward(
        self,
        content: Tensor,
        items: Tensor,
        lengths: Tensor,
        read: Tensor | None = None,
        id_vectors: Tensor | None = None,
    ) -> Tensor:
        """Encode packed sequences.

        Args:
            content: [U, C], float16 or float32, the distinct items' vectors.
            items: int64 [S], index into `content` of every token.
            lengths: int64 [B], tokens of each sequence, all at least 1.
            read: int64 [...], the token indices whose vectors are wanted; all S
                when None.
            id_vectors: float32 [U, W] of the distinct items (see `ItemIds`), added to
                the projected content.

        Returns:
            float32 [S, D] or [..., D], unit vectors; the vector at a token depends
            on that token and the ones before it in its sequence.

        Raises:
            ValueError: a sequence is longer than `max_positions`.
        """
        layout = PackedLayout(lengths)
        # Where the two are equal there is nothing to cast, and autocast would warn.
        is_mixed = self.precision != torch.float32
        dtype = self.precision if is_mixed else None
        with torch.autocast(items.device.type, dtype=dtype, enabled=is_mixed):
            tokens = self._transform(content, items, layout, id_vectors)
        places = layout.places if read is None else layout.places[read]
        return self.project(tokens[places].float())

    def _transform(
        self,
        content: Tensor,
        items: Tensor,
        layout: PackedLayout,
        id_vectors: Tensor | None,
    ) -> Tensor:
        """Packed items [S] to transformed tokens [S, W] in the layout's order."""
        tokens = self.embed(content, id_vectors)[items[layout.order]]
        if self.max_positions:
            if layout.longest > self.max_positions:
                raise ValueError(
                    f"a sequence has {layout.longest} tokens, more than "
                    f"max_positions {self.max_positions}"
                )
            tokens = self.input_norm(tokens + self.positions(layout.positions))
            tokens = self.input_dropout(tokens)
        for layer in self.layers:
            tokens = layer(tokens, layout)
        return tokens

    def embed(self, content: Tensor, id_vectors: Tensor | None = None) -> Tensor:
        """Return what the transformer reads of distinct items, [U, W]."""
        if self.content_projection is None:
            if id_vectors is None:
                raise ValueError("towers that read ids alone need id_vectors")
            return id_vectors
        projected: Tensor = self.content_projection(self.standardized(content))
        return projected if id_vectors is None else projected + id_vectors

    def project(self, embedded: Tensor) -> Tensor:
        """Turn embedded items or transformed tokens, [..., W], into unit vectors."""
        return F.normalize(self.vector_projection(embedded).float(), dim=-1)

    def standardized(self, content: Tensor) -> Tensor:
        """Content [U, C] in float32, by the catalogue's mean and deviation."""
        return (content.float() - self.mean) / self.std


def _init_like_bert(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=_INIT_STD)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)
