"""People with habits, whose events are to be predicted, and small towers for them."""

import numpy as np
import pyarrow as pa
from random_sequences import sequence_set

from learn_torchrec.towers.config import TowersConfig, TowersTrainingConfig
from learn_torchrec.towers.encoders.architecture import EncoderShape
from learn_torchrec.towers.holdout import RetrievalTask, TowersSplit
from learn_torchrec.towers.model import TowersModelConfig
from learn_torchrec.towers.objectives.config import LossConfig
from learn_torchrec.towers.sampling import SamplingConfig
from learn_torchrec.training.optim import OptimizerConfig


def towers_config(**loss):
    shape = EncoderShape(
        width=16, num_layers=1, num_heads=2, feed_forward_dim=32, dropout=0.0
    )
    return TowersConfig(
        model=TowersModelConfig(encoder=shape, item_tower="self", repeat=True),
        sampling=SamplingConfig(
            history_length=6, target_length=6, num_history_samples=2, min_history=2
        ),
        loss=LossConfig(temperature=0.2, **loss),
        optimizer=OptimizerConfig(learning_rate=2e-2),
        training=TowersTrainingConfig(epochs=10, batch_size=20),
    )


def users_who(repeat: bool, users=60, length=8):
    """Each buys one item again and again, or never the same twice."""
    random = np.random.default_rng(0)
    rows = [
        np.full(length, random.integers(40))
        if repeat
        else random.permutation(40)[:length]
        for _ in range(users)
    ]
    return _shoppers(np.stack(rows))


def with_favourites(seed: int, users=60, length=8):
    """Item n of 40 is drawn with weight 1 / (n + 1)^.7, each once by a user."""
    random = np.random.default_rng(seed)
    weights = 1 / np.arange(1, 41) ** 0.7
    share = weights / weights.sum()
    return _shoppers(
        np.stack(
            [random.choice(40, length, replace=False, p=share) for _ in range(users)]
        )
    )


def _shoppers(items):
    """Return users' events, int [users, length]; the last two are targets."""
    users, length = items.shape
    sequences = sequence_set(
        user_ids=pa.array(range(users)),
        offsets=np.arange(users + 1) * length,
        items=items.ravel(),
        times=np.tile(np.arange(length), users),
    )
    task = RetrievalTask(
        sequences=sequences, history_lengths=np.full(users, length - 2)
    )
    return TowersSplit(
        train=sequences, cuts=None, validation=task, test=task, known_until=length
    )
