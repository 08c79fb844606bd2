"""Ranks as real processes that start at once: forked from one that has torch loaded."""

import multiprocessing
import os
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

_PRELOADED = ["learn_torchrec.apps.common.job", "learn_torchrec.apps.common.options"]
_SECONDS = 100


def _rank(function: Callable[[Any], None], given: Any, env: dict[str, str], log: Path):
    from learn_torchrec.apps.common import program

    os.environ |= env
    with log.open("w") as stream:
        os.dup2(stream.fileno(), 2)
    sys.stderr = os.fdopen(2, "w", buffering=1)
    program.run(lambda argv: function(given), [])


@pytest.fixture
def run_ranks(tmp_path_factory) -> Iterator[Callable[..., list[tuple[int, str]]]]:
    """Return a function that calls another on ranks, each with what it was given.

    It returns the exit code and the errors of each rank.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    started = []

    def run(function: Callable[[Any], None], *given: Any) -> list[tuple[int, str]]:
        with socket.socket() as one:
            one.bind(("127.0.0.1", 0))
            port = str(one.getsockname()[1])
        job = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        job |= {"WORLD_SIZE": str(len(given)), "OMP_NUM_THREADS": "1"}
        folder = tmp_path_factory.mktemp("logs")
        for rank, argument in enumerate(given):
            env = job | {"RANK": str(rank)}
            arguments = function, argument, env, folder / str(rank)
            started.append(context.Process(target=_rank, args=arguments))
            started[-1].start()
        mine = started[-len(given) :]
        for process in mine:
            process.join(_SECONDS)
        logs = [(folder / str(rank)).read_text() for rank in range(len(given))]
        return [
            (process.exitcode, log) for process, log in zip(mine, logs, strict=True)
        ]

    yield run
    for process in started:
        process.kill()  # one may wait for hours for another
