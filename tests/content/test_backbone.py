"""Models with code of their own, pinned revisions, and what identifies a vector."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny_model

from learn_torchrec.content import backbone, encoder, extract
from learn_torchrec.content.encoder import ContentEncoder, EncoderConfig
from learn_torchrec.content.extract import ContentConfig, encoder_identity
from learn_torchrec.errors import UserError
from learn_torchrec.presets import PRESETS

TEXTS = ["a red mug", "the blue cup with a big handle"]


@pytest.fixture
def causal(tmp_path: Path) -> EncoderConfig:
    tiny_model.save_causal_alone(tmp_path / "tiny_causal")
    return EncoderConfig(
        model=str(tmp_path / "tiny_causal"),
        dtype="float32",
        device="cpu",
        max_tokens=32,
        trust_remote_code=True,
    )


def test_a_repository_with_a_causal_model_alone(causal, model_dir: Path) -> None:
    plain = replace(causal, model=str(model_dir), trust_remote_code=False)
    found, expected = ContentEncoder(causal), ContentEncoder(plain)
    np.testing.assert_array_equal(found.encode(TEXTS), expected.encode(TEXTS))
    assert "ForCausalLM" not in type(found.model).__name__
    assert not any(one.requires_grad for one in found.model.parameters())
    layers = replace(causal, layers=(0, 2))
    plain = replace(plain, layers=(0, 2))
    np.testing.assert_array_equal(
        ContentEncoder(layers).encode(TEXTS), ContentEncoder(plain).encode(TEXTS)
    )


def test_its_code_is_not_run_unasked(causal) -> None:
    with pytest.raises(UserError, match="set trust_remote_code=true"):
        ContentEncoder(replace(causal, trust_remote_code=False))


def test_weights_that_it_lacks_are_named_but_for_its_head(causal) -> None:
    from safetensors.torch import load_file, save_file

    path = Path(causal.model) / "model.safetensors"
    weights = load_file(path)
    del weights["lm_head.weight"]
    save_file(weights, path, {"format": "pt"})
    ContentEncoder(causal)
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, path, {"format": "pt"})
    with pytest.raises(UserError, match=r"1 weights are missing .*up_proj"):
        ContentEncoder(causal)


def test_another_kind_of_failure_is_told_as_before(causal) -> None:
    path = Path(causal.model) / "config.json"
    config = json.loads(path.read_text())
    del config["auto_map"]
    path.write_text(json.dumps(config))
    with pytest.raises(UserError, match="cannot be loaded"):
        ContentEncoder(causal)


def test_a_revision_is_pinned_and_part_of_the_identity(monkeypatch) -> None:
    files = backbone.find_model("owner/name", "abc123")
    assert files.revision == "abc123"
    assert backbone.fingerprint("owner/name") == "hub:owner/name"
    assert backbone.fingerprint("owner/name", "abc123") == "hub:owner/name@abc123"
    config = ContentConfig(encoder=EncoderConfig(model="owner/name", revision="v1"))
    other = replace(config, encoder=replace(config.encoder, revision="v2"))
    assert encoder_identity(config) != encoder_identity(other)
    asked: list[dict] = []

    def load(name, **options):
        asked.append(options)
        raise OSError("no network here")

    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", load)
    monkeypatch.setattr(backbone, "_hub_answers", lambda name: True)
    with pytest.raises(UserError, match="owner/name"):
        ContentEncoder(replace(config.encoder, device="cpu"))
    assert asked[0]["revision"] == asked[0]["code_revision"] == "v1"


def test_files_on_disk_have_no_revision(model_dir: Path) -> None:
    config = EncoderConfig(model=str(model_dir), revision="main")
    with pytest.raises(UserError, match=r"revision=main: .* only a model of the hub"):
        ContentEncoder(config)
    with pytest.raises(UserError, match="revision=main"):
        extract.encoder_fingerprint(ContentConfig(encoder=config))


def test_vectors_of_another_dtype_are_others(model_dir, monkeypatch) -> None:
    def identity(dtype: str) -> str:
        one = EncoderConfig(model=str(model_dir), dtype=dtype, device="cpu")
        return encoder_identity(ContentConfig(encoder=one))

    monkeypatch.setattr(encoder, "cpu_has_bfloat16", lambda: True)
    assert identity("auto") == identity("bfloat16") != identity("float32")
    monkeypatch.setattr(encoder, "cpu_has_bfloat16", lambda: False)
    assert identity("auto") == identity("float32")


def test_the_paper_s_preset_is_the_paper_s_split_and_precision() -> None:
    run = PRESETS["paper-v2"]()
    assert run.split.holdout == "time"
    assert run.split.towers_until == run.split.test_from == "90%"
    assert run.split.test_users == 0.02
    assert run.towers.training.precision == run.content.encoder.dtype == "bfloat16"
    assert PRESETS["official-amazon"]().split.holdout == "new_users"
