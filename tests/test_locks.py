import errno
import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from learn_torchrec import locks
from learn_torchrec.errors import UserError
from learn_torchrec.refusals import one_line

# A file system without flock, but for the folder of temporary files.
WITHOUT_FLOCK = """
import errno, fcntl, os, tempfile
flock = fcntl.flock
def refuse(stream, how):
    name = os.readlink(f"/proc/self/fd/{stream.fileno()}")
    if not os.path.basename(name).startswith("learn-torchrec-"):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    flock(stream, how)
fcntl.flock = refuse
"""
ON_ANOTHER_HOST = """
import socket
socket.gethostname = lambda: "elsewhere"
os.getuid = lambda: 12345  # its temporary folder is not ours
"""


def hold(directory: Path, before: str = "") -> subprocess.Popen:
    """Hold the lock from another process until its input ends."""
    code = before + (
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
        pytest.raises(UserError, match=r"out: cannot be locked, neither there nor in"),
        locks.locked(tmp_path / "out"),
    ):
        pass


@pytest.fixture
def no_flock(monkeypatch):
    """Let this process see a file system without flock, as in `WITHOUT_FLOCK`."""
    monkeypatch.setattr(fcntl, "flock", fcntl.flock)  # to be put back
    exec(WITHOUT_FLOCK, {})


def test_without_flock_a_run_on_this_host_is_seen(tmp_path, no_flock):
    process = hold(tmp_path / "out", WITHOUT_FLOCK)
    with (
        pytest.raises(UserError, match=rf"another run.*\(process {process.pid}\)"),
        locks.locked(tmp_path / "out"),
    ):
        pass
    process.communicate("")
    assert list(tmp_path.iterdir()) == []


def test_without_flock_a_killed_run_of_this_host_holds_nothing(tmp_path, no_flock):
    process = hold(tmp_path / "out", WITHOUT_FLOCK)
    process.kill()
    process.communicate()
    assert [path.name for path in tmp_path.iterdir()] == [".out.claim"]
    with locks.locked(tmp_path / "out"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_without_flock_a_run_on_another_host_is_seen(tmp_path, no_flock):
    process = hold(tmp_path / "out", WITHOUT_FLOCK + ON_ANOTHER_HOST)
    with (
        pytest.raises(UserError, match=r"user 12345 on elsewhere.*remove .*out\.claim"),
        locks.locked(tmp_path / "out"),
    ):
        pass
    process.communicate("")
    with locks.locked(tmp_path / "out"):
        pass


def test_a_symbolic_link_is_locked_where_it_leads(tmp_path):
    (tmp_path / "link").symlink_to("out")
    process = hold(tmp_path / "out")
    with (
        pytest.raises(UserError, match="another run"),
        locks.locked(tmp_path / "link"),
    ):
        pass
    process.communicate("")


def test_a_dot_is_locked_under_the_name_of_the_folder(tmp_path, monkeypatch):
    (tmp_path / "out" / "inner").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "out")
    process = hold(tmp_path / "out")
    for here in (".", "../out/.", "inner/.."):
        with (
            pytest.raises(UserError, match="another run"),
            locks.locked(Path(here)),
        ):
            pass
    process.communicate("")


@pytest.mark.parametrize("call", ["flock", "write"])
def test_a_lock_that_the_disk_refuses_is_named(tmp_path, monkeypatch, call):
    def refused(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    place = (fcntl, "flock") if call == "flock" else (os, "getpid")
    monkeypatch.setattr(*place, refused)
    with (
        pytest.raises(OSError, match="Input/output") as caught,
        locks.locked(tmp_path / "out"),
    ):
        pass
    assert one_line(caught.value).startswith(f"{tmp_path}/.out.lock: Input/output")
