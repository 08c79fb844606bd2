"""Outputs that would destroy an input are refused, under whatever name they have."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from learn_torchrec import outputs
from learn_torchrec.errors import UserError


@pytest.fixture
def data(tmp_path):
    """A folder with a table that is a folder of parts, and one that is a file."""
    (tmp_path / "data" / "log").mkdir(parents=True)
    (tmp_path / "data" / "items").write_text("items")
    (tmp_path / "data" / "log" / "part-0").write_text("events")
    return tmp_path / "data"


def refuse(out, *inputs):
    outputs.refuse_inputs(out, [("--data", path) for path in inputs])


def link_to(target, name, make):
    make(target, name)
    return name


@pytest.mark.parametrize("make", [os.symlink, os.link])
def test_an_input_is_refused_under_every_name(data, tmp_path, make):
    other = link_to(data / "items", tmp_path / "other", make)
    for out in (data / "items", other, data / "log" / ".." / "items"):
        with pytest.raises(UserError, match=r"is an input \(--data .*items\)"):
            refuse(out, data / "items")


def test_what_lies_in_an_input_is_refused(data, tmp_path):
    (tmp_path / "alias").symlink_to(data)
    for out in (data / "log" / "new", tmp_path / "alias" / "log" / "a" / "new"):
        with pytest.raises(UserError, match="lies in an input"):
            refuse(out, data / "log")


def test_what_contains_an_input_is_refused(data, tmp_path):
    (tmp_path / "alias").symlink_to(tmp_path)
    for out in (data, tmp_path / "alias"):
        with pytest.raises(UserError, match="contains an input"):
            refuse(out, data / "items", data / "log")


def test_a_hard_link_to_a_part_of_an_input_is_refused(data, tmp_path):
    os.link(data / "log" / "part-0", tmp_path / "out")
    with pytest.raises(UserError, match="is part of an input"):
        refuse(tmp_path / "out", data / "log")


def test_what_is_beside_an_input_is_not_refused(data, tmp_path):
    for out in (data / "new", data / "log2", tmp_path / "out" / "deep"):
        refuse(out, data / "items", data / "log", tmp_path / "absent" / "deep")


def test_a_foreign_file_is_refused_and_an_empty_one_is_not(tmp_path):
    path = tmp_path / "out"
    outputs.refuse_foreign(path, lambda _: False, "a table")
    path.touch()
    outputs.refuse_foreign(path, lambda _: False, "a table")
    path.write_text("thesis")
    with pytest.raises(UserError, match="exists and is not a table; remove it"):
        outputs.refuse_foreign(path, lambda _: False, "a table")
    outputs.refuse_foreign(path, lambda _: True, "a table")


WRITE = """
import sys
from pathlib import Path
from learn_torchrec.outputs import replacing
for _ in range(200):
    with replacing(Path(sys.argv[1])) as working:
        for part in range(20):
            with working.open("a") as stream:
                stream.write(sys.argv[2] * 100)
"""


def test_two_writers_of_one_file_do_not_mix(tmp_path):
    path = tmp_path / "out.json"
    runs = [
        subprocess.Popen([sys.executable, "-c", WRITE, str(path), letter])
        for letter in "ab"
    ]
    assert [run.wait() for run in runs] == [0, 0]
    assert path.read_text() in ("a" * 2000, "b" * 2000)
    assert [one.name for one in tmp_path.iterdir()] == ["out.json"]


def fail_half_way(path):
    with outputs.replacing(path) as working:
        working.write_text("ha")
        raise RuntimeError("half way")


def test_a_failed_write_leaves_the_older_file(tmp_path):
    path = tmp_path / "out.json"
    path.write_text("old")
    with pytest.raises(RuntimeError, match="half way"):
        fail_half_way(path)
    assert path.read_text() == "old"
    assert [one.name for one in tmp_path.iterdir()] == ["out.json"]


def unremovable(self, missing_ok=False):
    raise OSError(errno.EIO, "Input/output error", str(self))


def test_what_cannot_be_removed_hides_no_other_end(tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "unlink", unremovable)
    out = tmp_path / "out"
    with outputs.replacing(out) as working:
        working.write_text("done")
    assert out.read_text() == "done"
    with pytest.raises(FileNotFoundError), outputs.replacing(out):
        (tmp_path / "absent").read_text()
