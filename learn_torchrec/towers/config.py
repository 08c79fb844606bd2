"""Settings of the towers: model, sampling, loss, optimizer and training."""

from dataclasses import field
from typing import Annotated

from pydantic import Field, PositiveFloat, PositiveInt

from learn_torchrec.config import OPERATIONAL, configuration
from learn_torchrec.errors import UserError
from learn_torchrec.towers.model import TowersModelConfig
from learn_torchrec.towers.objectives.config import LossConfig
from learn_torchrec.towers.sampling import SamplingConfig
from learn_torchrec.training.optim import OptimizerConfig
from learn_torchrec.training.precision import Precision


@configuration
class TowersTrainingConfig:
    """Length, batch size and precision of the towers' training.

    Attributes:
        epochs: maximum number of passes over the training users.
        patience: passes without a better validation recall before training stops.
        smoothing: passes over which that recall is averaged, a pass and those before.
        validated_users: of the validation users, at most so many are evaluated after
            each pass.
        user_share: of the training users to learn from, chosen by their ids, a larger
            share with all of a smaller one: for learning curves.
        batch_size: users in a global batch, over all ranks.
        table_learning_rate: of the ID table's row-wise Adagrad.
        active_from: the towers learn from users with an event at or after this moment,
            a share of the log, an ISO date or unix seconds; from all users without it.
        replay: share of the other users that they learn from as well.
        precision: of the matrix products over items and tokens; weights, vectors and
            loss are float32. Trained towers encode in bfloat16, too; TF32 is only for
            training.
        seed: of initial weights, sampling and order.
        save_optimizer: keep the optimizer's state in the artefact, for a warm start
            that goes on instead of starting anew: twice the weights, 4 bytes an ID.
    """

    epochs: PositiveInt = 10
    patience: PositiveInt = 10
    smoothing: PositiveInt = 1
    validated_users: PositiveInt = 20_000
    user_share: Annotated[float, Field(gt=0, le=1)] = 1.0
    batch_size: PositiveInt = 240
    table_learning_rate: PositiveFloat = 0.05
    active_from: str | None = None
    replay: Annotated[float, Field(ge=0, le=1)] = 0.0
    precision: Precision = "float32"
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    save_optimizer: Annotated[bool, OPERATIONAL] = True


@configuration
class TowersConfig:
    """All settings that decide the towers, given data, split and content."""

    model: TowersModelConfig = field(default_factory=TowersModelConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    training: TowersTrainingConfig = field(default_factory=TowersTrainingConfig)


def refuse_unfit_lengths(config: TowersConfig) -> None:
    """Check that learned positions suffice for the longest sequence.

    Raises:
        UserError: they do not.
    """
    longest = max(config.sampling.history_length, config.sampling.target_length)
    if 0 < config.model.encoder.max_positions < longest:
        raise UserError(
            f"towers.model.encoder.max_positions={config.model.encoder.max_positions} "
            f"is below the longest configured sequence, {longest}; raise it"
        )
