"""What `test_agreement.py` calls on each rank."""

import errno
import os
import sys
from pathlib import Path

import torch.distributed as dist

from learn_torchrec import digests
from learn_torchrec.apps import export_vectors
from learn_torchrec.apps.common import job, options
from learn_torchrec.training import agreement, distributed


def compare(mine: dict[str, object]) -> None:
    with distributed.process_group():
        agreement.refuse_different_ranks(mine)


def probe(folder: str) -> None:
    agreement._PROBE_SECONDS = 1.0
    with distributed.process_group():
        agreement.refuse_unshared(Path(folder))


def probe_with_a_full_disk(folder: str) -> None:
    def refuse(path: Path, *_: object, **__: object) -> int:
        path.touch()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with distributed.process_group():
        if dist.get_rank() == 1:
            Path.write_text = refuse
        agreement.refuse_unshared(Path(folder))


def export_on_a_full_disk(arguments: list[str]) -> None:
    """Export vectors; rank 0's disk is full when it writes the index files."""

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    export_vectors.write_vector_indexes = refuse
    export_vectors.main(arguments)


def write(out: str, has_all: bool = True) -> None:
    distributed._VISIBLE_SECONDS = 1.0
    made = {"kind": "k", "config": {}, "inputs": {}}
    with (
        distributed.process_group(),
        distributed.write_artifact_on_all_ranks(Path(out), **made) as working,
    ):
        (working / distributed.rank_name()).write_text("a shard")
        if distributed.is_writer() and not has_all:
            forget("rank 1")


def lose_a_shard(out: str) -> None:
    write(out, has_all=False)


def forget(name: str) -> None:
    """Let this rank not see a file, as if it were on another host."""
    sizes = distributed._sizes
    distributed._sizes = lambda folder: {
        file: size for file, size in sizes(folder).items() if file != name
    }


def start_job(mine: dict[str, object]) -> None:
    parser = options.parser("try", "a job")
    options.add_output(parser, "it")
    settings = [f"--set={one}" for one in mine["set"]]
    args = parser.parse_args(["--out", mine["out"], *settings])
    planned = job.describe(args, "ranker", ("ranker",), {"log": mine["log"]})
    planned.make_on_all_ranks(lambda device: Path(mine["out"]).mkdir())


def verify_inputs(mine: dict[str, str]) -> None:
    """Start a job that reads an artefact; say the names of the files that it reads."""
    read = digests.file_digest

    def said(path: Path) -> str:
        sys.stderr.write(f"{path.name}\n")
        return read(path)

    digests.file_digest = said
    parser = options.parser("try", "a job")
    options.add_output(parser, "it")
    args = parser.parse_args(["--out", mine["out"]])
    content = {"content": (Path(mine["content"]), "content")}
    planned = job.describe(args, "ranker", ("ranker",), {}, content)
    planned.make_on_all_ranks(lambda device: None)
