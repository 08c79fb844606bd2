"""System errors become one line that names the file, from whichever library."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest
from torch.distributed.checkpoint.api import CheckpointException

from learn_torchrec.apps.benchmarks import errno_faults
from learn_torchrec.errors import UserError
from learn_torchrec.refusals import naming, one_line

FULL = os.strerror(errno.ENOSPC)
FREE = "free space there, or choose another place"


class LibraryError(Exception):
    """As SafetensorError and DuckDB's errors: text alone, of no known base."""


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(errno.ENOSPC, FULL, "/a/b"), f"/a/b: {FULL}; {FREE}"),
        (OSError(errno.ENOSPC, FULL, b"/a/b"), f"/a/b: {FULL}; {FREE}"),
        (OSError(errno.ENOSPC, FULL), f"{FULL}; {FREE}"),
        (
            OSError(errno.EXDEV, os.strerror(errno.EXDEV), "/t", None, "/a"),
            "/a: Invalid cross-device link; choose another place",
        ),
        (
            pa.ArrowIOError(
                "[Errno 28] Failed to open local file '/a/b.parquet'. Detail: [errno "
                "28] No space left on device"
            ),
            f"/a/b.parquet: {FULL}; {FREE}",
        ),
        (
            LibraryError(
                "Error while serializing: I/O error: No space left on device (os error "
                '28) at path "/a/.tmpa0"'
            ),
            f"/a/.tmpa0: {FULL}; {FREE}",
        ),
        (
            LibraryError(
                'IO Error: Async write failed: {"exception_message":"Could not write '
                'file \\"/a/x\\": No space left on device","errno":"28"}'
            ),
            f"/a/x: {FULL}; {FREE}",
        ),
        (
            RuntimeError(
                "[enforce fail at inline_container.cc:747] . open file failed with "
                "strerror: No space left on device"
            ),
            f"{FULL} ([enforce fail at inline_container.cc:747] . open file failed "
            f"with strerror: No space left on device); {FREE}",
        ),
        (
            RuntimeError(
                "Error in faiss::FileIOWriter::FileIOWriter(const char*) at io.cpp:103:"
                " Error: 'f' failed: could not open x for writing: Interrupted system "
                "call"
            ),
            "Interrupted system call (Error in faiss::FileIOWriter::FileIOWriter(const "
            "char*) at io.cpp:103: Error: 'f' failed: could not open x for writing: "
            "Interrupted system call); run it again",
        ),
        (
            CheckpointException(
                "x",
                {3: (OSError(errno.ENOSPC, FULL, "/a/b"), None)},
            ),
            f"/a/b: {FULL}; {FREE}",
        ),
        (UserError("--x: wrong", "one of a list"), "--x: wrong\none of a list"),
    ],
)
def test_each_librarys_error_is_the_same_line(error, line):
    assert one_line(error) == line


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        MemoryError("Unable to allocate 8 EiB for an array"),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:122] err == 0. DefaultCPUAllocator: can't "
            "allocate memory: you tried to allocate 4000000000000 bytes."
        ),
        RuntimeError("Storage size calculation overflowed with sizes=[9, 9]"),
    ],
)
def test_no_memory_is_a_refusal(error):
    line = one_line(error)
    assert line is not None
    assert line.startswith("Cannot allocate memory (")
    assert line.endswith("or a machine with more memory")


@pytest.mark.parametrize(
    "bug",
    [
        OSError(errno.EBADF, os.strerror(errno.EBADF)),
        OSError("of a library"),
        KeyError("No space left on device"),
        ValueError("a bug"),
    ],
    ids=repr,
)
def test_a_bug_is_none(bug):
    assert one_line(bug) is None


def test_the_innermost_block_names_what_an_error_does_not():
    with pytest.raises(OSError) as caught, naming(Path("run")), naming(Path("run/log")):
        raise OSError(errno.EIO, os.strerror(errno.EIO))
    line = one_line(caught.value)
    assert line is not None
    assert line.startswith("run/log: Input/output error; ")


def test_a_bare_name_gives_way_to_the_folder_that_a_block_names():
    with pytest.raises(OSError) as caught, naming(Path("run/x")):
        raise OSError(
            errno.EIO, os.strerror(errno.EIO), "ids.arrow"
        )  # as shutil.rmtree
    assert one_line(caught.value) == (
        "run/x: Input/output error; check the disk or the network, and run it again"
    )


def test_an_error_raised_from_a_refusal_is_the_refusal():
    error = RuntimeError("in a worker")
    error.__cause__ = OSError(errno.EROFS, os.strerror(errno.EROFS), "/x")
    assert one_line(error) == "/x: Read-only file system; choose another place"


def test_every_errno_of_a_full_or_broken_disk_has_a_fix():
    names = "ENOSPC EDQUOT EROFS EIO EINTR ENAMETOOLONG EMFILE ENFILE ENOMEM ENOENT"
    for name in f"{names} EACCES EPERM ELOOP EBUSY ESTALE EFBIG ENOLCK".split():
        number = getattr(errno, name)
        line = one_line(OSError(number, os.strerror(number), "/x"))
        assert line is not None, name
        assert line.startswith(f"/x: {os.strerror(number)}; "), name


# --- real errors of the libraries that write ---------------------------------------

WRITE_EACH = """
import ctypes, sys
from pathlib import Path
import duckdb, numpy as np, pyarrow as pa, pyarrow.parquet as pq, torch
from safetensors.torch import save_file
from learn_torchrec.refusals import naming, one_line
from learn_torchrec.training.tensors import save_tensors
import torch.distributed as dist

shim, folder = ctypes.CDLL(sys.argv[1]), Path(sys.argv[2])
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
numbers = np.arange(100_000.0)
writers = {
    "parquet": lambda path: pq.write_table(pa.table({"a": numbers}), path),
    "numpy": lambda path: np.save(path.with_suffix(".npy"), numbers),
    "zip": lambda path: np.savez(path.with_suffix(".npz"), a=numbers),
    "safetensors": lambda path: save_file({"a": torch.zeros(9999)}, path),
    "torch": lambda path: torch.save(torch.zeros(9999), path),
    "checkpoint": lambda path: save_tensors({"a": torch.zeros(9)}, path),
    "duckdb": lambda path: duckdb.execute(f"copy (select 1) to '{path}'"),
    "text": lambda path: path.write_text("x"),
}
for name, write in writers.items():
    failures = 0
    for at in range(1, 9):
        number = int(sys.argv[3])
        shim.errno_faults_arm(str(folder).encode(), ctypes.c_long(at), number, 0, -1)
        try:
            with naming(folder / name):
                write(folder / f"{name}-{at}")
        except BaseException as error:
            line = one_line(error)
            assert line and str(folder) in line and "\\n" not in line, repr(error)
            failures += 1
    print(name, failures)
"""


@pytest.fixture(scope="module")
def shim(tmp_path_factory) -> Path:
    return errno_faults.build_shim(tmp_path_factory.mktemp("shim"))


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO], ids=errno.errorcode.get)
def test_every_writing_library_is_understood(number, shim, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", WRITE_EACH, shim, tmp_path, str(number)],
        env=os.environ | {"LD_PRELOAD": str(shim), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    failures = dict(line.split() for line in done.stdout.splitlines())
    assert set(failures) >= {"parquet", "safetensors", "checkpoint", "duckdb"}
    assert all(int(count) >= 2 for count in failures.values()), failures


def test_a_page_of_text_hides_neither_the_file_nor_the_fix():
    line = str(UserError(f"a.csv: column 'x' is missing; it has {'y' * 9000}; add it"))
    assert line.startswith("a.csv: column 'x' is missing; it has yyy")
    assert line.endswith("yyy; add it")
    assert len(line) < 1100
