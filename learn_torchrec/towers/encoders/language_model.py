"""A language model as sequence encoder: item vectors instead of words, tuned by LoRA.

The paper's comparison "LLM + LoRA" (table on the backbone of preference comprehension):
the pretrained weights stay as they are, low-rank matrices beside every linear layer are
trained. It needs the package `peft`.

Dimension letters: S tokens of all sequences together, W width.
"""

import importlib.util
from typing import Any

import torch
from torch import Tensor, nn

from learn_torchrec.content import backbone
from learn_torchrec.errors import UserError
from learn_torchrec.towers.packing import Packing


class LanguageModel(nn.Module):
    """A causal language model over packed item vectors.

    Args:
        model: see `content.backbone.find_model`.
        width: W, the model's hidden size.
        rank: of the low-rank matrices; their scale is 2.
        dropout: of their inputs.

    Raises:
        UserError: peft is missing, the model cannot be loaded, or has another width.
    """

    def __init__(self, model: str, width: int, rank: int, dropout: float) -> None:
        super().__init__()
        files = refuse_absent(model)
        from peft import LoraConfig, get_peft_model

        _, body = backbone.load(files, torch.float32, torch.device("cpu"), False)
        config: Any = body.config
        hidden = int(config.hidden_size)
        if hidden != width:
            raise UserError(
                f"towers.model.encoder.width={width}: {model} has a hidden size of "
                f"{hidden}; set it to that"
            )
        lora = LoraConfig(
            r=rank,
            lora_alpha=2 * rank,
            lora_dropout=dropout,
            target_modules="all-linear",
        )
        self.body = get_peft_model(body, lora)

    def forward(
        self, tokens: Tensor, packing: Packing, times: Tensor, actions: Tensor
    ) -> Tensor:
        """[S, W] -> [S, W]; reads neither times nor actions."""
        parts = []
        for group, part in packing.split(tokens):
            # Padding is on the right, where the causal mask hides it.
            encoded = self.body(inputs_embeds=group.pad(part)).last_hidden_state
            parts.append(group.unpad(encoded.to(tokens.dtype)))
        return torch.cat(parts)


def refuse_absent(model: str) -> backbone.ModelFiles:
    """Return the files of a language model to be tuned by LoRA.

    Raises:
        UserError: peft or the model is missing.
    """
    if importlib.util.find_spec("peft") is None:
        raise UserError(
            "towers.model.encoder.architecture=language_model: needs peft; run pip "
            "install peft"
        )
    return backbone.find_model(model)
