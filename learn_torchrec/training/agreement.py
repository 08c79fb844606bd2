"""What ranks must agree on before they work: what they are given, where they write.

Ranks that read other data, or write where rank 0 does not look, would end well and
leave a wrong artefact.
"""

import contextlib
import hashlib
import time
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch.distributed as dist

from learn_torchrec.artifact import file_digest
from learn_torchrec.errors import UserError
from learn_torchrec.refusals import naming
from learn_torchrec.training.distributed import (
    broadcast_from_rank0,
    gather_objects,
    is_writer,
    raise_on_all_ranks,
    rank_name,
)

_PROBE_SECONDS = 15.0  # for a file of another host to appear
_SHOWN = 60  # characters of a value


def refuse_different_ranks(given: Mapping[str, object]) -> None:
    """Refuse ranks that were not given the same; every rank calls it.

    Args:
        given: by its name in the message, a setting or an input's fingerprint.

    Raises:
        UserError: on every rank, names the first difference and the rank.
    """
    first, *others = gather_objects({name: str(one) for name, one in given.items()})
    for rank, theirs in enumerate(others, start=1):
        for name in first | theirs:
            ours, other = (one.get(name, "nothing") for one in (first, theirs))
            if ours != other:
                raise UserError(
                    f"{name}: {ours[:_SHOWN]} on rank 0, but {other[:_SHOWN]} on rank "
                    f"{rank}; give all ranks the same data, options and versions"
                )


def refuse_unshared(directory: Path) -> None:
    """Refuse an output where ranks do not see each other's files; every rank calls it.

    Args:
        directory: that the output is made in.

    Raises:
        UserError: on every rank.
    """
    if dist.get_world_size() == 1:
        return
    token = broadcast_from_rank0(uuid.uuid4().hex)
    mine = _probe(directory, token, dist.get_rank())
    with contextlib.ExitStack() as stack:
        with raise_on_all_ranks(), naming(directory):
            directory.mkdir(parents=True, exist_ok=True)
            stack.callback(mine.unlink, missing_ok=True)  # also of half a file
            mine.write_text(token, encoding="utf-8")
        with raise_on_all_ranks():
            # Rank 0 publishes what all wrote; all write into what it makes.
            ranks = range(1, dist.get_world_size()) if is_writer() else [0]
            for rank in ranks:
                _await(_probe(directory, token, rank), rank)


def _probe(directory: Path, token: str, rank: int) -> Path:
    return directory / f".learn-torchrec-{token[:8]}-{rank}.probe"


def _await(probe: Path, rank: int) -> None:
    end = time.monotonic() + _PROBE_SECONDS
    while not probe.exists():
        if time.monotonic() > end:
            raise UserError(
                f"--out: {rank_name()} does not see in {probe.parent.absolute()} what "
                f"rank {rank} writes; put it on a file system that all ranks share, "
                "under one path"
            )
        time.sleep(0.05)


def holds_other_files(places: Iterable[Path]) -> bool:
    """Whether this rank's copy of some files is not the one that rank 0 sees.

    Every rank calls it. The same inodes, sizes and times are one copy on a shared file
    system, of which rank 0's word holds.
    """
    mine = [
        (str(path.relative_to(one)), *_identity(path))
        for one in places
        for path in (one, *sorted(one.rglob("*")))
        if path.exists()
    ]
    return bool(mine != broadcast_from_rank0(mine))


def part_of_shared(places: Iterable[Path]) -> tuple[int, int]:
    """Return this rank's place among those that see one copy of files, and how many.

    Every rank calls it. What these would do alike with the files, they can share.
    """
    others = gather_objects(holds_other_files(places))
    rank = dist.get_rank()
    if others[rank]:
        return 0, 1
    return others[:rank].count(False), others.count(False)


def digests_to_compare(files: Mapping[str, Path]) -> dict[str, str]:
    """Return what `refuse_different_ranks` compares of files; every rank calls it.

    Only if some rank has a copy of its own are contents read.
    """
    if not any(gather_objects(holds_other_files(files.values()))):
        return {}
    return {name: _digest(path) for name, path in files.items()}


def _digest(place: Path) -> str:
    """Return a digest of a file, or of the names and contents of a folder's files."""
    paths = [place, *sorted(place.rglob("*"))]
    parts = [
        (str(path.relative_to(place)), file_digest(path))
        for path in paths
        if path.is_file()
    ]
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def _identity(path: Path) -> tuple[int, int, int]:
    found = path.stat()
    return found.st_ino, found.st_size, found.st_mtime_ns
