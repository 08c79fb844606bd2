import errno
import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from learn_torchrec import locks
from learn_torchrec.errors import UserError


def hold(directory: Path) -> subprocess.Popen:
    """Hold the lock from another process until its input ends."""
    code = (
        "import sys; from pathlib import Path; "
        "from learn_torchrec.locks import locked\n"
        "with locked(Path(sys.argv[1])):\n"
        "    print('held', flush=True)\n"
        "    sys.stdin.read()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(directory)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "held\n"
    return process


def test_a_lock_names_its_holder_and_goes_with_it(tmp_path):
    process = hold(tmp_path / "out")
    with (
        pytest.raises(UserError, match=rf"another run.*\(process {process.pid}\)"),
        locks.locked(tmp_path / "out"),
    ):
        pass
    process.communicate("")
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_run_left_of_its_lock_holds_nothing(tmp_path):
    process = hold(tmp_path / "out")
    process.kill()
    process.communicate()
    lock = tmp_path / ".out.lock"
    assert lock.read_text() == f"{process.pid}\n"
    with locks.locked(tmp_path / "out"):
        assert lock.read_text() == f"{os.getpid()}\n"
    assert not lock.exists()


def test_a_lock_that_is_a_link_does_not_touch_its_target(tmp_path):
    target = tmp_path / "thesis.txt"
    target.write_text("years of work")
    lock = tmp_path / ".out.lock"
    for path in (target, tmp_path / "absent"):
        lock.symlink_to(path)
        with (
            pytest.raises(UserError, match=r"\.out\.lock: must be a plain file"),
            locks.locked(tmp_path / "out"),
        ):
            pass
        lock.unlink()
    assert target.read_text() == "years of work"
    assert not (tmp_path / "absent").exists()


@pytest.mark.parametrize("make_it", [Path.mkdir, os.mkfifo])
def test_a_lock_that_is_no_file_is_refused(make_it, tmp_path):
    make_it(tmp_path / ".out.lock")
    with (
        pytest.raises(UserError, match="must be a plain file"),
        locks.locked(tmp_path / "out"),
    ):
        pass


def test_a_file_system_without_locks_is_said(tmp_path, monkeypatch):
    def missing(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", missing)
    with (
        pytest.raises(UserError, match=r"cannot be locked \(No locks available\)"),
        locks.locked(tmp_path / "out"),
    ):
        pass
