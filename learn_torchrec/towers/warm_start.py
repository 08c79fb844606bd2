"""Start towers from weights that exist: an earlier run's, or the paper's authors'.

Dimension letters: N items of this catalogue, M of the earlier one, W width.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from learn_torchrec.errors import UserError
from learn_torchrec.towers.encoder import PreferenceEncoder
from learn_torchrec.training.distributed import is_writer
from learn_torchrec.training.sharding import fill_rows, table_of

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class InitialTowers:
    """What towers start from.

    Attributes:
        encoder: names and tensors for `PreferenceEncoder.load_state_dict`.
        repeat: likewise for `RepeatConsumption`; None starts it afresh.
        id_vectors: float32 [M, W], of the earlier catalogue's items; None starts all
            afresh.
        id_rows: int64 [N], the row there of each item of this one, -1 for a new item.
    """

    encoder: Mapping[str, Tensor]
    repeat: Mapping[str, Tensor] | None = None
    id_vectors: Tensor | None = None
    id_rows: Tensor | None = None


def load_encoder(encoder: PreferenceEncoder, state: Mapping[str, Tensor]) -> None:
    """Start an encoder from given weights.

    Raises:
        UserError: the weights are of another shape of encoder.
    """
    own = encoder.state_dict()
    for name in sorted({*own, *state}):
        theirs = state[name].shape if name in state else None
        ours = own[name].shape if name in own else None
        if theirs != ours:
            raise UserError(
                f"initial weights: {name} is {_shape(theirs)}, the configured encoder "
                f"has {_shape(ours)}; set towers.model.encoder to the shape they were "
                "trained with"
            )
    encoder.load_state_dict(dict(state))


@torch.no_grad()
def load_ids(model: nn.Module, initial: InitialTowers) -> None:
    """Fill a sharded table of item ids with the vectors of items known earlier.

    The other items keep their fresh vectors. Every rank takes part.

    Raises:
        UserError: the vectors are of another width.
    """
    if initial.id_vectors is None or initial.id_rows is None:
        return
    rows = (initial.id_rows >= 0).nonzero().squeeze(1)
    for name, table in model.state_dict().items():
        if table_of(name) is None:
            continue
        if table.size()[1] != initial.id_vectors.shape[1]:
            raise UserError(
                f"initial weights: item ids are {initial.id_vectors.shape[1]} wide, "
                f"this run's {table.size()[1]}; set towers.model.encoder.width to the "
                "earlier run's"
            )
        fill_rows(table, rows, initial.id_vectors[initial.id_rows[rows]])
    if is_writer():
        logger.info(
            "warm start: item ids of %d items loaded, %d new, %d left out",
            len(rows),
            len(initial.id_rows) - len(rows),
            len(initial.id_vectors) - len(rows),
        )


def _shape(shape: torch.Size | None) -> str:
    return "missing" if shape is None else str(list(shape))
