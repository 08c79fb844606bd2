"""Damaged files of any adapter: read, or one line that names the folder."""

import gzip
import os
import re
import shutil
from pathlib import Path

import pytest
from adapter_files import GOOD
from hypothesis import given
from hypothesis import strategies as st
from more_examples import tried
from one_line import holds

from learn_torchrec.datasets import open_dataset

# What stands in place of a value, a file's bytes, or a file.
VALUES = st.sampled_from(
    [
        *("9" * 40, "-9223372036854775808", "1e999", "NaN", "null", "true", "1.5", ""),
        *("[]", "{}", '{"a": [[1]]}', '""', '"x"', '"\\u0000"', '"\\ud800"', "x"),
        *("253402300800", "2026-13-45", "\t", ",", "::", "|", '"', "\0", "\r", "\n"),
    ]
)
BYTES = st.binary(max_size=8) | st.sampled_from(
    [b"\xff\xfe", b"\xef\xbb\xbf", b"\x1f\x8b\x08", b"PAR1", b"[" * 100_000]
)


def replaced(draw, body: str) -> bytes:
    """Return a file with one of its names, numbers or quoted texts replaced."""
    parts = re.split(r'("[^"\n]*"|[\w.]+)', body)
    parts[draw(st.integers(0, len(parts) // 2 - 1)) * 2 + 1] = draw(VALUES)
    return "".join(parts).encode()


def spliced(draw, body: str) -> bytes:
    """Return a file with other bytes at one place, and perhaps nothing behind it."""
    whole, at = body.encode(), draw(st.integers(0, len(body)))
    return whole[:at] + draw(BYTES) + (whole[at:] if draw(st.booleans()) else b"")


def become_folder(path: Path) -> None:
    path.mkdir()
    (path / "README").write_text("x")


MADE = [
    *(os.mkfifo, Path.mkdir, become_folder, lambda path: path.symlink_to(path.name)),
    *(lambda path: path.symlink_to("/dev/zero"), lambda path: None),
    lambda path: path.with_name(f"{path.name}.gz").write_bytes(
        gzip.compress(b"{}")[:9]
    ),
]


def read_all(spec: str, strict: bool) -> None:
    """Read every table of a data set."""
    dataset = open_dataset(spec, strict)
    _ = dataset.items, dataset.interactions, dataset.times
    if dataset.has_impressions:
        _ = dataset.impressions, dataset.impression_times
        _ = open_dataset(spec, strict).impression_moments  # without the others


@pytest.mark.parametrize("adapter", GOOD)
@tried(40)
@given(st.data())
def test_any_adapter(capfd, tmp_path, adapter, data):
    folder = tmp_path / "data"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name, text in GOOD[adapter].items():
        (folder / name).write_text(text)
    name = data.draw(st.sampled_from(sorted(GOOD[adapter])))
    how = data.draw(st.sampled_from([replaced, spliced, None]))
    if how is None:
        (folder / name).unlink()
        data.draw(st.sampled_from(MADE))(folder / name)
    else:
        (folder / name).write_bytes(how(data.draw, GOOD[adapter][name]))
    spec, strict = f"{adapter.partition(' ')[0]}:{folder}", data.draw(st.booleans())
    said = holds(capfd, lambda _: read_all(spec, strict))
    assert str(folder) in said or "error: " not in said
