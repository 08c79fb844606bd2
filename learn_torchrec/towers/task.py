"""The towers' training task: the towers with an objective and a temperature."""

import math
from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor, nn

from learn_torchrec.towers.batch import TowerBatch
from learn_torchrec.towers.holdout import TowersSplit
from learn_torchrec.towers.model import TowersModelConfig, TwinTower
from learn_torchrec.towers.objectives.config import MIN_TEMPERATURE, LossConfig


class Objective(Protocol):
    """A training objective: its batches, its loss and its checks of the data.

    An `nn.Module` without parameters. TorchRec's pipelines trace `loss` up to the
    sharded table: data-dependent code belongs in functions registered with
    `torch.fx.wrap`.
    """

    def check(self, model: TowersModelConfig, data: TowersSplit) -> None:
        """Refuse settings that do not fit the data, with a `UserError`."""

    def batches(
        self, data: TowersSplit, *, batch_size: int, seed: int, epoch: int, start: int
    ) -> Iterator[TowerBatch]:
        """Yield this rank's batches of an epoch, without content, from step `start`.

        They depend only on the arguments; every rank yields the same number.
        """

    def loss(self, towers: TwinTower, batch: TowerBatch, temperature: Tensor) -> Tensor:
        """Return this rank's loss; its mean over ranks is the global loss."""


class TwinTowerTrain(nn.Module):
    """The training task, in the form that TorchRec's pipelines expect."""

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
        """Return the loss, and (loss, user indices), detached."""
        loss = self.objective.loss(self.towers, batch, self.temperature())
        return loss, (loss.detach(), batch.users)

    def temperature(self) -> Tensor:
        """Return the current temperature, fixed or learned."""
        return self.log_temperature.exp()

    @torch.no_grad()
    def bound_temperature(self) -> None:
        """Bound a learned temperature from below; to be called after every step.

        The parameter itself is clamped: a clamp in the forward pass would have no
        gradient below the bound, so that the temperature could never rise again.
        """
        if self.log_temperature.requires_grad:
            self.log_temperature.clamp_(min=math.log(MIN_TEMPERATURE))
