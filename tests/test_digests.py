"""Digests that are kept: read again is what is small, has changed, or may have."""

import hashlib
import os
import shutil
import time
from pathlib import Path

import pytest

from learn_torchrec import artifact, digests, publish
from learn_torchrec.apps import verify
from learn_torchrec.apps.common import options
from learn_torchrec.datasets.loading.tables import files_fingerprint
from learn_torchrec.errors import UserError


@pytest.fixture
def reads(tmp_path, monkeypatch):
    """The names of files that were read; a file is large, and settles at once."""
    monkeypatch.setenv(digests.PLACE, str(tmp_path / "cache"))
    monkeypatch.setenv(digests.VERIFY, "")
    monkeypatch.setattr(digests, "_READ_ALWAYS", 0)
    monkeypatch.setattr(digests, "_SETTLED", 0)
    names, read = [], digests.file_digest

    def counted(path):
        names.append(path.name)
        return read(path)

    monkeypatch.setattr(digests, "file_digest", counted)
    return names


@pytest.fixture
def files(tmp_path):
    paths = [tmp_path / name for name in ("a", "b", "c")]
    for path in paths:
        path.write_bytes(path.name.encode() * 1000)
    time.sleep(0.02)  # two ticks of the file system's clock
    return paths


def of_bytes(paths):
    return [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]


def test_a_file_is_read_once(files, reads):
    for _ in range(3):
        assert digests.digests(files) == of_bytes(files)
    assert sorted(reads) == ["a", "b", "c"]


def flip_a_bit(path):
    """Change the content in place; put back all that a program can."""
    before = path.stat()
    with path.open("r+b") as stream:
        stream.seek(500)
        stream.write(b"!")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def exchange(path):
    other = path.with_suffix(".new")
    shutil.copy2(path, other)
    flip_a_bit(other)
    other.replace(path)


def shorten(path):
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize("change", [flip_a_bit, exchange, shorten])
def test_a_changed_file_is_read_again(change, files, reads):
    digests.digests(files)
    change(files[1])
    time.sleep(0.02)
    reads.clear()
    assert digests.digests(files) == of_bytes(files)
    assert digests.digests(files) == of_bytes(files)
    assert reads == ["b"]


def test_small_files_are_always_read(files, reads, monkeypatch):
    monkeypatch.setattr(digests, "_READ_ALWAYS", 3000)
    for _ in range(2):
        assert digests.digests(files) == of_bytes(files)
    assert reads == ["a", "b", "c"] * 2
    assert not Path(os.environ[digests.PLACE]).exists()


def test_what_has_just_changed_is_not_recorded(files, reads, monkeypatch):
    monkeypatch.setattr(digests, "_SETTLED", 3_600_000_000_000)
    for _ in range(2):
        digests.digests(files)
    assert sorted(reads) == ["a", "a", "b", "b", "c", "c"]


def test_what_changes_while_it_is_read_is_not_recorded(files, reads, monkeypatch):
    counted = digests.file_digest

    def meanwhile(path):
        digest = counted(path)
        flip_a_bit(path)
        return digest

    monkeypatch.setattr(digests, "file_digest", meanwhile)
    digests.digests(files)
    monkeypatch.setattr(digests, "file_digest", counted)
    assert digests.digests(files) == of_bytes(files)


def records():
    place = Path(os.environ[digests.PLACE])
    return [path for path in place.rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "0" * 64 + text[64:],  # another digest
        lambda text: text[:70],
        lambda text: "",
        lambda text: "\N{SNOWMAN}",
    ],
)
def test_a_damaged_record_is_none(damage, files, reads):
    digests.digests(files)
    for path in records():
        path.write_text(damage(path.read_text()), encoding="utf-8")
    assert digests.digests(files) == of_bytes(files)
    assert sorted(reads) == ["a", "a", "b", "b", "c", "c"]


def test_the_record_of_another_file_is_none(files, reads):
    digests.digests(files)
    first, second, third = records()
    first.write_text(second.read_text())
    second.write_text(third.read_text())
    assert digests.digests(files) == of_bytes(files)


def test_where_nothing_can_be_recorded_all_is_read(files, reads, monkeypatch):
    monkeypatch.setenv(digests.PLACE, "/proc/none")
    for _ in range(2):
        assert digests.digests(files) == of_bytes(files)
    assert sorted(reads) == ["a", "a", "b", "b", "c", "c"]


def test_ranks_that_start_together_share_the_files(tmp_path, reads):
    """Each has its own order, and what one has read the others find recorded."""
    paths = [tmp_path / f"{number:02}" for number in range(40)]
    for path in paths:
        path.write_text(path.name)
    time.sleep(0.02)
    orders = []
    for _ in range(3):
        digests.digests(paths[:20])
        orders.append(list(reads))
        shutil.rmtree(os.environ[digests.PLACE])
        reads.clear()
    assert orders[0] != orders[1] != orders[2]
    digests.digests(paths[:30])
    reads.clear()
    digests.digests(paths)
    assert sorted(reads) == [str(number) for number in range(30, 40)]


# --- Artefacts and tables -----------------------------------------------------------


def make(directory):
    with publish.write_artifact(directory, kind="content", config={}, inputs={}) as out:
        for name in ("a", "b"):
            (out / name).write_bytes(name.encode() * 1000)
    return directory


def test_an_artefact_is_recorded_when_it_is_written(tmp_path, reads):
    made = make(tmp_path / "out")
    time.sleep(0.02)
    reads.clear()
    artifact.verify(made)
    assert reads == []
    flip_a_bit(made / "b")
    with pytest.raises(UserError, match="b: damaged"):
        artifact.verify(made)
    assert reads == ["b"]


def test_a_copy_is_read(tmp_path, reads):
    made = make(tmp_path / "out")
    shutil.copytree(made, tmp_path / "copy")
    reads.clear()
    artifact.verify(tmp_path / "copy")
    assert sorted(reads) == ["a", "b"]


def test_a_file_that_is_too_short_needs_no_reading(tmp_path, reads):
    made = make(tmp_path / "out")
    shorten(made / "b")
    reads.clear()
    assert artifact.damaged_file(made, artifact.read_manifest(made)) == "b"
    assert reads == []


def rot(path):
    """Flip a bit as a disk does: no time changes, so that the record still holds."""
    digest = digests.digests([path])[0]
    path.write_bytes(b"!" + path.read_bytes()[1:])
    digests._keep(path, digests._State.of(path), digest)


def test_rot_is_found_by_reading_all(tmp_path, reads, capsys):
    for name in ("one", "two"):
        make(tmp_path / "run" / name)
    rot(tmp_path / "run" / "one" / "b")
    artifact.verify(tmp_path / "run" / "one")
    with pytest.raises(UserError, match=r"one/b: damaged .* make it again$"):
        verify.main([str(tmp_path / "run")])
    assert "two: content, 2 files, 2,000 bytes, as written" in capsys.readouterr().out


def test_linked_artefacts_are_read_once(tmp_path, capsys):
    made, run = make(tmp_path / "elsewhere"), tmp_path / "run"
    run.mkdir()
    for name, place in (("content", made), ("again", made), ("loop", run)):
        (run / name).symlink_to(place)
    verify.main([str(run)])
    assert capsys.readouterr().out.count("as written") == 1
    rot(made / "b")
    with pytest.raises(UserError, match="b: damaged"):
        verify.main([str(run)])


def test_an_option_reads_all(tmp_path, reads):
    made = make(tmp_path / "out")
    rot(made / "a")
    options.parser("prepare", "").parse_args(["--verify"])
    with pytest.raises(UserError, match="a: damaged"):
        artifact.verify(made)


def test_a_folder_without_artefacts_is_refused(tmp_path):
    with pytest.raises(UserError, match="no artefact here"):
        verify.main([str(tmp_path)])


def test_a_table_has_one_fingerprint_read_or_recorded(files, reads, tmp_path):
    first = files_fingerprint([files[0], files[1]])
    assert files_fingerprint([files[0], files[1]]) == first
    assert sorted(reads) == ["a", "b"]
    flip_a_bit(files[1])
    assert files_fingerprint([files[0], files[1]]) != first
