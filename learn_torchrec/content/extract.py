"""Stage 1: item texts in, content vectors out (paper: CEG, section 3.1)."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from learn_torchrec.content import backbone
from learn_torchrec.content.encoder import ContentEncoder, EncoderConfig
from learn_torchrec.content.prompt import PromptConfig, render


@dataclass(frozen=True, kw_only=True)
class ContentConfig:
    """Everything that decides an item's content vector."""

    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    prompt: PromptConfig = field(default_factory=PromptConfig)


def extract(
    items: pa.Table, config: ContentConfig, part: slice = slice(None)
) -> tuple[npt.NDArray[np.float32], dict[str, Any]]:
    """Encode every item, or a part of them.

    Args:
        items: `item_id` and text columns, N rows.
        config: prompt and encoder.
        part: the rows to encode; the texts of all are checked.

    Returns:
        float32 [N, C] in the order of the rows, and facts for the manifest.

    Raises:
        UserError: an item without text, or an encoder that cannot be loaded.
    """
    texts = render(items, config.prompt)
    encoder = ContentEncoder(config.encoder)
    vectors = encoder.encode(texts[part], progress=True)
    facts = {
        "items": len(texts),
        "dim": encoder.dim,
        "dtype": str(encoder.dtype).removeprefix("torch."),
        "example": texts[0],
    }
    return vectors, facts


def encoder_fingerprint(config: ContentConfig) -> str:
    """Return the identity of the model's files, for the manifest's inputs."""
    return backbone.fingerprint(config.encoder.model)
