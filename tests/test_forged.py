"""Artefacts that somebody forged, with a right checksum in the manifest: one line."""

import io
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from forging import forge, listed_anew
from safetensors.torch import save_file
from torch.distributed.checkpoint.metadata import Metadata

from learn_torchrec.artifact import read_manifest, verify
from learn_torchrec.content.store import ContentStore
from learn_torchrec.errors import UserError
from learn_torchrec.evaluation.predictions import read_predictions
from learn_torchrec.page_checksums import WRITTEN
from learn_torchrec.publish import write_artifact
from learn_torchrec.towers.artifact import load_towers
from learn_torchrec.towers.official_checkpoint import read_official_checkpoint
from learn_torchrec.training.tensors import read_index


def nested(depth: int) -> Any:
    return {"a": nested(depth - 1)} if depth else 1


A_FILE = {"bytes": 1, "sha256": "0" * 64}
FORGED = {
    "lists no files": lambda b: b.update(files={}),
    "lists one file of all": lambda b: b.update(files={"x.npy": A_FILE}),
    "a NUL in a name": lambda b: b["files"].update({"a\0b": A_FILE}),
    "a way out": lambda b: b["files"].update({"../x": A_FILE}),
    "an absolute name": lambda b: b["files"].update({"/etc/passwd": A_FILE}),
    "no name": lambda b: b["files"].update({"": A_FILE}),
    "a name with a line break": lambda b: b["files"].update({"a\nb": A_FILE}),
    "a huge size": lambda b: b["files"].update(x={"bytes": 10**400, "sha256": "0"}),
    "a size as text": lambda b: b["files"].update(x={"bytes": "1", "sha256": "0" * 64}),
    "no checksum": lambda b: b["files"].update(x={"bytes": 1}),
    "files as a list": lambda b: b.update(files=["x"]),
    "a huge cut-off": lambda b: b.update(cutoff=10**400),
    "a cut-off as text": lambda b: b.update(cutoff="now"),
    "facts as text": lambda b: b.update(facts="none"),
    "inputs of numbers": lambda b: b.update(inputs={"items": 7}),
    "deep facts": lambda b: b.update(facts=nested(400)),
}


@pytest.mark.parametrize("change", FORGED.values(), ids=FORGED)
def test_a_forged_manifest_is_refused(change, store):
    try:
        forge(store.directory, change)
    except RecursionError:
        pytest.fail("the test itself is too deep")
    except (AttributeError, TypeError):  # not even a checksum can be made
        pass
    with pytest.raises(UserError, match=r"damaged|not a file of this|not valid JSON"):
        ContentStore.open(store.directory)
    with pytest.raises(UserError) as caught:
        verify(store.directory, "content")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '{"a":' * 100_000,
        '{"format_version": 3, "cutoff": ' + "9" * 5000 + "}",
        "[" * 900 + "]" * 900,
        '{"format_version": 3}',
        "",
        "\0",
    ],
    ids=["deep", "deep objects", "digits", "deep and whole", "nothing", "empty", "NUL"],
)
def test_other_json_is_refused(text, store):
    (store.directory / "manifest.json").write_text(text)
    with pytest.raises(UserError) as caught:
        read_manifest(store.directory, "content")
    assert "\n" not in str(caught.value)


def test_a_missing_entry_is_one_line(store):
    manifest = read_manifest(store.directory, "content")
    for entries in (manifest.config, manifest.facts, manifest.inputs):
        with pytest.raises(UserError, match=r"manifest\.json: \w+: has no 'split'"):
            entries["split"]


@pytest.mark.parametrize("name", ["manifest.json", "vectors-00000.npy", "ids.arrow"])
def test_a_pipe_is_refused_at_once(name, store):
    (store.directory / name).unlink()
    os.mkfifo(store.directory / name)
    with pytest.raises(UserError, match=name.replace(".", r"\.")):
        ContentStore.open(store.directory)
    with pytest.raises(UserError, match=name.replace(".", r"\.")):
        verify(store.directory, "content")


@pytest.mark.parametrize("name", ["vectors-00001.npy", "sub/x.parquet", ".hidden"])
def test_a_file_that_is_not_listed_is_refused(name, store):
    path = store.directory / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes((store.directory / "vectors-00000.npy").read_bytes())
    for use in (ContentStore.open, verify, read_manifest):
        with pytest.raises(UserError, match="not a file of this artefact"):
            use(store.directory)
    path.unlink()
    path.symlink_to(store.directory.parent)
    with pytest.raises(UserError, match="not a file of this artefact"):
        ContentStore.open(store.directory)


ARRAYS = {
    "another shape": np.ones((3, 3), np.float16),
    "no columns": np.ones(40, np.float16),
    "a scalar": np.array(1.0),
    "objects": np.array([{}, None], object),
    "texts": np.array(["a", "b"]),
}


@pytest.mark.parametrize("array", ARRAYS.values(), ids=ARRAYS)
@pytest.mark.parametrize("name", ["vectors-00000.npy", "id_keys.npy", "id_rows.npy"])
def test_forged_arrays_are_refused(name, array, store):
    np.save(store.directory / name, array, allow_pickle=True)
    listed_anew(store.directory)
    with pytest.raises(UserError, match="content"):
        ContentStore.open(store.directory)


def test_a_header_that_promises_too_much_is_refused(store):
    path = store.directory / "vectors-00000.npy"
    body = path.read_bytes()
    path.write_bytes(body.replace(b"(40, 12), }", b"(99999999999999999999, 12), }"))
    listed_anew(store.directory)
    with pytest.raises(UserError, match=r"vectors-00000\.npy"):
        ContentStore.open(store.directory)


def towers(directory: Path, **tensors: torch.Tensor) -> Path:
    config = {"towers": {}, "split": {}}
    made = {"kind": "towers", "config": config, "inputs": {}}
    with write_artifact(directory, **made) as working:
        save_file(tensors, working / "towers.safetensors")
    return directory


def test_forged_towers_are_refused(tmp_path, store):
    wrong = {"encoder.mean": torch.zeros(3), "encoder.std": torch.zeros(3)}
    for name, tensors in (("none", {}), ("few", wrong), ("all", {"a": torch.ones(2)})):
        made = towers(tmp_path / name, **tensors)
        with pytest.raises(UserError, match=r"damaged .*train the towers again"):
            load_towers(made, torch.device("cpu"), store)
    path = towers(tmp_path / "cut", **wrong) / "towers.safetensors"
    for body in (path.read_bytes()[:20], b"", b"\xff" * 64):
        path.write_bytes(body)
        listed_anew(path.parent)
        with pytest.raises(UserError, match=r"damaged .*train the towers again"):
            load_towers(path.parent, torch.device("cpu"), store)


def test_forged_checkpoints_of_the_authors_are_refused(tmp_path):
    found = {"a list": [1], "a number": 7, "texts": {"a": "b"}, "numbers": {1: 2}}
    for name, content in found.items():
        path = tmp_path / f"{name}.pt"
        torch.save(content, path)
        with pytest.raises(UserError, match=r"\.pt"):
            read_official_checkpoint(path)
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(UserError, match="cannot be read as a checkpoint"):
            read_official_checkpoint(path)
    for suffix in (".pt", ".safetensors"):
        pipe = tmp_path / f"pipe{suffix}"
        os.mkfifo(pipe)
        with pytest.raises(UserError, match="not a plain file"):
            read_official_checkpoint(pipe)


class Sets:
    """Pickles as BUILD of an object with a state."""

    def __init__(self, target: Any, state: Any) -> None:
        self.target, self.state = target, state


def built(target: Any, state: Any) -> bytes:
    """The pickle of a target whose attributes are then set."""
    stream = io.BytesIO()
    whole = pickle.dumps(target, 2)[:-1] + pickle.dumps(state, 2)[2:-1]
    stream.write(whole + pickle.BUILD + pickle.STOP)
    return stream.getvalue()


STATES = {
    "of a class": (Metadata, (None, {"planner_data": 1})),
    "of a class, by name": (Metadata, {"forged": 1}),
    "of an object": (Metadata({}), (None, {"forged": 1})),
    "unknown ones": (Metadata({}), {"forged": 1}),
    "of a size": (torch.Size([1]), {"forged": 1}),
}


@pytest.mark.parametrize("forged", STATES.values(), ids=STATES)
def test_an_index_sets_no_attributes(forged, tmp_path):
    (tmp_path / ".metadata").write_bytes(built(*forged))
    with pytest.raises(UserError, match="it sets attributes of other objects"):
        read_index(tmp_path)
    assert not hasattr(Metadata, "forged")
    assert Metadata.planner_data is None


WRONG = {
    "no tensors": Metadata({"a": 1}),
    "names of no kind": Metadata(7),
    "places of no kind": Metadata({}, storage_data=7),
}


@pytest.mark.parametrize("metadata", WRONG.values(), ids=WRONG)
def test_an_index_of_something_else_is_refused(metadata, tmp_path):
    (tmp_path / ".metadata").write_bytes(pickle.dumps(metadata))
    with pytest.raises(UserError, match=r"\.metadata: refused"):
        read_index(tmp_path)


def predictions(directory: Path, loose: bool) -> Path:
    """Predictions of 400 rows; in an artefact, or as a file that has left it."""
    random = np.random.default_rng(0)
    table = pa.table(
        {
            "user_id": random.integers(0, 20, 400),
            "label": random.integers(0, 2, 400),
            "score": random.random(400),
        }
    )
    if loose:
        pq.write_table(table, directory / "part.parquet", **WRITTEN)
        return directory / "part.parquet"
    made = {"kind": "predictions", "config": {}, "inputs": {}}
    with write_artifact(directory / "made", **made) as working:
        (working / "predictions.parquet").mkdir()
        path = working / "predictions.parquet" / "part-00000.parquet"
        pq.write_table(table, path, **WRITTEN)
    return directory / "made"


def test_shards_that_a_copy_left_are_not_read(tmp_path):
    made = predictions(tmp_path, loose=False)
    inside = made / "predictions.parquet"
    assert len(read_predictions(made).labels) == 400
    extra = inside / "part-00001.parquet"
    extra.write_bytes((inside / "part-00000.parquet").read_bytes())
    for path in (made, inside, inside / "part-00000.parquet"):
        with pytest.raises(UserError, match=r"part-00001\.parquet: not a file of this"):
            read_predictions(path)
    plain = tmp_path / "plain"
    plain.mkdir()
    for name in ("a", "b"):
        (plain / f"{name}.parquet").write_bytes(extra.read_bytes())
    assert len(read_predictions(plain).labels) == 800


def test_a_flipped_bit_in_a_loose_file_is_refused(tmp_path):
    path = predictions(tmp_path, loose=True)
    whole = path.read_bytes()
    meta = pq.ParquetFile(path).metadata.row_group(0)
    columns = [meta.column(number) for number in range(3)]
    first = columns[0].dictionary_page_offset
    end = columns[2].data_page_offset + columns[2].total_compressed_size
    random = np.random.default_rng(1)
    original = read_predictions(path)
    refused = 0
    for place in random.integers(first + 40, end - 3000, 20):
        body = bytearray(whole)
        body[place] ^= 1 << random.integers(8)
        path.write_bytes(body)
        try:
            found = read_predictions(path)
        except UserError as error:
            refused += "\n" not in str(error)
        else:  # a bit of a page's header that nobody reads
            np.testing.assert_array_equal(found.scores, original.scores)
            np.testing.assert_array_equal(found.labels, original.labels)
    assert refused >= 15
