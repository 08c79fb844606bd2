"""Vectors that are a residual on the content's similarity."""

import dataclasses

import numpy as np
import pyarrow as pa
import pytest
import torch
from random_sequences import make_sequences, sequence_set
from untrained_towers import statistics_of

from learn_torchrec import config as configs
from learn_torchrec.content.store import KIND as KIND_CONTENT
from learn_torchrec.content.store import ContentStore, write_content_store
from learn_torchrec.datasets.split import SplitConfig
from learn_torchrec.errors import UserError
from learn_torchrec.publish import write_artifact
from learn_torchrec.towers.artifact import (
    KIND_TOWERS,
    earlier_towers,
    load_towers,
    save_towers,
)
from learn_torchrec.towers.build import build_task, build_towers
from learn_torchrec.towers.config import TowersConfig
from learn_torchrec.towers.encoders.architecture import EncoderShape
from learn_torchrec.towers.inference import encode_catalogue, encode_histories
from learn_torchrec.towers.model import TowersModelConfig
from learn_torchrec.towers.statistics import TowerStatistics

CPU = torch.device("cpu")
LENGTH = 6


def config_of(store, vector_dim=None, **changes):
    """Settings of small towers; as many components as content dims by default."""
    shape = EncoderShape(
        width=16,
        num_layers=1,
        num_heads=2,
        feed_forward_dim=16,
        vector_dim=vector_dim or store.dim,
    )
    return TowersModelConfig(encoder=shape, residual=True, **changes)


def unit(vectors):
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)


def standardized(store):
    vectors = store.gather(np.arange(len(store))).astype(np.float64)
    return (vectors - store.mean) / store.std


@pytest.mark.parametrize("item_tower", ["causal", "self", "projection"])
@pytest.mark.parametrize("inputs", ["content", "content+id"])
@pytest.mark.parametrize("vector_dim", [3, None, 64])
def test_untrained_scores_are_content_similarities(
    store, one_rank, item_tower, inputs, vector_dim
):
    del one_rank
    sequences = make_sequences([3, 9, 1, 14])
    config = config_of(store, vector_dim, item_tower=item_tower, inputs=inputs)
    statistics = TowerStatistics.measure(config, store, sequences)
    towers = build_towers(config, statistics).eval()
    items = encode_catalogue(towers, store, np.arange(len(store)), CPU)
    events = np.arange(sequences.num_events)
    users = encode_histories(towers, store, sequences, events, LENGTH, CPU)
    assert items.shape[1] == config.encoder.vector_dim

    content = standardized(store)
    directions = np.linalg.svd(content, full_matrices=False)[2]
    known = unit(content @ directions[:vector_dim].T)
    for event in events:
        start = max(sequences.starts[sequences.owners(event)], event + 1 - LENGTH)
        mean = known[sequences.items[start : event + 1]].mean(0)
        expected = known @ unit(mean)
        assert (items @ users[event]).numpy() == pytest.approx(expected, abs=1e-4)


def test_every_parameter_learns_from_the_second_step_on(store, one_rank):
    del one_rank
    sequences = make_sequences([9, 12, 7, 20])
    config = config_of(store, item_tower="self")
    statistics = TowerStatistics.measure(config, store, sequences)
    task = build_task(TowersConfig(model=config), statistics)
    encoder = task.towers.encoder
    content = torch.from_numpy(store.gather(sequences.items[:20]))
    items, wanted = torch.arange(20), torch.randn(20, store.dim)
    optimizer = torch.optim.SGD(encoder.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        vectors = encoder(content, items, torch.tensor([12, 8]))
        (vectors * wanted).sum().backward()
        optimizer.step()
    for name, parameter in encoder.named_parameters():
        assert parameter.grad.abs().sum() > 0, name


def test_components_are_no_parameters_and_survive_an_artefact(
    store, one_rank, tmp_path
):
    del one_rank
    sequences = make_sequences([9, 12])
    config = config_of(store, vector_dim=4, inputs="content+id", item_tower="self")
    statistics = TowerStatistics.measure(config, store, sequences)
    towers = build_towers(config, statistics).eval()
    assert "encoder.components" not in dict(towers.named_parameters())
    torch.nn.init.normal_(towers.encoder.vector_projection.weight, std=0.1)
    settings = {
        "towers": configs.to_dict(TowersConfig(model=config)),
        "split": configs.to_dict(SplitConfig()),
    }
    made = tmp_path / "towers"
    with write_artifact(made, kind=KIND_TOWERS, config=settings, inputs={}) as working:
        save_towers(working, towers.state_dict(), store.item_ids)
    loaded, _, _ = load_towers(made, CPU, store)
    rows = np.arange(len(store))
    kept, found = (encode_catalogue(t, store, rows, CPU) for t in (towers, loaded))
    assert torch.equal(kept, found)

    initial = earlier_towers(made, store)
    again = build_task(TowersConfig(model=config), statistics, initial).towers
    assert torch.equal(again.encoder.components, towers.encoder.components)
    without = dataclasses.replace(config, residual=False)
    with pytest.raises(UserError, match=r"components .* towers\.model\.residual"):
        build_task(TowersConfig(model=without), statistics_of(store), initial)


@pytest.mark.parametrize(
    "changes",
    [{"inputs": "id"}, {"standardize": False}, {"item_tower": "content"}],
    ids=str,
)
def test_what_has_no_standardized_content_is_refused(changes):
    with pytest.raises(ValueError, match="residual: "):
        TowersModelConfig(residual=True, **changes)


def test_equal_texts_leave_nothing_to_compare(tmp_path, one_rank):
    """Without a difference in content every similarity is the same, and finite."""
    del one_rank
    alike = np.ones((5, 8), np.float16)
    made = {"kind": KIND_CONTENT, "config": {}, "inputs": {}}
    with write_artifact(tmp_path / "alike", **made) as working:
        write_content_store(working, pa.array(range(5)), alike)
    store = ContentStore.open(tmp_path / "alike")
    sequences = sequence_set(
        user_ids=pa.array([0]), offsets=[0, 3], items=np.arange(3), times=np.arange(3)
    )
    config = config_of(store)
    statistics = TowerStatistics.measure(config, store, sequences)
    towers = build_towers(config, statistics).eval()
    assert torch.isfinite(encode_catalogue(towers, store, np.arange(5), CPU)).all()
