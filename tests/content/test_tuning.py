"""Tuning a language model with the next-token loss."""

import pytest
import tiny_model
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from learn_torchrec.content import tuning
from learn_torchrec.content.encoder import ContentEncoder, EncoderConfig
from learn_torchrec.content.tuning import Tuning, next_token_loss, tune_language_model
from learn_torchrec.errors import UserError

TEXTS = ["red mug with a handle", "blue cup", "a big green plate of the cup"] * 10


@pytest.fixture
def model(tmp_path):
    tiny_model.save(tmp_path / "model")
    torch.manual_seed(0)
    config = LlamaConfig.from_pretrained(tmp_path / "model")
    LlamaForCausalLM(config).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_the_loss_is_the_mean_over_real_tokens(model):
    causal = LlamaForCausalLM.from_pretrained(model).eval()
    long, short = [2, 3, 4, 5], [6, 7]
    together = next_token_loss(causal, [long, short])
    total = 0.0
    for text in (long, short):
        logits = causal(input_ids=torch.tensor([text])).logits[0].log_softmax(-1)
        total -= sum(logits[place, text[place + 1]] for place in range(len(text) - 1))
    assert float(together) == pytest.approx(float(total) / 4, rel=1e-5)


def test_tuning_learns_and_is_done_once(model, tmp_path, capsys, monkeypatch):
    settings = Tuning(passes=4, learning_rate=1e-2, tokens_per_batch=32)
    encoder = EncoderConfig(model=str(model), dtype="float32")
    tuned = tune_language_model(encoder, TEXTS, settings, tmp_path)
    before = LlamaForCausalLM.from_pretrained(model).eval()
    after = LlamaForCausalLM.from_pretrained(tuned).eval()
    ids = ContentEncoder(encoder).tokenizer(TEXTS[:3])["input_ids"]
    assert next_token_loss(after, ids) < 0.8 * next_token_loss(before, ids)
    vectors = ContentEncoder(EncoderConfig(model=str(tuned), dtype="float32"))
    assert vectors.encode(["red mug"]).shape == (1, tiny_model.HIDDEN)
    monkeypatch.setattr(tuning, "_train", None)
    assert tune_language_model(encoder, TEXTS, settings, tmp_path) == tuned
    with pytest.raises(TypeError):  # other texts are another tuning
        tune_language_model(encoder, TEXTS[1:], settings, tmp_path)
    weights = tuned / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(UserError, match=r"model\.safetensors: damaged"):
        tune_language_model(encoder, TEXTS, settings, tmp_path)


def test_a_pass_that_makes_it_worse_is_not_kept(model, tmp_path):
    settings = Tuning(passes=1, learning_rate=50.0, tokens_per_batch=32)
    encoder = EncoderConfig(model=str(model), dtype="float32")
    tuned = tune_language_model(encoder, TEXTS, settings, tmp_path)
    before = LlamaForCausalLM.from_pretrained(model).state_dict()
    after = LlamaForCausalLM.from_pretrained(tuned).state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_too_little_text_and_no_language_model(model, tmp_path):
    encoder = EncoderConfig(model=str(model))
    with pytest.raises(UserError, match="too few to tune"):
        tune_language_model(encoder, TEXTS[:3], Tuning(), tmp_path)
    headless = tmp_path / "headless"
    tiny_model.save(headless)
    with pytest.raises(UserError, match="weights are missing"):
        tune_language_model(
            EncoderConfig(model=str(headless)), TEXTS, Tuning(), tmp_path
        )
