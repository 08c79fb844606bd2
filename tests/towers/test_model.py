import numpy as np
import pyarrow as pa
import pytest
import torch
from random_sequences import sequence_set

from learn_torchrec.datasets.sequences import SequenceSet
from learn_torchrec.towers.batch import attach_content, collate
from learn_torchrec.towers.encoder import PreferenceEncoder
from learn_torchrec.towers.encoders.architecture import EncoderShape
from learn_torchrec.towers.holdout import TowersSplit
from learn_torchrec.towers.model import TwinTower
from learn_torchrec.towers.objectives.config import LossConfig
from learn_torchrec.towers.objectives.dense_all_action import (
    DenseAllAction,
    dense_all_action_loss,
)
from learn_torchrec.towers.sampling import SamplingConfig, sample_user
from learn_torchrec.towers.task import TwinTowerTrain

SAMPLING = SamplingConfig(
    history_length=8, target_length=5, num_history_samples=3, num_target_samples=2
)


def make_sequences(users=12):
    random = np.random.default_rng(1)
    lengths = random.integers(5, 20, users)
    return SequenceSet.of_offsets(
        user_ids=pa.array(range(users)),
        offsets=np.r_[0, np.cumsum(lengths)],
        items=random.integers(0, 40, lengths.sum()),
        times=np.concatenate([np.arange(length) * 60 for length in lengths]),
        actions=random.integers(0, 3, lengths.sum()).astype(np.int16),
        action_names=("like", "buy", "click"),
    )


def make_encoder(store, vector_dim=8):
    torch.manual_seed(0)
    shape = EncoderShape(
        width=16, num_layers=2, num_heads=2, feed_forward_dim=32, vector_dim=vector_dim
    )
    mean, std = (torch.from_numpy(x).float() for x in (store.mean, store.std))
    return PreferenceEncoder(mean, std, shape)


def make_task(store, item_tower="causal", **loss):
    return task_of(TwinTower(make_encoder(store), item_tower), **loss)


def task_of(towers, **loss):
    config = LossConfig(**loss)
    objective = DenseAllAction(config, SAMPLING, torch.arange(40))
    return TwinTowerTrain(towers, objective, config)


def one_batch(store, sequences, users=range(12)):
    samples = [sample_user(sequences.lengths[u], SAMPLING, 0, 0, u) for u in users]
    ids = collate(sequences, np.array(users), samples, 3, 2)
    assert ids.content is None
    return next(attach_content([ids], store)), samples


def test_batches_carry_each_distinct_item_once(store):
    sequences = make_sequences()
    batch, samples = one_batch(store, sequences)
    rows = batch.item_rows
    assert len(rows) == len(set(rows.tolist()))
    assert batch.content.dtype == torch.float16
    assert np.array_equal(batch.content.numpy(), store.gather(rows.numpy()))
    first = sequences.offsets
    history = np.concatenate(
        [start + s.history for start, s in zip(first, samples, strict=False)]
    )
    target = np.concatenate(
        [start + s.target for start, s in zip(first, samples, strict=False)]
    )
    assert rows[batch.history].tolist() == sequences.items[history].tolist()
    assert batch.history_times.tolist() == sequences.times[history].tolist()
    assert batch.history_actions.tolist() == sequences.actions[history].tolist()
    assert batch.target_times.tolist() == sequences.times[target].tolist()
    assert batch.target_actions.tolist() == sequences.actions[target].tolist()
    for user, sample in enumerate(samples):
        events = sequences.of(user)
        anchors = batch.anchors[user]
        anchors = anchors[anchors >= 0]
        assert (
            rows[batch.history[anchors]].tolist()
            == events[sample.history[sample.anchors]].tolist()
        )
        positives = batch.positives[user]
        positives = positives[positives >= 0]
        assert (
            rows[batch.target[positives]].tolist()
            == events[sample.target[sample.positives]].tolist()
        )


@pytest.mark.parametrize("item_tower", ["causal", "self"])
@pytest.mark.parametrize("correction", [False, True])
def test_every_parameter_learns_and_content_does_not(store, item_tower, correction):
    task = make_task(store, item_tower, sampling_correction=correction)
    batch, _ = one_batch(store, make_sequences())
    content = batch.content.clone()
    loss, (detached, users) = task(batch)
    loss.backward()
    assert loss.item() == detached.item()
    assert not detached.requires_grad
    assert users.tolist() == list(range(12))
    position_rows = int(batch.history_lengths.max())
    for name, parameter in task.named_parameters():
        if not parameter.requires_grad:
            assert name == "log_temperature"  # fixed unless asked for
            continue
        gradient = parameter.grad
        assert gradient is not None, name
        if name.endswith("positions.weight"):
            gradient = gradient[:position_rows]
        if name.endswith("query_key_value.bias"):  # a key's bias moves no softmax
            query, _, value = gradient.chunk(3)
            gradient = torch.cat([query, value])
        assert (gradient != 0).float().mean() > 0.9, name
    assert not batch.content.requires_grad
    assert torch.equal(batch.content, content)


def test_the_correction_subtracts_the_log_share_of_the_training_events(store):
    """Items 0 to 39 have so many events: 0 counts as 1, so that all are 781."""
    batch, samples = one_batch(store, make_sequences())
    task = make_task(store, temperature=0.1, sampling_correction=True).eval()
    share = np.maximum(np.arange(40), 1) / 781
    padding = batch.positives < 0
    target = batch.item_rows[batch.target]
    items = target[batch.positives.clamp(min=0)].masked_fill(padding, -1)
    expected = dense_all_action_loss(
        *task.towers(batch),
        batch.anchors >= 0,
        items,
        temperature=0.1,
        offsets=torch.from_numpy(-np.log(share)).float()[items.clamp(min=0)],
        targets=(
            torch.arange(12).repeat_interleave(
                torch.tensor([len(sample.target) for sample in samples])
            ),
            target,
        ),
    )
    torch.testing.assert_close(task(batch)[0], expected)


def test_the_content_tower_is_the_content(store):
    encoder = make_encoder(store, vector_dim=store.dim)
    towers = TwinTower(encoder, "content").eval()
    batch, _ = one_batch(store, make_sequences())
    raw = (batch.content.double() - torch.from_numpy(store.mean)) / torch.from_numpy(
        store.std
    )
    expected = torch.nn.functional.normalize(raw, dim=-1).float()
    _, vectors = towers(batch)
    real = batch.positives >= 0
    torch.testing.assert_close(
        vectors[real], expected[batch.target[batch.positives[real]]]
    )
    task_of(towers)(batch)[0].backward()
    assert encoder.vector_projection.weight.grad.abs().sum() > 0


def test_a_learned_temperature_learns_and_a_fixed_one_stays(store):
    batch, _ = one_batch(store, make_sequences())
    for learned in (True, False):
        task = make_task(store, temperature=0.2, learn_temperature=learned)
        assert task.temperature().item() == pytest.approx(0.2)
        task(batch)[0].backward()
        gradient = task.log_temperature.grad
        assert (gradient is not None and gradient != 0) == learned


def test_a_fixed_temperature_is_used_as_it_is(store):
    task = make_task(store, temperature=0.005)
    task.bound_temperature()
    assert task.temperature().item() == pytest.approx(0.005)
    with pytest.raises(ValueError, match=r"temperature: must be at least 0\.01 to be"):
        LossConfig(temperature=0.005, learn_temperature=True)


def test_a_learned_temperature_stays_in_its_range_and_rises_again(store):
    """Vectors that know nothing want a high temperature: less is lost on them."""
    batch, _ = one_batch(store, make_sequences())
    task = make_task(store, temperature=0.011, learn_temperature=True)
    with torch.no_grad():
        task.log_temperature.fill_(-100.0)  # one step too far
    task.bound_temperature()
    assert task.temperature().item() == pytest.approx(0.01)
    optimizer = torch.optim.SGD([task.log_temperature], lr=0.01)
    for _ in range(20):
        optimizer.zero_grad()
        task(batch)[0].backward()
        optimizer.step()
        task.bound_temperature()
    assert task.temperature().item() > 0.02


def test_item_towers_differ_only_in_context(store):
    batch, _ = one_batch(store, make_sequences())
    causal, alone = (
        make_task(store, kind).towers.eval()(batch)[1] for kind in ("causal", "self")
    )
    first = batch.positives == (
        batch.target_lengths.cumsum(0) - batch.target_lengths
    ).unsqueeze(1)
    assert first.any()
    torch.testing.assert_close(causal[first], alone[first])
    later = (batch.positives >= 0) & ~first
    assert (causal[later] - alone[later]).abs().max() > 1e-3


def test_training_learns_a_planted_preference(store, one_rank):
    """Users like items of one parity; their content says which it is."""
    del one_rank
    torch.manual_seed(0)
    random = np.random.default_rng(0)
    users, length = 64, 12
    rows = np.arange(40)
    items = np.concatenate(
        [random.choice(rows[rows % 2 == user % 2], length) for user in range(users)]
    )
    sequences = sequence_set(
        user_ids=pa.array(range(users)),
        offsets=np.arange(users + 1) * length,
        items=items,
        times=np.tile(np.arange(length), users),
    )
    task = make_task(store)
    optimizer = torch.optim.AdamW(task.parameters(), lr=1e-2)
    data = TowersSplit(
        train=sequences, cuts=None, validation=None, test=None, known_until=length
    )
    for epoch in range(60):
        ids = task.objective.batches(data, batch_size=32, seed=0, epoch=epoch, start=0)
        for batch in attach_content(ids, store):
            optimizer.zero_grad()
            task(batch)[0].backward()
            optimizer.step()
    towers = task.towers.eval()
    content = torch.from_numpy(store.gather(rows))
    with torch.no_grad():
        vectors = towers.encode_items(content, torch.from_numpy(rows))
        user = towers.encoder(content, torch.tensor([0, 2, 4]), torch.tensor([3]))[-1]
    scores = vectors @ user
    assert scores[::2].mean() > scores[1::2].mean() + 0.2
