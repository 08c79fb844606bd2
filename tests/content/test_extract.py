import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from learn_torchrec.apps import encode_content
from learn_torchrec.content.encoder import ContentEncoder, EncoderConfig
from learn_torchrec.content.extract import (
    ContentConfig,
    encode,
    encoder_identity,
    rows_to_encode,
    text_hashes,
)
from learn_torchrec.content.prompt import PromptConfig
from learn_torchrec.content.store import ContentStore
from learn_torchrec.content.vector_cache import VectorCache, hash_texts
from learn_torchrec.errors import UserError
from learn_torchrec.spaces import CANARY_TEXTS

ROOT = Path(__file__).parents[2]
WORDS = ("red", "blue", "green", "big", "small")
TITLES = [f"a {a} {b} mug of the {c} cup" for a in WORDS for b in WORDS for c in WORDS]


@pytest.fixture
def config(model_dir: Path) -> ContentConfig:
    encoder = EncoderConfig(
        model=str(model_dir), dtype="float32", device="cpu", tokens_per_batch=64
    )
    return ContentConfig(encoder=encoder, prompt=PromptConfig(template="{title}"))


def catalogue(titles: list[str]) -> pa.Table:
    return pa.table({"item_id": range(len(titles)), "title": titles})


class Interrupted(ContentEncoder):
    """Fails in the middle, like a machine."""

    batches = 3

    def encode_batches(self, texts: list[str], known=None) -> Iterator:
        batches = super().encode_batches(texts, known)
        for number, batch in enumerate(batches):
            if number == self.batches:
                raise KeyboardInterrupt
            yield batch


def encode_missing(
    items: pa.Table, config: ContentConfig, cache: VectorCache, *encoder: type
) -> tuple[int, dict]:
    """Returns how many texts were encoded, and the facts."""
    hashes = text_hashes(items, config)
    rows, missing = rows_to_encode(hashes, cache)
    facts = encode(items, rows, hashes, config, cache, *encoder)
    cache.reload()
    return missing, facts


def vectors(items: pa.Table, config: ContentConfig, cache: VectorCache) -> np.ndarray:
    return cache.gather(cache.find(text_hashes(items, config)))


def test_only_what_is_missing_is_encoded(config: ContentConfig, tmp_path: Path) -> None:
    titles = [*TITLES[:40], TITLES[3], "a mug"]  # one text twice
    items = catalogue(titles)
    whole = VectorCache(tmp_path / "whole")
    assert encode_missing(items, config, whole)[0] == 41
    cache = VectorCache(tmp_path / "parts")
    with pytest.raises(KeyboardInterrupt):
        encode_missing(items, config, cache, Interrupted)
    cache = VectorCache(tmp_path / "parts")
    before = int((cache.find(hash_texts([*titles[:40], "a mug"])) >= 0).sum())
    assert 0 < before < 40
    encoded, facts = encode_missing(items, config, cache)
    assert before + encoded == 41
    assert facts["dtype"] == "float32"
    np.testing.assert_array_equal(
        vectors(items, config, cache), vectors(items, config, whole)
    )
    # The model is not even loaded again.
    assert encode_missing(items, config, VectorCache(tmp_path / "parts")) == (0, {})


def test_blocks_count_whole_or_not_at_all(tmp_path: Path) -> None:
    cache = VectorCache(tmp_path / "c")
    assert cache.dim is None
    hashes = hash_texts(["x", "y"])
    cache.write_block(hashes, np.ones((2, 3), np.float16))
    cache.write_block(hash_texts(["z"]), np.full((1, 3), 2, np.float16))
    cache.reload()
    assert cache.dim == 3
    found = cache.find(hash_texts(["z", "q", "y"]))
    assert (found >= 0).tolist() == [True, False, True]
    np.testing.assert_array_equal(cache.gather(found[[0, 2]]), [[2] * 3, [1] * 3])
    assert cache.gather(found[[2, 0, 2]])[:, 0].tolist() == [1, 2, 1]
    for path in (tmp_path / "c").glob("*.hashes.npy"):
        path.rename(path.with_suffix(".tmp"))  # killed before the last rename
    assert VectorCache(tmp_path / "c").dim is None


def test_a_cache_may_have_more_blocks_than_a_process_files(tmp_path: Path) -> None:
    cache = VectorCache(tmp_path / "c")
    texts = [f"text {number}" for number in range(200)]
    values = np.arange(200, dtype=np.float16)[:, None]
    for text, value in zip(texts, values, strict=True):
        cache.write_block(hash_texts([text]), value[None])
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    in_use = len(list(Path("/proc/self/fd").iterdir()))
    resource.setrlimit(resource.RLIMIT_NOFILE, (in_use + 20, limits[1]))
    try:
        cache.reload()
        gathered = cache.gather(cache.find(hash_texts(texts[::-1])))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    np.testing.assert_array_equal(gathered, values[::-1])


def run_app(market: Path, out: Path, model_dir: Path, *more: str) -> ContentStore:
    encode_content.main(
        [
            *("--data", f"parquet:{market}", "--out", str(out), "--set"),
            f"content.encoder.model={model_dir}",
            *more,
        ]
    )
    return ContentStore.open(out)


def test_an_item_without_text_gets_no_vector(
    market: Path, model_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = run_app(market, tmp_path / "whole", model_dir)
    path = market / "items.parquet"
    items = pq.read_table(path).to_pylist()
    for row, blank in ((3, None), (17, " \u00a0")):
        items[row] |= {"title": blank, "category": ""}
    pq.write_table(pa.Table.from_pylist(items), path)
    reuse = ("--reuse", str(tmp_path / "whole"))
    found = run_app(market, tmp_path / "found", model_dir, *reuse)
    kept = [id_ for id_ in range(100, 140) if id_ not in (103, 117)]
    assert found.item_ids.to_pylist() == kept
    assert found.manifest.facts["items"] == 38
    np.testing.assert_array_equal(
        found.gather(found.rows_of(kept)), whole.gather(whole.rows_of(kept))
    )
    said = f"{path}: 2 of 40 items have no text and get no content vector: 103, 117"
    assert caplog.messages.count(f"{said}; left out") == 1
    with pytest.raises(UserError, match=r"2 of 40 items have no text .*--strict"):
        run_app(market, tmp_path / "strict", model_dir, "--strict")
    textless = [row | {"title": None, "category": ""} for row in items]
    pq.write_table(pa.Table.from_pylist(textless), path)
    with pytest.raises(UserError, match=r"40 of 40 items have .*; too many to"):
        run_app(market, tmp_path / "none", model_dir)
    pq.write_table(pa.table({"item_id": [1], "stock": [7]}), path)
    with pytest.raises(UserError, match=r"items\.parquet: no text column; it has"):
        run_app(market, tmp_path / "none", model_dir)
    assert not (tmp_path / "none").exists()


def test_changed_and_new_items_only(
    market: Path, model_dir: Path, tmp_path: Path
) -> None:
    first = run_app(market, tmp_path / "first", model_dir)
    assert first.manifest.facts["encoded"] == 40
    items = pq.read_table(market / "items.parquet").to_pylist()
    items[7]["title"] = "a green cup"
    items.append({"item_id": 900, "title": "a plate", "category": "red"})
    pq.write_table(pa.Table.from_pylist(items[::-1]), market / "items.parquet")
    reuse = ("--reuse", str(tmp_path / "first"))
    second = run_app(market, tmp_path / "second", model_dir, *reuse)
    assert second.manifest.facts["encoded"] == 2
    assert second.manifest.facts["text_hash"] != first.manifest.facts["text_hash"]
    old = [id_ for id_ in first.item_ids.to_pylist() if id_ != 107]
    np.testing.assert_array_equal(
        second.gather(second.rows_of(old)), first.gather(first.rows_of(old))
    )
    clean = run_app(market, tmp_path / "clean", model_dir)
    assert clean.item_ids.equals(second.item_ids)
    np.testing.assert_allclose(clean.vectors, second.vectors, atol=1e-3)
    np.testing.assert_allclose(clean.mean, second.mean, atol=1e-4)
    # The store that --overwrite replaces is reused without --reuse.
    items[0]["title"] = "a blue mug"
    pq.write_table(pa.Table.from_pylist(items), market / "items.parquet")
    third = run_app(market, tmp_path / "first", model_dir, "--overwrite")
    assert third.manifest.facts["encoded"] == 3
    with pytest.raises(UserError, match="are from another model or other encoder"):
        run_app(
            market,
            tmp_path / "no",
            model_dir,
            *("--set=content.encoder.pooling=last", *reuse),
        )


def test_the_manifest_says_what_made_the_vectors(
    market: Path, model_dir: Path, tmp_path: Path
) -> None:
    more = "content.encoder.dtype=float32"
    manifest = run_app(market, tmp_path / "c", model_dir, more).manifest
    facts = manifest.facts
    assert facts["model"] == str(model_dir)
    assert (facts["pooling"], facts["layers"]) == ("mean", [-1])
    assert (facts["normalization"], facts["dtype"]) == ("l2", "float32")
    assert (facts["items"], facts["dim"]) == (40, 16)
    assert facts["prompt"] == "the paper's, en"
    assert len(facts["text_hash"]) == 64
    assert facts["revision"] is None  # a local directory; its digest is an input
    assert manifest.cutoff is None
    assert manifest.created
    assert len(manifest.inputs["encoder"]) == 64


def test_speed_settings_are_no_part_of_the_encoder(config: ContentConfig) -> None:
    from dataclasses import replace

    def identity(**changes: object) -> str:
        encoder = replace(config.encoder, **changes)
        return encoder_identity(replace(config, encoder=encoder))

    assert identity() == identity(tokens_per_batch=999, device="auto")
    assert identity() != identity(pooling="last")
    assert identity() != identity(max_tokens=17)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 1e-3)]
)
def test_vectors_do_not_depend_on_the_batch(
    wide_model_dir: Path, dtype: str, tolerance: float
) -> None:
    encoder = ContentEncoder(
        EncoderConfig(
            model=str(wide_model_dir), dtype=dtype, device="cpu", tokens_per_batch=4096
        )
    )
    texts = [" ".join(TITLES[n : n + 1 + n % 5]) for n in range(0, 60, 3)]
    together = encoder.encode(texts)
    alone = np.concatenate([encoder.encode([text]) for text in texts])
    assert np.abs(together - alone).max() <= tolerance
    assert np.abs(together[0] - together[1]).max() > 10 * tolerance


def start(
    market: Path, out: Path, model_dir: Path, *more: str, ranks: int = 1
) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc_per_node={ranks}", "-m", "encode_slowly"]
    command += ["--data", f"parquet:{market}", "--out", str(out), "--set"]
    command += [f"content.encoder.model={model_dir}"]
    command += ["content.encoder.tokens_per_batch=64", *more]
    path = f"{ROOT}:{ROOT / 'tests' / 'content'}"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    return subprocess.Popen(
        command,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_killed_on_two_ranks_and_finished_on_one(
    market: Path, model_dir: Path, tmp_path: Path
) -> None:
    out = tmp_path / "runs" / "content"
    running = start(market, out, model_dir, ranks=2)
    deadline = time.monotonic() + 120
    while len(list(out.parent.glob(".content.*.partial/*.hashes.npy"))) < 2:
        assert running.poll() is None, running.communicate()[1][-2000:]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    workers = Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text()
    for pid in (running.pid, *map(int, workers.split())):
        os.kill(pid, signal.SIGKILL)
    running.communicate()
    assert not out.exists()
    store = run_app(market, out, model_dir)
    assert 0 < store.manifest.facts["encoded"] < 40
    clean = run_app(market, tmp_path / "clean", model_dir)
    np.testing.assert_allclose(store.vectors, clean.vectors, atol=1e-3)
    assert store.item_ids.equals(clean.item_ids)
    assert [path.name for path in out.parent.iterdir()] == ["content"]
    two = start(market, tmp_path / "two", model_dir, ranks=2)
    _, errors = two.communicate(timeout=120)
    assert two.returncode == 0, errors[-2000:]
    sharded = ContentStore.open(tmp_path / "two")
    assert len(sharded.vectors.shards) == 2
    np.testing.assert_allclose(sharded.vectors, clean.vectors, atol=1e-3)
    assert sharded.manifest.facts["text_hash"] == clean.manifest.facts["text_hash"]
    assert json.loads((tmp_path / "two" / "config.json").read_text())


def test_new_items_are_shared_by_the_ranks(
    market: Path, model_dir: Path, tmp_path: Path
) -> None:
    out = tmp_path / "content"
    run_app(market, out, model_dir)
    items = pq.read_table(market / "items.parquet").to_pylist()
    items += [
        {"item_id": 900 + number, "title": title, "category": "red"}
        for number, title in enumerate(TITLES[:7])
    ]
    pq.write_table(pa.Table.from_pylist(items), market / "items.parquet")
    running = start(market, out, model_dir, "--overwrite", ranks=2)
    _, errors = running.communicate(timeout=120)
    assert running.returncode == 0, errors[-2000:]
    given = re.findall(r"rank (\d): (\d+) texts", errors)
    canaries = ("0", str(len(CANARY_TEXTS)))
    assert sorted(given) == [canaries, ("0", "4"), ("1", "3")]
    store = ContentStore.open(out)
    assert store.manifest.facts["encoded"] == 7
    clean = run_app(market, tmp_path / "clean", model_dir)
    np.testing.assert_allclose(store.vectors, clean.vectors, atol=1e-3)
