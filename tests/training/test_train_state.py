"""Early stopping, and what a training counts, saves and resumes."""

import json

import pytest
import torch
from torchrec.optim.keyed import KeyedOptimizerWrapper

from learn_torchrec.training.checkpoint import CheckpointConfig, Checkpoints
from learn_torchrec.training.optim import warmup_decay
from learn_torchrec.training.run_log import RunLog
from learn_torchrec.training.train_state import EarlyStopping, TrainState

CPU = torch.device("cpu")


def test_the_best_epoch_keeps_its_weights_until_patience_ends(one_rank, tmp_path):
    del one_rank
    model, stopping = torch.nn.Linear(1, 1), EarlyStopping(patience=2, metric="auc")
    for epoch, value in enumerate((0.1, 0.3, 0.3, 0.2), 1):
        assert not stopping.should_stop(epoch - 1)
        torch.nn.init.constant_(model.weight, epoch)
        stopping.update(epoch, {"auc": value, "ne": -value}, model)
    assert stopping.should_stop(4)
    assert stopping.best_epoch == 2  # the first of equals
    assert stopping.metrics == {"auc": 0.3, "ne": -0.3}
    assert stopping.weights["weight"].item() == 2.0
    again = EarlyStopping(patience=2, metric="auc")
    stopping.writer()(tmp_path)
    again.restore(stopping.state(), tmp_path)
    assert (again.best_epoch, again.metrics) == (2, stopping.metrics)
    assert again.weights["weight"].item() == 2.0


def test_smoothing_compares_means_of_the_latest_epochs(one_rank, tmp_path):
    """One lucky epoch is not the best; a resumed training decides the same."""
    del one_rank
    model = torch.nn.Linear(1, 1)
    values = (0.1, 0.6, 0.1, 0.4, 0.5, 0.3)  # means of two: .1, .35, .35, .25, .45, .4
    whole = EarlyStopping(patience=9, metric="auc", smoothing=2)
    for epoch, value in enumerate(values, 1):
        whole.update(epoch, {"auc": value}, model)
    assert (whole.best_epoch, whole.metrics) == (5, {"auc": 0.5})
    for stop in range(len(values)):
        first = EarlyStopping(patience=9, metric="auc", smoothing=2)
        for epoch, value in enumerate(values[:stop], 1):
            first.update(epoch, {"auc": value}, model)
        first.writer()(tmp_path)
        resumed = EarlyStopping(patience=9, metric="auc", smoothing=2)
        resumed.restore(json.loads(json.dumps(first.state())), tmp_path)
        for epoch, value in enumerate(values[stop:], stop + 1):
            resumed.update(epoch, {"auc": value}, model)
        assert resumed.state() == whole.state()


def test_a_mean_of_fewer_epochs_is_never_the_best_of_a_longer_training(one_rank):
    """The first epoch is lucky; of two alone it is the best."""
    del one_rank
    stopping = EarlyStopping(patience=9, metric="auc", smoothing=3)
    best = []
    for epoch, value in enumerate((0.9, 0.1, 0.2, 0.1, 0.4), 1):
        stopping.update(epoch, {"auc": value}, torch.nn.Linear(1, 1))
        best.append(stopping.best_epoch)
    assert best == [1, 1, 3, 3, 3]
    stopping.update(6, {"auc": 0.8}, torch.nn.Linear(1, 1))
    assert stopping.best_epoch == 6


def test_a_metric_below_zero_can_be_the_best(one_rank):
    del one_rank
    stopping = EarlyStopping(patience=1, metric="auc")
    stopping.update(1, {"auc": -5.0}, torch.nn.Linear(1, 1))
    assert stopping.best_epoch == 1


@pytest.fixture
def start(one_rank, tmp_path):
    """Returns the state of a training of 4 steps an epoch, and its model."""
    del one_rank
    log = RunLog(tmp_path / "out")

    def make(every_steps=3):
        model = torch.nn.Linear(1, 1)
        optimizer = KeyedOptimizerWrapper(
            dict(model.named_parameters()), lambda values: torch.optim.SGD(values, 1.0)
        )
        state = TrainState(
            model,
            optimizer,
            warmup_decay(optimizer, 12, 0.0, "linear"),
            steps_per_epoch=4,
            log=log,
            checkpoints=Checkpoints(
                tmp_path / "out",
                {"seed": 1},
                CheckpointConfig(every_steps=every_steps, asynchronous=False),
            ),
            means=("loss", "auxiliary"),
        )
        return state, model

    yield make
    log.__exit__(None, None, None)


def test_it_resumes_in_the_middle_of_an_epoch(start):
    state, model = start()
    assert state.resume(CPU) is None
    assert list(state.epochs(3)) == [(0, 0), (1, 0), (2, 0)]
    for step in range(1, 7):
        torch.nn.init.constant_(model.weight, step)
        state.advance(loss=torch.tensor(float(step)), auxiliary=torch.tensor(0.5))
        assert state.is_epoch_end == (step == 4)
        state.save(local=lambda: {"row": torch.tensor([7])})
    resumed, other = start()
    saved = resumed.resume(CPU)
    assert resumed.step == 6
    assert other.weight.item() == 6.0
    assert list(resumed.epochs(3)) == [(1, 2), (2, 0)]
    assert saved.local()["row"].item() == 7
    assert resumed.means["loss"].result() == 3.5
    assert resumed.means["auxiliary"].result() == 0.5
    (group,) = resumed.schedule.optimizer.param_groups
    assert group["lr"] == pytest.approx(1 - 5 / 11)  # one step of warm-up at least


def test_what_the_check_refuses_is_not_saved(start):
    def refuse(total, step):
        if total > 2:
            raise ValueError(f"step {step}")

    state, _ = start(every_steps=1)
    state.advance(loss=torch.tensor(1.5), auxiliary=torch.tensor(0.0))
    state.save(check=refuse)
    state.advance(loss=torch.tensor(1.5), auxiliary=torch.tensor(0.0))
    with pytest.raises(ValueError, match="step 2"):
        state.save(check=refuse)
    resumed, _ = start()
    resumed.resume(CPU)
    assert resumed.step == 1
