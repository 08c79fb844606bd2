"""What decides the towers: their shape, their samples, their loss and training."""

from dataclasses import dataclass, field
from typing import Literal

from learn_torchrec.config import require
from learn_torchrec.towers.loss import LossConfig
from learn_torchrec.towers.model import TowersModelConfig
from learn_torchrec.towers.sampling import SamplingConfig
from learn_torchrec.training.optim import OptimizerConfig


@dataclass(frozen=True, kw_only=True)
class TowersTrainingConfig:
    """How long, in what pieces and how precisely the towers train.

    Attributes:
        epochs: passes over the training users at most.
        patience: passes without a better validation recall before stopping.
        batch_size: users in a global batch, over all ranks.
        table_learning_rate: of the item ids' row-wise Adagrad.
        precision: of the towers' matrix products; vectors and loss are float32.
        seed: of weights, sampling and order.
    """

    epochs: int = 10
    patience: int = 10
    batch_size: int = 240
    table_learning_rate: float = 0.05
    precision: Literal["float32", "bfloat16"] = "float32"
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "patience", "batch_size"):
            require(getattr(self, name) > 0, f"towers.training.{name}: at least 1")
        require(self.seed >= 0, "towers.training.seed: at least 0")
        require(
            self.table_learning_rate > 0, "towers.training.table_learning_rate: above 0"
        )


@dataclass(frozen=True, kw_only=True)
class TowersConfig:
    """Everything that decides the towers, given data, split and content."""

    model: TowersModelConfig = field(default_factory=TowersModelConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    training: TowersTrainingConfig = field(default_factory=TowersTrainingConfig)
