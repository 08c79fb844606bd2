"""Towers that start from earlier ones go on as if training had not stopped."""

import pyarrow as pa
import pytest
import torch
from untrained_towers import statistics_of

from learn_torchrec.apps import train_towers
from learn_torchrec.content.store import KIND, ContentStore, write_content_store
from learn_torchrec.datasets.adapters import open_dataset
from learn_torchrec.datasets.histories import load_histories
from learn_torchrec.datasets.split import SplitConfig
from learn_torchrec.errors import UserError
from learn_torchrec.publish import write_artifact
from learn_torchrec.towers.artifact import (
    OPTIMIZER_FILE,
    earlier_towers,
    save_towers,
)
from learn_torchrec.towers.batch import attach_content
from learn_torchrec.towers.build import build_task, build_trainer
from learn_torchrec.towers.config import TowersConfig, TowersTrainingConfig
from learn_torchrec.towers.encoders.architecture import EncoderShape
from learn_torchrec.towers.holdout import split_towers
from learn_torchrec.towers.model import TowersModelConfig
from learn_torchrec.towers.objectives.config import LossConfig
from learn_torchrec.towers.warm_start import TEMPERATURE
from learn_torchrec.training.loop import train_epoch
from learn_torchrec.training.optim import OptimizerConfig
from learn_torchrec.training.optimizer_state import full_state
from learn_torchrec.training.sharding import full_state_dict

_STEPS = 10**9  # so many that the learning rate does not move
IDS = "towers.ids.table.embeddings.t_item_id.weight"


def config_of(inputs, seed=0):
    shape = EncoderShape(
        width=8, num_layers=1, num_heads=2, feed_forward_dim=16, dropout=0.0
    )
    return TowersConfig(
        model=TowersModelConfig(encoder=shape, inputs=inputs),
        loss=LossConfig(learn_temperature=True),
        optimizer=OptimizerConfig(learning_rate=1e-2, warmup=0.0, weight_decay=0.1),
        training=TowersTrainingConfig(batch_size=4, seed=seed),
    )


def trainer_of(config, store, device, initial=None):
    task = build_task(config, statistics_of(store), initial)
    return build_trainer(task, config, _STEPS, device, initial)


def batches_of(trainer, data, store, config):
    batches = trainer.task.objective.batches(
        data, batch_size=config.training.batch_size, seed=0, epoch=0, start=0
    )
    with_ids = trainer.task.towers.ids is not None
    return list(attach_content(batches, store, with_ids=with_ids))


def train(trainer, batches):
    def on_step(_):
        trainer.task.bound_temperature()

    train_epoch(trainer.pipeline, iter(batches), trainer.schedule, on_step)


def save(trainer, store, directory):
    optimizer = full_state(trainer.optimizer)
    weights = full_state_dict(trainer.task)
    optimizer[TEMPERATURE] = weights[TEMPERATURE]
    state = {
        name.removeprefix("towers."): value
        for name, value in weights.items()
        if name.startswith("towers.")
    }
    made = {"kind": "towers", "config": {}, "inputs": {}}
    with write_artifact(directory, **made) as working:
        save_towers(working, state, store.item_ids, optimizer)


@pytest.mark.parametrize("inputs", ["content", "content+id"])
def test_the_next_steps_are_those_of_an_uninterrupted_training(
    inputs, store, market, one_rank, tmp_path
):
    split = SplitConfig(min_events=4, validation_users=0.2)
    histories = load_histories(open_dataset(f"parquet:{market}"), store, split)
    data = split_towers(histories.sequences, histories.times, split)
    config = config_of(inputs)
    trainer = trainer_of(config, store, one_rank)
    batches = batches_of(trainer, data, store, config)
    assert len(batches) >= 6
    train(trainer, batches[:3])
    save(trainer, store, tmp_path / "towers")
    found = {}
    for name, fresh in (("with", False), ("without", True)):
        initial = earlier_towers(tmp_path / "towers", store, fresh)
        started = trainer_of(config_of(inputs, seed=1), store, one_rank, initial)
        train(started, batches[3:6])
        found[name] = full_state_dict(started.task)
    train(trainer, batches[3:6])
    wanted = full_state_dict(trainer.task)
    assert all(torch.equal(found["with"][name], wanted[name]) for name in wanted)
    assert not torch.equal(found["without"][TEMPERATURE], wanted[TEMPERATURE])
    assert inputs == "content" or wanted[IDS].abs().sum() > 0


def test_states_of_ids_follow_their_items(store, market, one_rank, tmp_path):
    split = SplitConfig(min_events=4, validation_users=0.2)
    histories = load_histories(open_dataset(f"parquet:{market}"), store, split)
    data = split_towers(histories.sequences, histories.times, split)
    config = config_of("content+id")
    trainer = trainer_of(config, store, one_rank)
    train(trainer, batches_of(trainer, data, store, config)[:4])
    save(trainer, store, tmp_path / "towers")
    # One item has gone, one is new, and the others lie in another order.
    ids = pa.array([7, *range(139, 100, -1)])
    vectors = store.gather(store.rows_of(ids[1:])).astype("float32")
    vectors = torch.cat([torch.ones(1, store.dim), torch.from_numpy(vectors)]).numpy()
    with write_artifact(tmp_path / "other", kind=KIND, config={}, inputs={}) as out:
        write_content_store(out, ids, vectors)
    other = ContentStore.open(tmp_path / "other")
    initial = earlier_towers(tmp_path / "towers", other)
    moments = f"{IDS}/momentum1"
    before = full_state(trainer.optimizer)[moments]
    after = full_state(trainer_of(config, other, one_rank, initial).optimizer)[moments]
    assert before.count_nonzero() > 20
    assert after[0] == 0
    assert torch.equal(after[1:], before[1:].flip(0))


def test_the_state_can_be_left_out(market, store, tmp_path):
    options = ["--data", f"parquet:{market}", "--content", str(store.directory)]
    options += ["--set", "towers.training.epochs=1", "towers.training.batch_size=4"]
    first, second = tmp_path / "first", tmp_path / "second"
    train_towers.main(["--out", str(first), *options])
    assert (first / OPTIMIZER_FILE).exists()
    lean = [*options, "towers.training.save_optimizer=false"]
    warm = ["--warm-start", str(first), "--out", str(second)]
    train_towers.main([*warm, *lean])
    assert not (second / OPTIMIZER_FILE).exists()
    train_towers.main([*warm, *options])  # the same towers: the setting decides nothing
    with pytest.raises(UserError, match="other settings or inputs"):
        train_towers.main([*warm, "--fresh-optimizer", *options])
    with pytest.raises(UserError, match="--fresh-optimizer: needs --warm-start"):
        train_towers.main(["--fresh-optimizer", "--out", str(tmp_path / "x"), *options])
