"""The ranks' environment variables, checked before anything waits for other ranks.

torchrun sets them. Whoever sets them by hand, or inherits some from a cluster, gets one
line instead of a wait of hours; `LEARN_TORCHREC_JOIN_SECONDS` is how long such a rank
waits for the others.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass

from learn_torchrec.errors import UserError

_FIX = "start ranks with torchrun, or unset RANK and WORLD_SIZE for a single one"
_PORTS = 65_535
JOIN = "LEARN_TORCHREC_JOIN_SECONDS"
_JOIN_SECONDS, _MOST_SECONDS = 600, 86_400


@dataclass(frozen=True, kw_only=True)
class RankVariables:
    """This rank's place in the job, as torchrun describes it.

    Attributes:
        rank: of the job, from 0.
        world_size: number of ranks.
        local_rank: on this host, from 0.
        local_world_size: number of ranks on this host.
        address: of rank 0's host.
        port: of the store there.
        join_seconds: to wait for the other ranks to start.
    """

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    address: str
    port: int
    join_seconds: int = _JOIN_SECONDS


def read_ranks(environment: Mapping[str, str] = os.environ) -> RankVariables | None:
    """Return the rank variables; None for a process on its own.

    Raises:
        UserError: names a variable that is missing, no number, or out of range.
    """
    if "RANK" not in environment:
        if "WORLD_SIZE" in environment and environment["WORLD_SIZE"].strip() != "1":
            raise UserError(f"RANK: is not set, but WORLD_SIZE is; {_FIX}")
        return None
    world_size = _number(environment, "WORLD_SIZE", 1, None)
    rank = _number(environment, "RANK", 0, world_size - 1)
    local_size = _number(environment, "LOCAL_WORLD_SIZE", 1, world_size, world_size)
    address = environment.get("MASTER_ADDR", "").strip()
    if not address:
        raise UserError(f"MASTER_ADDR: is not set; {_FIX}")
    return RankVariables(
        rank=rank,
        world_size=world_size,
        local_rank=_number(environment, "LOCAL_RANK", 0, local_size - 1, 0),
        local_world_size=local_size,
        address=address,
        port=_number(environment, "MASTER_PORT", 1, _PORTS),
        join_seconds=_number(environment, JOIN, 1, _MOST_SECONDS, _JOIN_SECONDS),
    )


def _number(
    environment: Mapping[str, str],
    name: str,
    least: int,
    most: int | None,
    default: int | None = None,
) -> int:
    text = environment.get(name)
    if text is None:
        if default is None:
            raise UserError(f"{name}: is not set, but RANK is; {_FIX}")
        return default
    digits = text.strip()
    if not (digits.isascii() and digits.isdigit() and len(digits) < 10):
        raise UserError(f"{name}={text}: must be a whole number; {_FIX}")
    number = int(digits)
    if number < least or (most is not None and number > most):
        bound = f"at least {least}" if most is None else f"from {least} to {most}"
        raise UserError(f"{name}={text}: must be {bound}; {_FIX}")
    return number
