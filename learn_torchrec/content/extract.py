"""Stage 1: item texts in, content vectors out (paper: CEG, section 3.1).

Equal texts are encoded once, by one of the ranks.

Letters: N items of the catalogue, n of them to encode, C content dim.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import field
from typing import Any

import numpy as np
import pyarrow as pa

from learn_torchrec.arrays import (
    BoolArray,
    Float16Array,
    Float32Array,
    Int64Array,
    UInt64Array,
)
from learn_torchrec.artifact import recipe_of
from learn_torchrec.config import configuration, deciding
from learn_torchrec.content import backbone
from learn_torchrec.content.encoder import ContentEncoder, EncoderConfig, dtype_of
from learn_torchrec.content.prompt import PromptConfig, render
from learn_torchrec.content.store import to_half
from learn_torchrec.content.vector_cache import VectorCache, hash_texts
from learn_torchrec.progress import progress_bar
from learn_torchrec.schema import ITEM_ID

_RENDERED_ROWS = 65_536
_WINDOW = 8_192  # texts that are sorted by length together
_BLOCK_ITEMS, _BLOCK_SECONDS = 4_096, 30.0  # how much work a kill may lose

logger = logging.getLogger(__name__)


@configuration
class ContentConfig:
    """Everything that decides an item's content vector."""

    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    prompt: PromptConfig = field(default_factory=PromptConfig)


def text_hashes(
    items: pa.Table, config: ContentConfig, source: str = "items"
) -> UInt64Array:
    """Return the hash of every item's text, uint64 [N, 2]; `source` names the items.

    Raises:
        UserError: the items of `source` cannot be rendered, see `prompt.render`.
    """
    hashes = [np.empty((0, 2), np.uint64)]
    for start in range(0, items.num_rows, _RENDERED_ROWS):  # never all texts at once
        texts = render(items.slice(start, _RENDERED_ROWS), config.prompt, source)
        hashes.append(hash_texts(texts))
    return np.concatenate(hashes)


def have_text(hashes: UInt64Array) -> BoolArray:
    """Return whether the hashes [N, 2] are of a text that is not empty, bool [N]."""
    is_empty: BoolArray = (hashes == hash_texts([""])).all(axis=1)
    return ~is_empty


def rows_to_encode(hashes: UInt64Array, cache: VectorCache) -> tuple[Int64Array, int]:
    """Return one item for each distinct text that the earlier store lacks, ascending.

    They do not depend on what an interrupted run has encoded, so that texts share their
    batches, and vectors their last bits, with those of an uninterrupted run.

    Returns:
        int64 [n], and how many of them are still to be encoded.
    """
    new = np.flatnonzero(~cache.is_earlier(hashes))
    _, first = np.unique(hashes[new], axis=0, return_index=True)
    rows = new[np.sort(first)]
    missing = int((cache.find(hashes[rows]) < 0).sum())
    logger.info("%d of %d items need encoding", missing, len(hashes))
    return rows, missing


def encode(
    items: pa.Table,
    rows: Int64Array,
    hashes: UInt64Array,
    config: ContentConfig,
    cache: VectorCache,
    make_encoder: Callable[[EncoderConfig], ContentEncoder] = ContentEncoder,
    shown: bool = True,
    *,
    on_encoder: Callable[[ContentEncoder], None] | None = None,
) -> dict[str, Any]:
    """Encode items into the cache, whose `reload` then finds their vectors.

    Vectors are written block by block: a run that was killed resumes with the rest. If
    it had the same items and ranks, the vectors are those of an uninterrupted run, bit
    for bit.

    Args:
        items: `item_id` and text columns, N rows.
        rows: int64 [n], the items to encode; those in the cache are left out.
        hashes: uint64 [N, 2], of the texts.
        config: prompt and encoder.
        cache: receives the vectors.
        make_encoder: loads the model; not called if there is nothing to encode.
        shown: whether to show the progress.
        on_encoder: called once the model is loaded, if it is.

    Returns:
        Facts about the encoder; none if there was nothing to encode.

    Raises:
        UserError: an encoder that cannot be loaded, or a vector that half precision
            cannot hold.
    """
    is_known = cache.find(hashes[rows]) >= 0
    if is_known.all():
        return {}
    encoder = make_encoder(config.encoder)
    if on_encoder is not None:
        on_encoder(encoder)
    total = int((~is_known).sum())
    with progress_bar("encoding", total, unit="item", shown=shown) as bar:
        for start in range(0, len(rows), _WINDOW):
            window = rows[start : start + _WINDOW]
            known = is_known[start : start + _WINDOW]
            if known.all():
                continue
            part = items.take(pa.array(window))
            block = _PendingBlock(cache, hashes[window], part[ITEM_ID].combine_chunks())
            texts = render(part, config.prompt)
            try:
                for done, vectors in encoder.encode_batches(texts, known):
                    block.add(done, vectors)
                    bar.update(len(done))
            finally:  # an interrupted run keeps what it has encoded
                block.write()
    return encoder_facts(encoder)


def encoder_facts(encoder: ContentEncoder) -> dict[str, Any]:
    """Return what only a loaded encoder knows, for the manifest."""
    return {
        "dtype": str(encoder.dtype).removeprefix("torch."),
        "revision": encoder.revision,
    }


def encoder_fingerprint(config: ContentConfig) -> str:
    """Return the identity of the model's files, for the manifest's inputs."""
    return backbone.fingerprint(config.encoder.model, config.encoder.revision)


def encoder_identity(config: ContentConfig) -> str:
    """Return the identity of an encoder: equal ones give a text the same vector."""
    model = {"model": encoder_fingerprint(config)}
    settings = deciding(config.encoder) | {"dtype": dtype_of(config.encoder)}
    return recipe_of("encoder", settings, model)


def describe(items: pa.Table, config: ContentConfig) -> dict[str, Any]:
    """Return the facts of a store's manifest: model, prompt, pooling."""
    encoder, prompt = config.encoder, config.prompt
    return {
        "model": encoder.model,
        "pooling": encoder.pooling,
        "layers": list(encoder.layers),
        "normalization": "l2" if encoder.l2_normalize else "none",
        "prompt": prompt.template or f"the paper's, {prompt.language}",
        "items": items.num_rows,
        "example": render(items.slice(0, 1), prompt)[0],
    }


class _PendingBlock:
    """Vectors of a window that are waiting to be written together."""

    def __init__(self, cache: VectorCache, hashes: UInt64Array, ids: pa.Array) -> None:
        self._cache, self._hashes, self._ids = cache, hashes, ids
        self._rows: list[int] = []
        self._vectors: list[Float16Array] = []
        self._since = time.monotonic()

    def add(self, rows: list[int], vectors: Float32Array) -> None:
        ids = self._ids.take(pa.array(rows))
        self._vectors.append(to_half(vectors, ids))
        self._rows.extend(rows)
        late = time.monotonic() - self._since > _BLOCK_SECONDS
        if late or len(self._rows) >= _BLOCK_ITEMS:
            self.write()

    def write(self) -> None:
        if self._rows:
            vectors = np.concatenate(self._vectors)
            self._cache.write_block(self._hashes[self._rows], vectors)
        self._rows, self._vectors, self._since = [], [], time.monotonic()
