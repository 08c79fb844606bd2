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
        ({"LEARN_TORCHREC_JOIN_SECONDS": "0"}, "JOIN_SECONDS=0: must be from 1 to "),
        ({"LEARN_TORCHREC_JOIN_SECONDS": "soon"}, "=soon: must be a whole number; "),
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
from learn_torchrec.apps.common import program
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
    assert "; name rank 0's host and a free port there, and start" in errors[0]
    assert "Traceback" not in done.stderr


def free_port() -> str:
    with socket.socket() as one:
        one.bind(("", 0))
        return str(one.getsockname()[1])


@pytest.mark.parametrize(
    ("rank", "address", "reason"),
    [
        ("0", "localhost", "1/2 clients joined"),
        ("1", "localhost", "MASTER_ADDR=localhost"),  # nobody listens there
        ("1", "no-such-host.invalid", "MASTER_ADDR=no-such-host.invalid"),
    ],
)
def test_a_rank_that_nobody_joins_ends_in_one_line(rank, address, reason):
    place = {"MASTER_ADDR": address, "MASTER_PORT": free_port()}
    join_soon = {"LEARN_TORCHREC_JOIN_SECONDS": "3"}
    done = join(RANK=rank, WORLD_SIZE="2", **place, **join_soon)
    assert done.returncode == 2, done.stderr
    (error,) = [x for x in done.stderr.splitlines() if x.startswith("error: ")]
    assert reason in error
    assert "within 3 seconds (or set LEARN_TORCHREC_JOIN_SECONDS)" in error
    assert "Traceback" not in done.stderr


def together(*ranks: dict[str, str]) -> list[str]:
    """Start ranks of one job; return the error of each, which ends in one line."""
    job = {"MASTER_ADDR": "localhost", "MASTER_PORT": free_port(), "WORLD_SIZE": "2"}
    job |= {"LEARN_TORCHREC_JOIN_SECONDS": "8"}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", JOIN],
            env=os.environ | job | one,
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
        )
        for one in ranks
    ]
    errors = []
    for process in started:
        _, text = process.communicate(timeout=100)
        assert process.returncode == 2, text
        assert "Traceback" not in text
        errors += [line for line in text.splitlines() if line.startswith("error: ")]
    assert len(errors) == len(ranks)
    return errors


def test_a_number_that_two_ranks_have_is_refused():
    first, *others = together({"RANK": "0"}, {"RANK": "0"})
    assert all("MASTER_PORT" in one or "RANK=0" in one for one in (first, *others))


def test_ranks_that_were_given_other_numbers_of_ranks_end():
    errors = together({"RANK": "0"}, {"RANK": "1", "WORLD_SIZE": "3"})
    assert any("WORLD_SIZE=2 on rank 0, but 3 on rank 1" in one for one in errors)
