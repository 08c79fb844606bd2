"""The state of an optimizer beside a model, for a training that goes on from it.

Without it the first steps of a warm start are those of a fresh optimizer: Adagrad has
no second moments of the tables' rows, Adam none of the dense weights, and both move
every weight that they touch by about the learning rate.

A state is named `PARAMETER/STATE`, such as `ranker.over_arch.model.1.bias/exp_avg`;
those of tables (`momentum1`) are sharded as the tables are.
"""

import logging
from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from torch import Tensor
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizer

from learn_torchrec.training.sharding import full_tensors, table_of
from learn_torchrec.training.tensors import load_renamed_rows, read_index, save_tensors

logger = logging.getLogger(__name__)

OPTIMIZER_DIRECTORY = "optimizer"  # of a ranker artefact
_SEPARATOR = "/"


@torch.no_grad()
def create_state(optimizer: CombinedOptimizer | KeyedOptimizer) -> None:
    """Create the state that an optimizer otherwise creates at its first step: zeros.

    The weights stay as they are.
    """
    groups = [*optimizer.param_groups]
    rates = [group["lr"] for group in groups]
    for group in groups:
        group["lr"] = 0.0  # TorchRec takes a step, which would also decay weights
    if isinstance(optimizer, CombinedOptimizer):
        for _, part in optimizer.optimizers:
            part.init_state()
    else:
        optimizer.init_state()
    for group, rate in zip(groups, rates, strict=True):
        group["lr"] = rate
    optimizer.zero_grad()
    for value in named_state(optimizer).values():
        for part in _parts(value):
            part.zero_()


def named_state(optimizer: CombinedOptimizer | KeyedOptimizer) -> dict[str, Tensor]:
    """Return the tensors of an optimizer's state by name; changing them changes it."""
    found = {}
    for parameter, state in optimizer.state_dict()["state"].items():
        for key, value in state.items():
            found[_name(parameter, key)] = value
    return found


def full_state(optimizer: CombinedOptimizer | KeyedOptimizer) -> dict[str, Tensor]:
    """Copy an optimizer's state to the CPU, unsharded; every rank takes part.

    On ranks other than 0 the states of sharded tables are empty.
    """
    return full_tensors(named_state(optimizer))


def parameter_of(state: str) -> str:
    """Return the parameter of a state's name."""
    return state.rpartition(_SEPARATOR)[0]


def save_optimizer(
    optimizer: CombinedOptimizer | KeyedOptimizer, directory: Path
) -> None:
    """Write the state into an artefact's working directory; every rank takes part."""
    save_tensors(named_state(optimizer), directory / OPTIMIZER_DIRECTORY)


@torch.no_grad()
def load_optimizer(
    optimizer: CombinedOptimizer | KeyedOptimizer,
    directory: Path,
    parameters: Mapping[str, str],
    resized: Mapping[str, tuple[int, int]],
) -> Collection[str]:
    """Load the state of parameters that an earlier training had too.

    Rows of a table that the earlier one did not have, and parameters without a stored
    state of the same kind and shape, keep a fresh state. Every rank takes part.

    Args:
        optimizer: of a model that has its weights already.
        directory: the state, as `save_optimizer` wrote it.
        parameters: name in the earlier training by name in this one.
        resized: of these, tables with another number of rows: (rows then, rows now).

    Returns:
        The parameters of `parameters` whose state is fresh.

    Raises:
        UserError: a state that cannot be read.
    """
    create_state(optimizer)
    stored = read_index(directory).state_dict_metadata
    wanted: list[tuple[str, Tensor]] = []
    fresh: dict[str, None] = {}
    for name, value in named_state(optimizer).items():
        parameter = parameter_of(name)
        if parameter not in parameters:
            continue
        old = f"{parameters[parameter]}{name.removeprefix(parameter)}"
        size = getattr(stored.get(old), "size", None)
        if size is None or not _fits(size, value.size(), resized.get(parameter)):
            fresh[parameter] = None
        else:
            wanted.append((old, value))
    load_renamed_rows(wanted, directory)
    optimizer.load_state_dict(optimizer.state_dict())  # what follows from the tensors
    return fresh.keys()


def _fits(stored: torch.Size, now: torch.Size, resized: tuple[int, int] | None) -> bool:
    """Whether a state is of the same form.

    Of a table divided by columns, row-wise Adagrad has a number for each row and part.
    """
    if resized is None:
        return stored == now
    return (stored[:1], now[:1]) == tuple((rows,) for rows in resized) and (
        stored[1:] == now[1:]
    )


def _name(parameter: str, key: str) -> str:
    """Return the name of a state; fbgemm's keys start with the table's name."""
    table = table_of(parameter)
    return f"{parameter}{_SEPARATOR}{key.removeprefix(f'{table}.')}"


def _parts(value: Tensor) -> list[Tensor]:
    shards = getattr(value, "local_shards", None)
    return [value] if shards is None else [shard.tensor for shard in shards()]
