"""A pretrained language model as sequence encoder, tuned by LoRA."""

import pytest
import torch
from tiny_model import HIDDEN
from transformers import LlamaModel

from learn_torchrec.errors import UserError
from learn_torchrec.towers.encoder import PreferenceEncoder
from learn_torchrec.towers.encoders.architecture import EncoderShape
from learn_torchrec.towers.packing import Packing

CONTENT = torch.randn(5, 7, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def encoder(model_dir):
    torch.manual_seed(0)
    return PreferenceEncoder(torch.zeros(7), torch.ones(7), shape(model_dir)).eval()


def shape(model_dir, width: int = HIDDEN) -> EncoderShape:
    return EncoderShape(
        architecture="language_model",
        language_model=str(model_dir),
        width=width,
        num_heads=4,
        vector_dim=6,
        lora_rank=2,
        dropout=0.0,
    )


def test_it_starts_as_the_pretrained_model(encoder, model_dir):
    plain = LlamaModel.from_pretrained(model_dir).eval()
    tokens = torch.randn(5, HIDDEN)
    lengths = torch.tensor([5])
    found = encoder.sequence_encoder(tokens, Packing(lengths), None, None)
    wanted = plain(inputs_embeds=tokens[None]).last_hidden_state[0]
    assert torch.allclose(found, wanted, atol=1e-5)


def test_sequences_do_not_mix_and_the_future_is_hidden(encoder):
    together = encoder(CONTENT, torch.tensor([0, 1, 2, 3, 1, 4]), torch.tensor([4, 2]))
    alone = encoder(CONTENT, torch.tensor([1, 4]), torch.tensor([2]))
    assert torch.allclose(together[4:], alone, atol=1e-5)
    shorter = encoder(CONTENT, torch.tensor([0, 1]), torch.tensor([2]))
    assert torch.allclose(together[:2], shorter, atol=1e-5)


def test_only_low_rank_matrices_and_projections_learn(encoder):
    learning = {n for n, p in encoder.named_parameters() if p.requires_grad}
    inside = {name for name in learning if name.startswith("sequence_encoder")}
    assert inside
    assert all("lora_" in name for name in inside)
    outside = {"content_projection.weight", "vector_projection.weight"}
    assert outside < learning - inside
    vectors = encoder.train()(CONTENT, torch.tensor([0, 1, 2]), torch.tensor([3]))
    vectors[:, 0].sum().backward()
    reached = {n for n, p in encoder.named_parameters() if p.grad is not None}
    assert reached == learning


def test_its_width_is_the_models(model_dir):
    with pytest.raises(UserError, match=f"hidden size of {HIDDEN}"):
        PreferenceEncoder(torch.zeros(7), torch.ones(7), shape(model_dir, width=32))
