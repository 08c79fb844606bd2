"""The time that a training run loses to a 1 GB checkpoint, synchronous or not.

The real ranker trains on one thread, which leaves a core for the saving thread, as on a
rank's host. The loss is the time of the steps during which a checkpoint is made, less
the time of as many steps without one.
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torchrec import KeyedJaggedTensor

from learn_torchrec.ranker.batch import RankingBatch
from learn_torchrec.ranker.build import build_ranker, ranker_optimizer
from learn_torchrec.ranker.config import RankerConfig
from learn_torchrec.ranker.features import DenseFeature, FeaturesConfig, HashedFeature
from learn_torchrec.training.checkpoint import CheckpointConfig, Checkpoints
from learn_torchrec.training.distributed import process_group

_TABLES, _ROWS, _BATCH = 20, 390_000, 1024
_ROUNDS, _WARM_UP = 5, 10


def measure_saves() -> dict[str, Any]:
    """Return the seconds lost to either kind of save, and their ratio."""
    torch.set_num_threads(1)
    with process_group() as device, tempfile.TemporaryDirectory() as folder:
        features = FeaturesConfig(
            sparse=tuple(
                HashedFeature(column=f"id_{n}", num_embeddings=_ROWS)
                for n in range(_TABLES)
            ),
            dense=(DenseFeature(column="number"),),
        )
        config = RankerConfig(features=features)
        model = build_ranker(config, None, device)
        optimizer = ranker_optimizer(model, config)
        batch = _batch()

        def step() -> None:
            optimizer.zero_grad()
            loss, _ = model(batch)
            loss.backward()
            optimizer.step()

        def state() -> dict[str, Any]:
            return {"model": model.state_dict(), "optimizer": optimizer.state_dict()}

        for _ in range(_WARM_UP):
            step()
        lost: dict[str, list[float]] = {"synchronous": [], "asynchronous": []}
        checkpoints = {
            name: Checkpoints(
                Path(folder) / name,
                {},
                CheckpointConfig(every_steps=1, keep=1, asynchronous=name[0] == "a"),
            )
            for name in lost
        }
        for number in range(_ROUNDS + 1):
            for name, seconds in lost.items():
                seconds.append(_lost(step, checkpoints[name], number + 1, state))
        for each in checkpoints.values():
            each.remove()
        bytes_saved = sum(
            value.numel() * value.element_size() for value in _tensors(state())
        )
    # The first save of each allocates the copies' memory and warms the disk cache.
    medians = {name: statistics.median(values[1:]) for name, values in lost.items()}
    return {
        "saved_mb": round(bytes_saved / 2**20),
        "seconds_lost_synchronous": round(medians["synchronous"], 3),
        "seconds_lost_asynchronous": round(medians["asynchronous"], 3),
        "async_save_ratio": round(medians["asynchronous"] / medians["synchronous"], 3),
    }


def _lost(
    step: Callable[[], None],
    checkpoints: Checkpoints,
    number: int,
    state: Callable[[], dict[str, Any]],
) -> float:
    """Save once while steps continue; return the seconds beyond the steps' own.

    As many steps right after the save tell their own time, so that other load on the
    machine disturbs both alike.
    """
    began, steps = time.perf_counter(), 0
    checkpoints.after_step(number, state, dict)
    while checkpoints.is_saving():
        step()
        steps += 1
    saved = time.perf_counter()
    for _ in range(steps):
        step()
    return saved - began - (time.perf_counter() - saved)


def _batch() -> RankingBatch:
    random = np.random.default_rng(0)
    ids = torch.from_numpy(random.integers(0, _ROWS, _TABLES * _BATCH))
    sparse = KeyedJaggedTensor.from_lengths_sync(
        keys=[f"id_{n}" for n in range(_TABLES)],
        values=ids,
        lengths=torch.ones(len(ids), dtype=torch.int32),
    )
    return RankingBatch(
        dense_features=torch.randn(_BATCH, 1),
        sparse_features=sparse,
        labels={"label": torch.randint(0, 2, (_BATCH,)).float()},
        weights=torch.ones(_BATCH),
    )


def _tensors(state: dict[str, Any]) -> list[torch.Tensor]:
    values: list[torch.Tensor] = []
    for value in state.values():
        if isinstance(value, dict):
            values += _tensors(value)
        elif hasattr(value, "local_shards"):
            values += [shard.tensor for shard in value.local_shards()]
        elif isinstance(value, torch.Tensor):
            values.append(value)
    return values
