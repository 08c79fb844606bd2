"""Next-token tuning of a whole language model on texts (the paper's Baseline-v2)."""

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from learn_torchrec.artifact import verify
from learn_torchrec.content import backbone
from learn_torchrec.content.encoder import EncoderConfig, dtype_of, token_budget_batches
from learn_torchrec.errors import UserError
from learn_torchrec.progress import progress_bar
from learn_torchrec.publish import is_finished, make_once, write_artifact

KIND = "language_model"
_HELD_OUT = 0.1  # of the texts, to choose the pass

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Tuning:
    """How a language model is tuned.

    Attributes:
        tokens: of all texts at most; later texts are left out.
        passes: over them at most.
        tokens_per_batch: padded.
        learning_rate: peak, of AdamW.
        seed: of the order.
    """

    tokens: int = 100_000
    passes: int = 3
    tokens_per_batch: int = 2_048
    learning_rate: float = 2e-5
    seed: int = 0


def tune_language_model(
    encoder: EncoderConfig, texts: Sequence[str], tuning: Tuning, folder: Path
) -> Path:
    """Tune all weights with the next-token loss, unless that was done.

    The pass with the least loss on held-out texts is kept; the untuned model competes.

    Args:
        encoder: names the model; texts are truncated to its `max_tokens`.
        texts: of training users, in random order.
        tuning: how.
        folder: to make the model's directory in, named after all that decides it.

    Returns:
        A directory that `EncoderConfig.model` can name.

    Raises:
        UserError: the model is no causal language model, there is too little text, or
            a model that was tuned before is damaged.
    """
    recipe = _recipe(encoder, texts, tuning)
    out = folder / f"tuned-{recipe}"
    make_once(
        out,
        lambda: is_finished(out, KIND, recipe),
        lambda: _tune(encoder, texts, tuning, out, recipe),
    )
    verify(out, KIND)
    return out


def _tune(
    encoder: EncoderConfig,
    texts: Sequence[str],
    tuning: Tuning,
    out: Path,
    recipe: str,
) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    files = backbone.find_model(encoder.model, encoder.revision)
    tokenizer, model = backbone.load_causal(files, device, encoder.trust_remote_code)
    tokens = _within(_tokenized(tokenizer, texts, encoder.max_tokens), tuning.tokens)
    held_out = int(len(tokens) * _HELD_OUT)
    if not held_out:
        raise UserError(
            f"{len(tokens)} texts are too few to tune {encoder.model} on; at least "
            f"{round(1 / _HELD_OUT)} are needed"
        )
    model.load_state_dict(_train(model, tokens[held_out:], tokens[:held_out], tuning))
    saved: Any = model
    made: dict[str, Any] = {"kind": KIND, "config": asdict(tuning), "inputs": {}}
    with write_artifact(out, **made, recipe=recipe) as working, backbone.quiet():
        saved.save_pretrained(working)
        tokenizer.save_pretrained(working)


def next_token_loss(model: nn.Module, batch: Sequence[Sequence[int]]) -> Tensor:
    """Return the mean cross-entropy of every token but the first of each text."""
    device = next(model.parameters()).device
    length = max(map(len, batch))
    ids = torch.zeros(len(batch), length, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, tokens in enumerate(batch):
        ids[row, : len(tokens)] = torch.tensor(tokens)
        mask[row, : len(tokens)] = 1
    ids, mask = ids.to(device), mask.to(device)
    logits = model(input_ids=ids, attention_mask=mask).logits
    wanted = ids[:, 1:].masked_fill(mask[:, 1:] == 0, -100)
    return F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), wanted.flatten())


def _train(
    model: nn.Module,
    train: Sequence[Sequence[int]],
    held_out: Sequence[Sequence[int]],
    tuning: Tuning,
) -> dict[str, Tensor]:
    """Train in place; return the weights of the best pass, of none if that is best."""
    from transformers import get_cosine_schedule_with_warmup

    batches = list(_batches(train, tuning))
    total = tuning.passes * len(batches)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=tuning.learning_rate, weight_decay=0.0, fused=True
    )
    schedule = get_cosine_schedule_with_warmup(optimizer, total // 10, total)
    random = np.random.default_rng(tuning.seed)
    losses = [_loss_of(model, held_out, tuning)]
    best = _copied(model)
    with progress_bar("tuning", total) as bar:
        for _ in range(tuning.passes):
            model.train()
            for number in random.permutation(len(batches)):
                optimizer.zero_grad()
                with _autocast(model):
                    loss = next_token_loss(model, batches[number])
                loss.backward()
                optimizer.step()
                schedule.step()
                bar.update()
            losses.append(_loss_of(model, held_out, tuning))
            if losses[-1] > min(losses):
                break
            best = _copied(model)
    shown = ", ".join(f"{loss:.3f}" for loss in losses)
    logger.info("next-token loss of held-out texts, untuned and by pass: %s", shown)
    return best


def _loss_of(model: nn.Module, texts: Sequence[Sequence[int]], tuning: Tuning) -> float:
    model.eval()
    total, tokens = 0.0, 0
    with torch.no_grad(), _autocast(model):
        for batch in _batches(texts, tuning):
            count = sum(len(text) - 1 for text in batch)
            total += float(next_token_loss(model, batch)) * count
            tokens += count
    return total / tokens


def _batches(
    texts: Sequence[Sequence[int]], tuning: Tuning
) -> list[list[Sequence[int]]]:
    lengths = [len(text) for text in texts]
    rows = token_budget_batches(lengths, tuning.tokens_per_batch)
    return [[texts[row] for row in batch] for batch in rows]


def _autocast(model: nn.Module) -> torch.autocast:
    """Multiply in bfloat16 where the hardware does; weights and updates are float32."""
    device = next(model.parameters()).device.type
    is_fast = dtype_of(EncoderConfig(device=device)) == "bfloat16"
    return torch.autocast(device, torch.bfloat16, enabled=is_fast)


def _copied(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def _tokenized(
    tokenizer: Any, texts: Sequence[str], max_tokens: int
) -> list[list[int]]:
    ids = tokenizer(list(texts), truncation=True, max_length=max_tokens)["input_ids"]
    return [row for row in ids if len(row) > 1]


def _within(texts: list[list[int]], most: int) -> list[list[int]]:
    return texts[: int(np.searchsorted(np.cumsum([len(t) for t in texts]), most)) + 1]


def _recipe(encoder: EncoderConfig, texts: Sequence[str], tuning: Tuning) -> str:
    model = backbone.fingerprint(encoder.model, encoder.revision)
    digest = hashlib.sha256(f"{model} {encoder.max_tokens} {tuning}".encode())
    for text in texts:
        digest.update(text.encode() + b"\0")
    return digest.hexdigest()[:16]
