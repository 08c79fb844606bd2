"""Initial weights of the towers: an earlier run's, or the paper's authors'.

Dimension letters: N items of this catalogue, M of the earlier one, W width.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizer

from learn_torchrec.errors import UserError
from learn_torchrec.towers.encoder import PreferenceEncoder
from learn_torchrec.towers.repeat import RepeatConsumption
from learn_torchrec.training.distributed import is_writer
from learn_torchrec.training.optimizer_state import (
    create_state,
    named_state,
    parameter_of,
)
from learn_torchrec.training.sharding import fill_rows, table_of

TEMPERATURE = "log_temperature"  # of the training task

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class InitialTowers:
    """Weights to start from.

    Attributes:
        encoder: state dict of the `PreferenceEncoder`.
        repeat: of `RepeatConsumption`; None initializes it freshly.
        id_vectors: float32 [M, W], of the earlier catalogue; None initializes all
            freshly.
        id_rows: int64 [N], row of each item in `id_vectors`, -1 for a new item.
        optimizer: states by name, see `optimizer_state.named_state`, and the logarithm
            of the loss's temperature; empty for a fresh optimizer.
    """

    encoder: Mapping[str, Tensor]
    repeat: Mapping[str, Tensor] | None = None
    id_vectors: Tensor | None = None
    id_rows: Tensor | None = None
    optimizer: Mapping[str, Tensor] = field(default_factory=dict)


def load_encoder(encoder: PreferenceEncoder, state: Mapping[str, Tensor]) -> None:
    """Load the initial weights of an encoder.

    Raises:
        UserError: the weights belong to an encoder of another shape.
    """
    own = encoder.state_dict()
    for name in sorted({*own, *state}):
        theirs = state[name].shape if name in state else None
        ours = own[name].shape if name in own else None
        if theirs != ours:
            setting = "residual" if name == "components" else "encoder"
            raise UserError(
                f"initial weights: {name} is {_shape(theirs)}, the configured encoder "
                f"has {_shape(ours)}; set towers.model.{setting} to theirs"
            )
    encoder.load_state_dict(dict(state))


def load_repeat(repeat: RepeatConsumption, state: Mapping[str, Tensor]) -> None:
    """Load the initial weights of a repeat score; the items' odds stay this log's.

    Raises:
        UserError: the weights belong to another score.
    """
    theirs, ours = state["weight"], repeat.weight
    if theirs.shape != ours.shape:
        raise UserError(
            f"initial weights: repeat.weight is {_shape(theirs.shape)}, these towers "
            f"have {_shape(ours.shape)}, as another version learned it; train the "
            "earlier towers again, or start without them"
        )
    with torch.no_grad():
        ours.copy_(theirs)


@torch.no_grad()
def load_ids(model: nn.Module, initial: InitialTowers) -> None:
    """Load the ID vectors of known items into a sharded table.

    New items keep their fresh vectors. Every rank takes part.

    Raises:
        UserError: the vectors have another width.
    """
    if initial.id_vectors is None or initial.id_rows is None:
        return
    rows = (initial.id_rows >= 0).nonzero().squeeze(1)
    for name, table in model.state_dict().items():
        if table_of(name) is None:
            continue
        if table.size()[1] != initial.id_vectors.shape[1]:
            raise UserError(
                f"initial weights: ID vectors have {initial.id_vectors.shape[1]} dims, "
                f"this run's {table.size()[1]}; set towers.model.encoder.width to the "
                "earlier run's"
            )
        fill_rows(table, rows, initial.id_vectors[initial.id_rows[rows]])
    if is_writer():
        logger.info(
            "warm start: ID vectors of %d items loaded, %d new, %d dropped",
            len(rows),
            len(initial.id_rows) - len(rows),
            len(initial.id_vectors) - len(rows),
        )


@torch.no_grad()
def load_optimizer_state(
    optimizer: CombinedOptimizer | KeyedOptimizer, initial: InitialTowers
) -> None:
    """Load the optimizer's state of what starts from earlier towers.

    New items and what has no counterpart get a fresh state. Every rank takes part.
    """
    if not initial.optimizer:
        return
    create_state(optimizer)
    fresh = []
    for name, value in named_state(optimizer).items():
        stored = initial.optimizer.get(name)
        if stored is None or stored.shape[1:] != value.size()[1:]:
            fresh.append(name)
        elif table_of(parameter_of(name)) is None:
            value.copy_(stored)
        elif initial.id_rows is not None:
            rows = (initial.id_rows >= 0).nonzero().squeeze(1)
            fill_rows(value, rows, stored[initial.id_rows[rows]])
    optimizer.load_state_dict(optimizer.state_dict())  # what follows from the tensors
    if is_writer():
        logger.info("warm start: the optimizer goes on where the earlier one stopped")
        for name in fresh:
            logger.info("warm start: the optimizer's %s is fresh", name)


def _shape(shape: torch.Size | None) -> str:
    return "missing" if shape is None else str(list(shape))
