"""Runs commands in forks of a process that has imported everything.

A start then costs no import, which is nearly all of a small stage's time.
"""

import ctypes
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any, NoReturn, Self

from ..main import main as learn_torchrec
from ..stages import STAGES

LIMIT = 300.0  # seconds of one command
_START = f"import sys; from {__name__} import serve; serve(sys.argv[1])"


class Preloaded:
    """A process with all stages imported, and a library preloaded.

    Args:
        library: of `errno_faults.build_shim`.
    """

    def __init__(self, library: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _START, str(library)],
            env=os.environ | {"LD_PRELOAD": str(library), "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(
        self,
        arguments: list[str],
        output: Path,
        calls: Path,
        fault: tuple[str, int, int, bool] = ("/", 0, 0, False),
        ranks: int = 1,
        hit: int = 0,
    ) -> int:
        """Run `learn-torchrec ARGUMENTS` in a fork; return its exit code.

        Args:
            arguments: of the command line.
            output: file for what it prints and logs; see `of_rank`.
            calls: file for the calls that write; one that fails starts with a `!`.
            fault: folder whose calls are counted; number of the call that fails, 0 for
                none; its error; whether all later ones fail, too.
            ranks: forks that share the work; the largest exit code is returned.
            hit: the rank whose call fails.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        order = [ranks, hit, arguments, str(output), str(calls), fault]
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()  # its input ends, and so does it


def serve(library: str) -> None:
    """Fork for each order on standard input; answer with the exit code."""
    _import_all()
    for line in sys.stdin:
        ranks, hit, *order = json.loads(line)
        port, children = _free_port(), []
        for rank in range(ranks):
            children.append(os.fork())
            if not children[-1]:
                if ranks > 1:
                    _join(rank, ranks, port)
                _obey(library, rank, rank == hit, *order)
        codes = [os.waitstatus_to_exitcode(os.waitpid(c, 0)[1]) for c in children]
        print(max(codes, key=abs), flush=True)


def of_rank(file: Path, rank: int) -> Path:
    """Return the file of a rank."""
    return file.with_name(f"{file.name}{rank or ''}")


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def _join(rank: int, ranks: int, port: int) -> None:
    """Let this process be a rank, as torchrun does."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    os.environ |= {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1"}
    os.environ["MASTER_PORT"] = str(port)


def _import_all() -> None:
    modules = ["duckdb", "pyarrow.parquet", "safetensors.torch", "torchrec"]
    modules += ["torch.distributed.checkpoint", "torch.utils.tensorboard"]
    modules += ["transformers.models.llama.modeling_llama"]
    for name in modules:
        importlib.import_module(name)
    for stage in STAGES.values():
        importlib.import_module(stage.module)


def _obey(
    library: str,
    rank: int,
    is_hit: bool,
    arguments: list[str],
    output: str,
    calls: str,
    fault: list[Any],
) -> NoReturn:
    signal.alarm(round(LIMIT))  # a hung command ends with -SIGALRM
    new = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    os.dup2(os.open(of_rank(Path(output), rank), new), 1)
    os.dup2(1, 2)
    log = os.open(of_rank(Path(calls), rank), new)
    folder, at, error, lasts = fault
    at *= is_hit
    ctypes.CDLL(library).errno_faults_arm(
        os.fsencode(folder), ctypes.c_long(at), error, int(lasts), log
    )
    code: Any = 1
    try:
        learn_torchrec(arguments)
        code = 0
    except SystemExit as ended:
        code = ended.code
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 1)
