"""How often a step of the towers waits for its device, counted without one.

A host waits for its GPU where Python reads a value, and where the size of a result
depends on values. Both can be counted on a CPU.
"""

import numpy as np
import pytest
import torch
from random_sequences import make_sequences
from torch.utils._python_dispatch import TorchDispatchMode
from untrained_towers import statistics_of

from learn_torchrec.towers.batch import attach_content, collate
from learn_torchrec.towers.build import build_objective, build_towers
from learn_torchrec.towers.config import TowersConfig
from learn_torchrec.towers.encoders.architecture import EncoderShape
from learn_torchrec.towers.model import TowersModelConfig
from learn_torchrec.towers.objectives.config import LossConfig
from learn_torchrec.towers.sampling import SamplingConfig, sample_user
from learn_torchrec.towers.task import TwinTowerTrain

ATEN = torch.ops.aten
READS = {ATEN._local_scalar_dense.default}
SIZED_BY_VALUES = {
    *(ATEN.nonzero.default, ATEN.masked_select.default),
    *(ATEN._unique2.default, ATEN.unique_consecutive.default),
}
SAMPLING = SamplingConfig(
    history_length=8, target_length=5, num_history_samples=3, num_target_samples=2
)


class Waits(TorchDispatchMode):
    """Counts what would wait for a GPU."""

    def __init__(self, monkeypatch) -> None:
        super().__init__()
        self.count = 0
        original = torch.Tensor.tolist

        def tolist(tensor):  # reads memory past the dispatcher
            self.count += 1
            return original(tensor)

        monkeypatch.setattr(torch.Tensor, "tolist", tolist)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        waits = function in READS | SIZED_BY_VALUES
        if function is ATEN.repeat_interleave.Tensor:
            waits = (kwargs or {}).get("output_size") is None
        if function in (ATEN.index.Tensor, ATEN.index_put_.default):
            waits = any(x is not None and x.dtype == torch.bool for x in args[1])
        self.count += waits
        return function(*args, **(kwargs or {}))


def task_and_batch(store, objective, repeat):
    shape = EncoderShape(  # without dropout, whose masks differ on a GPU
        width=8, num_layers=1, num_heads=2, feed_forward_dim=16, dropout=0.0
    )
    tower = "causal" if objective == "dense_all_action" else "projection"
    config = TowersConfig(
        model=TowersModelConfig(encoder=shape, item_tower=tower, repeat=repeat),
        loss=LossConfig(objective=objective, candidates=20),
        sampling=SAMPLING,
    )
    statistics = statistics_of(store)
    towers = build_towers(config.model, statistics)
    task = TwinTowerTrain(
        towers, build_objective(config, statistics.event_counts), config.loss
    )
    sequences = make_sequences([6 + user % 9 for user in range(150)])
    users = np.arange(150)
    samples = [sample_user(sequences.lengths[u], SAMPLING, 0, 0, u) for u in users]
    candidates = np.arange(20) if objective == "next_item" else None
    width = 3 if candidates is not None else 2
    made = collate(
        *(sequences, users, samples, 3, width, candidates, 20 if repeat else 0)
    )
    return task, next(attach_content([made], store))


@pytest.mark.parametrize(
    ("objective", "repeat", "most"),
    [
        # Lengths of sequences, hits among the candidates, and their chunks.
        ("dense_all_action", False, 3),
        # Pairs of anchors and items, valid anchors, distinct items; hits and chunks.
        ("dense_all_action", True, 8),
        ("next_item", False, 2),  # lengths, valid anchors
    ],
)
def test_a_step_seldom_waits_for_its_device(
    store, objective, repeat, most, monkeypatch, one_rank
):
    task, batch = task_and_batch(store, objective, repeat)
    task(batch)[0].backward()  # warm
    # Anomaly detection, which another test may have left on, reads every gradient.
    with Waits(monkeypatch) as waits:
        task(batch)[0].backward()
    assert waits.count <= most


def test_the_count_sees_what_waits(monkeypatch):
    values = torch.tensor([1, 0, 2])
    for wait in (
        lambda: int(values.sum()),
        lambda: values.tolist(),
        lambda: values[values > 0],
        lambda: values.nonzero(),
        lambda: values.repeat_interleave(values),
        lambda: values[: values[0]],
    ):
        with Waits(monkeypatch) as waits:
            wait()
        assert waits.count, wait
    with Waits(monkeypatch) as waits:
        values.repeat_interleave(values, output_size=3).cumsum(0)[values]
    assert waits.count == 0
