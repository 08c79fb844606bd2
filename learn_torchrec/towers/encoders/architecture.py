"""The interface of sequence encoders, and the choice of one.

A new architecture is one file with a module that implements `SequenceEncoder`, its name
in `EncoderShape.architecture`, and a branch in `build_sequence_encoder`.
"""

from typing import Annotated, Literal, Protocol

from pydantic import Field, NonNegativeInt, PositiveInt
from torch import Tensor

from learn_torchrec.config import Depth, Width, configuration, require
from learn_torchrec.content.backbone import SMOLLM2
from learn_torchrec.towers.encoders.hstu import HSTU
from learn_torchrec.towers.encoders.language_model import LanguageModel, refuse_absent
from learn_torchrec.towers.encoders.transformer import Transformer
from learn_torchrec.towers.packing import Packing


class SequenceEncoder(Protocol):
    """Encodes every token in the context of the earlier ones of its sequence.

    An `nn.Module`. It must be causal and must not mix sequences: an item alone is a
    sequence of one token.
    """

    def __call__(
        self, tokens: Tensor, packing: Packing, times: Tensor, actions: Tensor
    ) -> Tensor:
        """Encode packed tokens.

        Args:
            tokens: float [S, W], sorted as in `packing`.
            packing: the sequences, and how to pad them for attention.
            times: int64 [S], unix seconds, non-decreasing within a sequence.
            actions: int16 [S], codes as in `SequenceSet.actions`.

        Returns:
            float [S, W], in the same order.
        """


@configuration
class EncoderShape:
    """Shape of the encoder; the defaults are the paper's (BERT-base).

    Attributes:
        architecture: the paper's `transformer`; `hstu` (not in the paper), which also
            uses the time between events; or `language_model`, pretrained, of which
            LoRA trains a part (the paper's comparison).
        width: W, hidden size.
        num_layers: layers.
        num_heads: attention heads; divides `width`.
        feed_forward_dim: inner size of the transformer's feed-forward part.
        vector_dim: D, size of user and item vectors.
        dropout: in every sub-layer, and of the transformer's attention weights.
        max_positions: longest sequence; 0 disables learned positions, as in the
            authors' public code.
        language_model: of `language_model`: see `content.encoder.model`. Its hidden
            size is `width`; layers, heads, feed-forward part and positions are its
            own.
        lora_rank: of `language_model`.
    """

    architecture: Literal["transformer", "hstu", "language_model"] = "transformer"
    width: Width = 768
    num_layers: Depth = 12
    num_heads: Width = 12
    feed_forward_dim: Width = 3072
    vector_dim: Width = 64
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    max_positions: NonNegativeInt = 80
    language_model: str = SMOLLM2
    lora_rank: PositiveInt = 16

    def __post_init__(self) -> None:
        require(
            self.width % self.num_heads == 0,
            f"width: {self.width} is not a multiple of num_heads, {self.num_heads}; "
            "change one of them",
        )


def build_sequence_encoder(shape: EncoderShape) -> SequenceEncoder:
    """Return a freshly initialized encoder of the configured architecture."""
    size = shape.width, shape.num_layers, shape.num_heads
    rest = shape.dropout, shape.max_positions
    if shape.architecture == "language_model":
        name, rank = shape.language_model, shape.lora_rank
        return LanguageModel(name, shape.width, rank, shape.dropout)
    if shape.architecture == "hstu":
        return HSTU(*size, *rest)
    return Transformer(*size, shape.feed_forward_dim, *rest)


def refuse_absent_encoder(shape: EncoderShape) -> None:
    """Check, without building it, that an encoder's model and packages are here.

    Raises:
        UserError: they are not.
    """
    if shape.architecture == "language_model":
        refuse_absent(shape.language_model)
