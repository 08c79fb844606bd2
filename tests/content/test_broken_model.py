"""Model directories that are damaged, truncated or not what they say: one line each."""

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from apps.benchmarks.errno_stages import write_model
from learn_torchrec.content.encoder import ContentEncoder, EncoderConfig
from learn_torchrec.errors import UserError
from learn_torchrec.refusals import one_line

Damage = Callable[[Path], object]
NAMES = ("model.safetensors", "tokenizer.json", "tokenizer_config.json", "config.json")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "whole"
    write_model(folder)
    return folder


def encode(model: Path) -> None:
    config = EncoderConfig(model=str(model), dtype="float32", device="cpu")
    ContentEncoder(config).encode(["a red mug", "b"])


def refused(model: Path) -> str:
    with pytest.raises(UserError) as raised:
        encode(model)
    line = str(raised.value)
    assert "\n" not in line
    return line


def body(name: str, content: bytes | str) -> Damage:
    content = content if isinstance(content, bytes) else content.encode()
    return lambda folder: (folder / name).write_bytes(content)


def half(name: str) -> Damage:
    return lambda folder: os.truncate(
        folder / name, (folder / name).stat().st_size // 2
    )


def setting(name: str, **changes: object) -> Damage:
    def change(folder: Path) -> None:
        old = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**old, **changes}))

    return change


class Evil:
    """Unpickles to a command."""

    def __reduce__(self) -> tuple:
        return os.mkdir, ("evil",)


def pickled(content: bytes) -> Damage:
    def change(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        (folder / "pytorch_model.bin").write_bytes(content)

    return change


LETTERS = {chr(code): code + 9000 for code in range(32, 127)} | {"<unk>": 5, "<eos>": 6}
DAMAGES: dict[str, Damage] = {
    **{f"empty {name}": body(name, "") for name in NAMES},
    **{f"half of {name}": half(name) for name in NAMES},
    **{f"{name} is a list": body(name, "[]") for name in NAMES[1:]},
    **{f"{name} is null": body(name, "null") for name in NAMES[1:]},
    **{f"{name} is deep": body(name, "[" * 100_000) for name in NAMES[1:]},
    "a header without end": body("model.safetensors", b"\xff" * 100),
    "no hidden size": setting("config.json", hidden_size=0),
    "a huge vocabulary": setting("config.json", vocab_size=10**12),
    "another hidden size": setting("config.json", hidden_size=64),
    "a text as a size": setting("config.json", intermediate_size="x"),
    "an unknown activation": setting("config.json", hidden_act="exec"),
    "a list as the type": setting("config.json", model_type=[1]),
    "an unknown tokenizer": setting("tokenizer.json", model={"type": "Nope"}),
    "tokens that the model lacks": setting(
        "tokenizer.json",
        model={"type": "BPE", "merges": [], "vocab": LETTERS, "unk_token": "<unk>"},
    ),
    "no token at all": setting(
        "tokenizer.json",
        model={"type": "BPE", "merges": [], "vocab": {}, "unk_token": "<unk>"},
    ),
    "a padding token that the model lacks": setting(
        "tokenizer_config.json", pad_token="<new>"
    ),
    "a number as the tokenizer's class": body(
        "tokenizer_config.json", '{"tokenizer_class": 7}'
    ),
    "a pickle that runs code": pickled(pickle.dumps(Evil())),
    "an empty pickle": pickled(b""),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_model_is_one_line(
    name: str, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model = tmp_path / "model"
    shutil.copytree(whole, model)
    DAMAGES[name](model)
    assert str(model) in refused(model)
    assert not Path("evil").exists()


@pytest.mark.parametrize("content", [b"", b"GGUF", b"GGUF" + b"\xff" * 200, b"x" * 99])
def test_a_damaged_gguf_file_is_one_line(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(content)
    assert str(file) in refused(file)


def test_the_whole_model_encodes(whole: Path) -> None:
    encode(whole)


def test_a_name_longer_than_any_file() -> None:
    with pytest.raises(OSError, match="name too long") as raised:
        encode(Path("x" * 5000))
    assert "choose a shorter name" in (one_line(raised.value) or "")
