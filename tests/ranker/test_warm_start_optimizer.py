"""A warm start with the optimizer's state goes on as if training had not stopped."""

import problem
import pytest
import torch
from torchrec.distributed.train_pipeline import TrainPipelineSparseDist

from learn_torchrec.config import replace
from learn_torchrec.ranker.build import (
    MODEL_DIRECTORY,
    build_ranker,
    ranker_optimizer,
    save_ranker,
)
from learn_torchrec.ranker.features import HashedFeature, IndexedFeature
from learn_torchrec.ranker.warm_start import (
    WarmStart,
    warm_start,
    warm_start_optimizer,
)
from learn_torchrec.training.optimizer_state import (
    OPTIMIZER_DIRECTORY,
    create_state,
    named_state,
    save_optimizer,
)
from learn_torchrec.training.sharding import full_state_dict, full_tensors

BAGS = "ranker.sparse_arch.embedding_bag_collection.embedding_bags"


def settings(case, **features):
    config = problem.config(case)
    optimizer = replace(config.optimizer, weight_decay=0.1)
    config = replace(config, optimizer=optimizer)
    return replace(config, features=replace(config.features, **features))


def fresh(config, device, seed=0):
    training = replace(config.training, seed=seed)
    model = build_ranker(replace(config, training=training), problem.SHAPE, device)
    return model, ranker_optimizer(model, config)


def train(model, optimizer, batches, device):
    pipeline = TrainPipelineSparseDist(model, optimizer, device)
    remaining = iter(batches)
    for _ in batches:
        pipeline.progress(remaining)
    pipeline.detach()


def started(config, features, directory, device, with_state=True):
    """Return a ranker of another seed that starts from a saved one."""
    model, optimizer = fresh(config, device, seed=1)
    earlier = WarmStart(
        directory / MODEL_DIRECTORY,
        features,
        optimizer=directory / OPTIMIZER_DIRECTORY if with_state else None,
    )
    loaded = warm_start(model, config.features, earlier)
    warm_start_optimizer(optimizer, earlier, loaded)
    return model, optimizer


def saved(config, device, directory):
    """Train for five steps and save; return model, optimizer and three more batches."""
    batches = list(problem.impressions(config).batches(0))
    model, optimizer = fresh(config, device)
    train(model, optimizer, batches[:5], device)
    save_ranker(model, directory)
    save_optimizer(optimizer, directory)
    return model, optimizer, batches[5:8]


@pytest.mark.parametrize(
    "case", ["auto", "data_parallel", "column_wise/adagrad", "row_wise/sgd"]
)
def test_the_next_steps_are_those_of_an_uninterrupted_training(
    case, one_rank, tmp_path
):
    config = settings(case)
    model, optimizer, more = saved(config, one_rank, tmp_path)
    again, its_optimizer = started(config, config.features, tmp_path, one_rank)
    without, no_state = started(config, config.features, tmp_path, one_rank, False)
    for each, its in ((model, optimizer), (again, its_optimizer), (without, no_state)):
        train(each, its, more, one_rank)
    wanted, found = full_state_dict(model), full_state_dict(again)
    assert len(wanted) > 15
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    other = full_state_dict(without)
    assert not all(torch.equal(other[name], wanted[name]) for name in wanted)
    state, its_state = (
        full_tensors(named_state(o)) for o in (optimizer, its_optimizer)
    )
    assert state.keys() == its_state.keys()
    assert all(torch.equal(state[name], its_state[name]) for name in state)


def test_the_first_step_moves_known_rows_little(one_rank, tmp_path):
    """A fresh Adagrad moves each row by the learning rate, whatever its gradient."""
    config = settings("auto")
    _, _, more = saved(config, one_rank, tmp_path)
    moved = {}
    for with_state in (True, False):
        model, optimizer = started(
            config, config.features, tmp_path, one_rank, with_state
        )
        before = full_state_dict(model)
        train(model, optimizer, more[:1], one_rank)
        after = full_state_dict(model)
        name = f"{BAGS}.t_item_id.weight"
        moved[with_state] = (after[name] - before[name]).abs().mean().item()
    assert moved[False] > 1.5 * moved[True] > 0


def test_creating_the_state_moves_no_weight(one_rank):
    model, optimizer = fresh(settings("data_parallel"), one_rank)
    before = full_state_dict(model)
    create_state(optimizer)
    after = full_state_dict(model)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert all(
        (value == 0).all() for value in full_tensors(named_state(optimizer)).values()
    )
    assert {group["lr"] for group in optimizer.param_groups} == {0.1, 1e-2}


def test_new_rows_and_new_features_start_afresh(one_rank, tmp_path):
    config = settings("auto")
    _, earlier_optimizer, _ = saved(config, one_rank, tmp_path)
    grown = settings(
        "auto",
        sparse=(
            HashedFeature(column="user_id", num_embeddings=40),  # other rows by hash
            IndexedFeature(column="item_id", num_embeddings=50),
            HashedFeature(column="tags", num_embeddings=40, weights="shares"),
            HashedFeature(column="tags", name="again", num_embeddings=40),
        ),
    )
    _, optimizer = started(grown, config.features, tmp_path, one_rank)
    earlier = full_tensors(named_state(earlier_optimizer))
    now = full_tensors(named_state(optimizer))

    def moments(state, name):
        return state[f"{BAGS}.t_{name}.weight/momentum1"]

    assert torch.equal(moments(now, "item_id")[:36], moments(earlier, "item_id"))
    assert moments(earlier, "item_id").max() > 0
    assert torch.equal(moments(now, "tags"), moments(earlier, "tags"))
    assert not moments(now, "item_id")[36:].any()
    assert not moments(now, "user_id").any()
    assert not moments(now, "again").any()
    # More features, more interactions: the first layer over them is another.
    first = "ranker.over_arch.model.0._mlp.0._linear"
    assert now[f"{first}.weight/step"] == 0
    assert now[f"{first}.bias/step"] == 5


def test_a_state_of_another_optimizer_is_left(one_rank, tmp_path, caplog):
    config = settings("auto")
    saved(config, one_rank, tmp_path)
    caplog.set_level("INFO", logger="learn_torchrec")
    other = replace(config, tables=replace(config.tables, optimizer="adagrad"))
    _, optimizer = started(other, config.features, tmp_path, one_rank)
    state = full_tensors(named_state(optimizer))
    assert not state[f"{BAGS}.t_tags.weight/momentum1"].any()
    assert f"state of {BAGS}.t_tags.weight is fresh" in caplog.text
