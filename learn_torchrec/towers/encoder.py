"""The preference encoder: content or item ids in, unit preference vectors out.

The paper's PCH (v1) / PAL (v2), section 3.2. Sequences stay packed: linear layers
see real tokens only, and attention alone pads.

Dimension letters: U distinct items, S tokens of all sequences together, B sequences,
W width, C content dim, D vector dim.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from learn_torchrec.datasets.sequences import NO_ACTION
from learn_torchrec.towers.encoders.architecture import (
    EncoderShape,
    build_sequence_encoder,
)
from learn_torchrec.towers.encoders.language_model import LanguageModel
from learn_torchrec.towers.packing import Packing
from learn_torchrec.training.precision import autocast

_INIT_STD = 0.02  # BERT's


class PreferenceEncoder(nn.Module):
    """Content projection, sequence encoder, vector projection (paper: 768 -> 64).

    Args:
        mean: float32 [C], of the catalogue's content vectors; see
            `ContentStore.mean`. Raw language-model vectors lie in a narrow cone, so
            they are standardized before the projection.
        std: float32 [C], positive.
        shape: see `EncoderShape`.
        reads_content: false for the paper's ID row: an item is its id alone.
        components: float32 [C, D], principal components of the standardized content;
            given, vectors are a residual on them (not in the paper): before training,
            an item's vector is its reduced content, a history's is the direction of
            the mean of its items', and their dot product the content similarity.

    Attributes:
        precision: of the matrix products over tokens, float32 or bfloat16 (autocast);
            parameters and output vectors are float32 either way.

    Example:
        >>> import torch
        >>> from learn_torchrec.towers.encoder import PreferenceEncoder
        >>> from learn_torchrec.towers.encoders.architecture import EncoderShape
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
    components: Tensor | None

    def __init__(
        self,
        mean: Tensor,
        std: Tensor,
        shape: EncoderShape,
        reads_content: bool = True,
        components: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.precision = torch.float32
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)
        self.register_buffer("components", components)
        self.content_projection = None
        if reads_content:
            self.content_projection = nn.Linear(mean.shape[0], shape.width)
        self.sequence_encoder = build_sequence_encoder(shape)
        self.vector_projection = nn.Linear(shape.width, shape.vector_dim)
        pretrained = isinstance(self.sequence_encoder, LanguageModel)
        for child in self.children():
            if not (pretrained and child is self.sequence_encoder):
                child.apply(_init_like_bert)
        if components is not None:
            nn.init.zeros_(self.vector_projection.weight)

    def forward(
        self,
        content: Tensor,
        items: Tensor,
        lengths: Tensor,
        read: Tensor | None = None,
        id_vectors: Tensor | None = None,
        times: Tensor | None = None,
        actions: Tensor | None = None,
    ) -> Tensor:
        """Encode packed sequences.

        Args:
            content: [U, C], float16 or float32, of the distinct items.
            items: int64 [S], index into `content` of every token.
            lengths: int64 [B], tokens of each sequence, all at least 1.
            read: int64 [...], indices of the tokens to read; None for all.
            id_vectors: float32 [U, W] of the distinct items (see `ItemIds`), added to
                the projected content.
            times: int64 [S], unix seconds; None for items encoded alone.
            actions: int16 [S], action codes; None likewise.

        Returns:
            float32 [S, D] or [..., D], unit vectors. The vector at a token depends only
            on that token and the ones before it in its sequence.

        Raises:
            ValueError: a sequence is longer than the sequence encoder takes.
        """
        packing = Packing(lengths)
        if times is None:
            times = torch.zeros_like(items)
        if actions is None:
            actions = torch.full_like(items, NO_ACTION, dtype=torch.int16)
        with autocast(self.precision, items.device.type):
            tokens = self.embed(content, id_vectors)[items[packing.order]]
            tokens = self.sequence_encoder(
                tokens, packing, times[packing.order], actions[packing.order]
            )
        index = packing.inverse if read is None else packing.inverse[read]
        known = self.reduced(content)
        if known is not None:
            known = _running_means(known[items[packing.order]], packing)[index]
        return self.project(tokens[index].float(), known)

    def encode_alone(
        self, content: Tensor, items: Tensor, id_vectors: Tensor | None = None
    ) -> Tensor:
        """Project items without the sequence encoder, float32 [N, D], unit vectors.

        `items` are int64 [N], indices into `content`.
        """
        # Where TorchRec's pipelines trace this, `items` has no device.
        with autocast(self.precision, self.mean.device.type):
            embedded = self.embed(content, id_vectors)[items]
        known = self.reduced(content)
        if known is not None:
            known = known[items]
        return self.project(embedded.float(), known)

    def embed(self, content: Tensor, id_vectors: Tensor | None = None) -> Tensor:
        """Return the sequence encoder's input for distinct items, [U, W]."""
        if self.content_projection is None:
            if id_vectors is None:
                raise ValueError("towers that read ids alone need id_vectors")
            return id_vectors
        projected = self.content_projection(self.standardized(content))
        return projected if id_vectors is None else projected + id_vectors

    def project(self, embedded: Tensor, known: Tensor | None = None) -> Tensor:
        """Project item embeddings or encoded tokens, [..., W], to unit vectors.

        They are added to `known`, float32 [..., D], the direction of reduced content.
        """
        vectors = self.vector_projection(embedded).float()
        if known is not None:
            vectors = known + vectors
        return F.normalize(vectors, dim=-1)

    def reduced(self, content: Tensor) -> Tensor | None:
        """Reduce content [U, C] to the components, float32 [U, D], unit vectors.

        None where vectors are no residual on it.
        """
        if self.components is None:
            return None
        return F.normalize(self.standardized(content) @ self.components, dim=-1)

    def standardized(self, content: Tensor) -> Tensor:
        """Standardize content [U, C] by the catalogue's statistics, as float32."""
        return (content.float() - self.mean) / self.std


def _running_means(tokens: Tensor, packing: Packing) -> Tensor:
    """Return the direction of the mean of each token and those before it, [S, D].

    `tokens` are in the packing's order.
    """
    sums = [
        group.unpad(group.pad(part).cumsum(1)) for group, part in packing.split(tokens)
    ]
    return F.normalize(torch.cat(sums), dim=-1)


def _init_like_bert(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=_INIT_STD)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)
