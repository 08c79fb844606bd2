"""A language model of a few thousand parameters, saved as the real ones are."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaModel, PreTrainedTokenizerFast

WORDS = ["a", "an", "red", "blue", "green", "mug", "cup", "plate", "of", "the"]
WORDS += ["with", "handle", "big", "small"]
NUM_LAYERS = 3
HIDDEN = 16


def save(directory: Path, hidden: int = HIDDEN, spread: float = 0.5) -> None:
    """Write a randomly initialised Llama and a tokenizer without a pad token.

    The spread of the weights is large, so that attention is far from uniform.
    """
    vocabulary = {word: row for row, word in enumerate(["<unk>", "<eos>", *WORDS])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="<unk>", eos_token="<eos>"
    ).save_pretrained(directory)
    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=NUM_LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=spread,
    )
    LlamaModel(shape).save_pretrained(directory)
