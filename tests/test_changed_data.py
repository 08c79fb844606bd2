"""Data that changes between its fingerprint and its reading is noticed."""

import os
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from learn_torchrec.apps import prepare
from learn_torchrec.apps.common import job
from learn_torchrec.datasets import open_dataset
from learn_torchrec.errors import UserError

TABLE = "interactions.parquet"


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    pq.write_table(pa.table({"item_id": [1, 2]}), folder / "items.parquet")
    events = {"user_id": [1, 1], "item_id": [1, 2], "timestamp": [5, 6]}
    pq.write_table(pa.table({**events, "action": ["a", "a"]}), folder / TABLE)
    return folder


def rewritten(path):
    """Write other bytes of the same length into the file, its time put back."""
    before = path.stat()
    path.write_bytes(path.read_bytes()[::-1])
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))


def replaced(path):
    """Put another file in its place, of the same length and time."""
    shutil.copy2(path, path.with_suffix(".new"))
    path.with_suffix(".new").replace(path)


def grown(path):
    with path.open("ab") as stream:
        stream.write(b"more")


@pytest.mark.parametrize("change", [rewritten, replaced, grown, os.unlink])
def test_a_changed_file_is_named(change, data):
    dataset = open_dataset(f"parquet:{data}")
    dataset.fingerprints("items.parquet", TABLE)
    dataset.refuse_changed()
    change(data / TABLE)
    with pytest.raises(UserError, match=rf"{TABLE}: changed while it was read"):
        dataset.refuse_changed()


def test_a_table_that_no_stage_identified_may_change(data):
    dataset = open_dataset(f"parquet:{data}")
    dataset.fingerprints("items.parquet")
    grown(data / TABLE)
    dataset.refuse_changed()


def test_nothing_is_published_of_data_that_changed(data, tmp_path, monkeypatch):
    """Between a stage's plan and its end somebody appends to the log."""
    make = job.Job.make

    def make_later(planned, work):
        replaced(data / TABLE)
        make(planned, work)

    monkeypatch.setattr(job.Job, "make", make_later)
    command = ["--data", f"parquet:{data}", "--out", str(tmp_path / "out")]
    with pytest.raises(UserError, match="changed while it was read"):
        prepare.main([*command, "--set=prepare.target_days=1"])
    assert not (tmp_path / "out").exists()
