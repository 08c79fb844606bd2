"""A language model of a few thousand parameters, saved as the real ones are."""

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlamaModel,
    PreTrainedTokenizerFast,
)

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


_CONFIGURATION = """
from transformers import LlamaConfig


class TinyConfig(LlamaConfig):
    model_type = "tiny_causal"
"""
_MODEL = """
from transformers import LlamaForCausalLM

from .configuration_tiny import TinyConfig


class TinyForCausalLM(LlamaForCausalLM):
    config_class = TinyConfig
"""


def save_causal_alone(directory: Path) -> None:
    """Write `save`'s model as a repository with its own code for a causal model alone.

    So is Baichuan2's: `AutoModel` finds no class in it.
    """
    save(directory)
    whole = LlamaForCausalLM(LlamaConfig.from_pretrained(directory))
    whole.model.load_state_dict(LlamaModel.from_pretrained(directory).state_dict())
    whole.save_pretrained(directory)
    (directory / "configuration_tiny.py").write_text(_CONFIGURATION)
    (directory / "modeling_tiny.py").write_text(_MODEL)
    path = directory / "config.json"
    config = json.loads(path.read_text()) | {
        "model_type": "tiny_causal",
        "architectures": ["TinyForCausalLM"],
        "auto_map": {
            "AutoConfig": "configuration_tiny.TinyConfig",
            "AutoModelForCausalLM": "modeling_tiny.TinyForCausalLM",
        },
    }
    path.write_text(json.dumps(config))
