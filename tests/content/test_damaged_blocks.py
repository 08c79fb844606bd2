"""Blocks of an interrupted extraction, damaged in every way: the store is the same."""

import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from learn_torchrec.apps import encode_content
from learn_torchrec.array_files import write_checked
from learn_torchrec.content import extract
from learn_torchrec.content.encoder import ContentEncoder
from learn_torchrec.content.store import ContentStore
from learn_torchrec.errors import UserError


class Interrupted(ContentEncoder):
    """Fails after six batches, like a machine."""

    def encode_batches(self, texts, known=None):
        for number, batch in enumerate(super().encode_batches(texts, known)):
            if number == 6:
                raise KeyboardInterrupt
            yield batch


def run(market: Path, out: Path, model_dir: Path, *more: str) -> None:
    settings = [f"content.encoder.model={model_dir}"]
    settings += ["content.encoder.tokens_per_batch=128"]
    data = ("--data", f"parquet:{market}", "--out", str(out))
    encode_content.main([*data, "--set", *settings, *more])


def checksums(directory: Path) -> dict[str, str]:
    files = json.loads((directory / "manifest.json").read_text())["files"]
    return {k: v["sha256"] for k, v in files.items() if k != "config.json"}


@pytest.fixture
def interrupted(
    market: Path, model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """The folder of an interrupted extraction into `content`, of three blocks."""
    monkeypatch.setattr(extract, "_BLOCK_ITEMS", 8)
    with monkeypatch.context() as patch:
        patch.setattr(extract.encode, "__defaults__", (Interrupted, True))
        with pytest.raises(KeyboardInterrupt):
            run(market, tmp_path / "out" / "content", model_dir)
    (partial,) = (tmp_path / "out").glob(".content.*.partial")
    assert len(list(partial.glob("*.hashes.npy"))) == 3
    return partial


def flip(path: Path, place: int) -> None:
    body = bytearray(path.read_bytes())
    body[place] ^= 4
    path.write_bytes(body)


def swap(one: Path, other: Path) -> None:
    body = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(body)


def write_nan(path: Path, write: Callable[[Path, np.ndarray], object]) -> None:
    array = np.array(np.load(path))
    array[1, 2] = np.nan
    write(path, array)


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


DAMAGE = {
    "bit in the vectors": lambda v, h: flip(v[0], -200),
    "bit in the hashes": lambda v, h: flip(h[0], -50),
    "bit in a header": lambda v, h: flip(v[0], 20),
    "bit in a digest": lambda v, h: flip(v[0], -3),
    "nan": lambda v, h: write_nan(v[0], np.save),
    "nan with a digest": lambda v, h: write_nan(v[0], write_checked),
    "truncated": lambda v, h: os.truncate(v[0], 100),
    "empty vectors": lambda v, h: os.truncate(v[0], 0),
    "empty hashes": lambda v, h: os.truncate(h[0], 0),
    "no vectors": lambda v, h: v[0].unlink(),
    "no hashes": lambda v, h: h[0].unlink(),
    "swapped vectors": lambda v, h: swap(v[0], v[1]),
    "renamed": lambda v, h: v[0].replace(v[1]),
    "other shape": lambda v, h: write_checked(v[0], np.ones((1, 16), np.float16)),
    "other type": lambda v, h: write_checked(v[0], np.ones((8, 16))),
    "no columns": lambda v, h: write_checked(v[0], np.ones((12, 0), np.float16)),
    "other hashes": lambda v, h: write_checked(h[0], np.ones((12, 3), np.uint64)),
    "a pipe": lambda v, h: pipe(v[0]),
    "nothing": lambda v, h: None,
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_block_is_encoded_again(
    damage, interrupted, market, model_dir, tmp_path, caplog
):
    vectors = sorted(interrupted.glob("*.vectors.npy"))
    hashes = sorted(interrupted.glob("*.hashes.npy"))
    damage(vectors, hashes)
    lost = damage not in (DAMAGE["nothing"], DAMAGE["no hashes"])
    with caplog.at_level(logging.WARNING):
        run(market, tmp_path / "out" / "content", model_dir)
    said = [m for m in caplog.messages if "damaged; its texts are encoded again" in m]
    assert bool(said) == lost
    run(market, tmp_path / "whole", model_dir)
    assert checksums(tmp_path / "out" / "content") == checksums(tmp_path / "whole")
    facts = ContentStore.open(tmp_path / "out" / "content").manifest.facts
    blocks = {"nothing": 3, "renamed": 1, "swapped vectors": 1}
    kept = {DAMAGE[name]: count for name, count in blocks.items()}.get(damage, 2)
    assert facts["encoded"] == 40 - 12 * kept


@pytest.mark.parametrize("count", [1, 3])
def test_vectors_of_another_length_are_one_line(
    count, interrupted, market, model_dir, tmp_path
):
    for path in sorted(interrupted.glob("*.vectors.npy"))[:count]:
        write_checked(path, np.ones((12, 7), np.float16))
    with pytest.raises(UserError, match=rf"of length \d+, others .* {interrupted}"):
        run(market, tmp_path / "out" / "content", model_dir)
    assert not (tmp_path / "out" / "content").exists()


@pytest.mark.parametrize("how", ["reuse", "overwrite"])
def test_a_damaged_store_is_not_reused(how, market, model_dir, tmp_path, caplog):
    out = tmp_path / "content"
    run(market, out, model_dir)
    clean = checksums(out)
    flip(out / "vectors-00000.npy", -30)
    if how == "reuse":
        with pytest.raises(UserError, match=r"vectors-00000\.npy: damaged"):
            run(market, tmp_path / "new", model_dir, "--reuse", str(out))
        return
    shutil.copytree(out, tmp_path / "copy")
    more = ("--overwrite", "--set", "content.prompt.currency=yuan")
    run(market, out, model_dir, *more)
    assert "its vectors are not reused" in caplog.text
    assert checksums(out)["vectors-00000.npy"] == clean["vectors-00000.npy"]
