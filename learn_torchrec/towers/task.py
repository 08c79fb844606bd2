"""The towers' training task: an objective and its temperature around the towers."""

import math
from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor, nn

from learn_torchrec.towers.batch import TowerBatch
from learn_torchrec.towers.holdout import TowersSplit
from learn_torchrec.towers.model import TwinTower
from learn_torchrec.towers.objectives.config import LEAST_TEMPERATURE, LossConfig


class Objective(Protocol):
    """What the towers learn: which batches, which loss, on which data.

    An `nn.Module` without parameters. TorchRec's pipelines trace `loss` on the way to
    the sharded table: what depends on values belongs into functions that
    `torch.fx.wrap` names.
    """

    def check(self, towers: TwinTower, data: TowersSplit) -> None:
        """Refuse settings that do not fit the data, with a `UserError`."""

    def batches(
        self, data: TowersSplit, *, batch_size: int, seed: int, epoch: int, start: int
    ) -> Iterator[TowerBatch]:
        """Yield this rank's batches of an epoch, from step `start` on, without content.

        They follow from the arguments alone, and every rank yields as many.
        """

    def loss(self, towers: TwinTower, batch: TowerBatch, temperature: Tensor) -> Tensor:
        """Return this rank's share of the loss; the mean over ranks is the loss."""


class TwinTowerTrain(nn.Module):
    """The training task: `forward(batch)` gives what TorchRec's pipelines expect.

    Args:
        towers: the model.
        objective: see `build.build_objective`.
        loss: settings of the temperature.
    """

    def __init__(
        self, towers: TwinTower, objective: Objective, loss: LossConfig
    ) -> None:
        super().__init__()
        self.towers = towers
        self.objective = objective
        self.log_temperature = nn.Parameter(
            torch.tensor(math.log(loss.temperature)),
            requires_grad=loss.learn_temperature,
        )

    def forward(self, batch: TowerBatch) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Return the loss and, detached, (loss, user numbers)."""
        loss = self.objective.loss(self.towers, batch, self.temperature())
        return loss, (loss.detach(), batch.users)

    def temperature(self) -> Tensor:
        """The temperature in use: fixed, or learned so far."""
        return self.log_temperature.exp()

    @torch.no_grad()
    def bound_temperature(self) -> None:
        """Keep a learned temperature from collapsing; to be called after every step.

        The parameter itself is clamped: a clamp in the forward pass has no gradient
        below its bound, and the temperature would never rise again.
        """
        if self.log_temperature.requires_grad:
            self.log_temperature.clamp_(min=math.log(LEAST_TEMPERATURE))
