"""The ranks' variables are checked before anything waits for other ranks."""

import os
import socket
import subprocess
import sys

import pytest

from learn_torchrec.errors import UserError
from learn_torchrec.training.environment import RankVariables, read_ranks

GOOD = {
    **{"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"},
    **{"MASTER_ADDR": "localhost", "MASTER_PORT": "29500"},
}


def test_torchruns_variables_are_read():
    assert read_ranks(GOOD) == RankVariables(
        rank=1,
        world_size=4,
        local_rank=1,
        local_world_size=2,
        address="localhost",
        port=29500,
    )


@pytest.mark.parametrize("environment", [{}, {"WORLD_SIZE": "1"}, {"LOCAL_RANK": "x"}])
def test_a_process_without_rank_is_on_its_own(environment):
    assert read_ranks(environment) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"WORLD_SIZE": None}, "WORLD_SIZE: is not set, but RANK is; start ranks with"),
        ({"RANK": None}, "RANK: is not set, but WORLD_SIZE is; start ranks with torch"),
        (
            {"RANK": "abc"},
            "RANK=abc: must be a whole number; start ranks with torchrun",
        ),
        ({"RANK": ""}, "RANK=: must be a whole number; "),
        ({"RANK": "1.0"}, "RANK=1.0: must be a whole number; "),
        ({"RANK": "٣"}, "must be a whole number; "),
        ({"RANK": "9" * 5000}, ": must be a whole number; "),
        ({"RANK": "-1"}, "RANK=-1: must be a whole number; "),
        ({"RANK": "5"}, "RANK=5: must be from 0 to 3; "),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE=0: must be at least 1; "),
        ({"LOCAL_RANK": "2"}, "LOCAL_RANK=2: must be from 0 to 1; "),
        ({"LOCAL_RANK": "x"}, "LOCAL_RANK=x: must be a whole number; "),
        ({"LOCAL_WORLD_SIZE": "5"}, "LOCAL_WORLD_SIZE=5: must be from 1 to 4; "),
        ({"MASTER_ADDR": None}, "MASTER_ADDR: is not set; "),
        ({"MASTER_ADDR": " "}, "MASTER_ADDR: is not set; "),
        ({"MASTER_PORT": None}, "MASTER_PORT: is not set, but RANK is; "),
        ({"MASTER_PORT": "x"}, "MASTER_PORT=x: must be a whole number; "),
        ({"MASTER_PORT": "0"}, "MASTER_PORT=0: must be from 1 to 65535; "),
        ({"MASTER_PORT": "65536"}, "MASTER_PORT=65536: must be from 1 to 65535; "),
    ],
)
def test_malformed_variables_are_refused(change, message):
    environment = {k: v for k, v in (GOOD | change).items() if v is not None}
    with pytest.raises(UserError) as caught:
        read_ranks(environment)
    assert message in str(caught.value)


JOIN = """
from learn_torchrec.apps import program
from learn_torchrec.training.distributed import process_group
def main(argv):
    with process_group():
        print("joined")
program.run(main, [])
"""


def join(**variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", JOIN],
        env=os.environ | variables,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def test_a_rank_out_of_range_ends_at_once():
    done = join(RANK="5", WORLD_SIZE="2", MASTER_ADDR="localhost", MASTER_PORT="29500")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith(
        "error: RANK=5: must be from 0 to 1;"
    )
    assert "Traceback" not in done.stderr


def test_a_port_in_use_is_one_line():
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        done = join(RANK="0", WORLD_SIZE="2", MASTER_ADDR="localhost", MASTER_PORT=port)
    assert done.returncode == 2, done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert errors[0].startswith(f"error: MASTER_ADDR=localhost MASTER_PORT={port}: ")
    assert errors[0].endswith("; name rank 0's host and a free port there")
    assert "Traceback" not in done.stderr
