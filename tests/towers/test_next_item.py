"""Item ids and the next-item objective: the towers for short sequences."""

import dataclasses
import itertools
import json
import math

import numpy as np
import pyarrow as pa
import pytest
import torch
import torch.nn.functional as F
from random_sequences import sequence_set
from untrained_towers import statistics_of

from learn_torchrec.errors import UserError
from learn_torchrec.towers import task as task_module
from learn_torchrec.towers.batch import attach_content
from learn_torchrec.towers.build import build_objective, build_towers
from learn_torchrec.towers.candidates import CandidateSampler
from learn_torchrec.towers.config import TowersConfig, TowersTrainingConfig
from learn_torchrec.towers.encoders.architecture import EncoderShape
from learn_torchrec.towers.holdout import RetrievalTask, TowersSplit
from learn_torchrec.towers.ids import ItemIds, as_kjt
from learn_torchrec.towers.inference import encode_catalogue, encode_histories
from learn_torchrec.towers.model import TowersModelConfig
from learn_torchrec.towers.objectives import next_item as losses
from learn_torchrec.towers.objectives.config import LossConfig
from learn_torchrec.towers.objectives.next_item import NextItem, next_item_loss
from learn_torchrec.towers.repeat import RepeatedItems
from learn_torchrec.towers.retrieval import RetrievalConfig
from learn_torchrec.towers.sampling import SamplingConfig
from learn_torchrec.towers.task import TwinTowerTrain
from learn_torchrec.towers.training import train_towers
from learn_torchrec.towers.warm_start import InitialTowers
from learn_torchrec.training.optim import OptimizerConfig
from learn_torchrec.training.run_log import RunLog

CPU = torch.device("cpu")
SHAPE = EncoderShape(
    width=16, num_layers=1, num_heads=2, feed_forward_dim=32, vector_dim=8, dropout=0.0
)


def make_sequences(users=30, seed=0):
    random = np.random.default_rng(seed)
    lengths = random.integers(3, 9, users)
    return sequence_set(
        user_ids=pa.array([f"u{user}" for user in range(users)]),
        offsets=np.r_[0, np.cumsum(lengths)],
        items=random.integers(0, 30, lengths.sum()),
        times=np.concatenate([np.arange(length) for length in lengths]),
    )


def make_towers(store, inputs="content+id", item_tower="projection", shrinkage=0.0):
    torch.manual_seed(0)
    config = TowersModelConfig(
        encoder=SHAPE, inputs=inputs, item_tower=item_tower, id_shrinkage=shrinkage
    )
    counts = torch.arange(len(store))  # item 0 was never seen
    return build_towers(config, statistics_of(store, counts))


def config_of(**changes):
    return TowersConfig(
        model=TowersModelConfig(
            encoder=SHAPE, inputs="content+id", item_tower="projection"
        ),
        sampling=SamplingConfig(history_length=8, target_length=8),
        loss=LossConfig(objective="next_item"),
        optimizer=changes.pop("optimizer", OptimizerConfig(learning_rate=1e-2)),
        training=TowersTrainingConfig(
            **{"epochs": 3, "batch_size": 10, "table_learning_rate": 0.1} | changes
        ),
    )


def data_of(sequences, leave_out=1):
    task = RetrievalTask(sequences=sequences, history_lengths=sequences.lengths - 1)
    return TowersSplit(
        train=sequences.without_last(leave_out),
        cuts=None,
        validation=task,
        test=task,
        known_until=9,
    )


@pytest.mark.parametrize("num_candidates", [0, 12])
def test_batches_hold_the_pairs_and_the_candidates(one_rank, num_candidates):
    del one_rank
    sequences = make_sequences()
    objective = NextItem(
        LossConfig(objective="next_item", candidates=num_candidates),
        SamplingConfig(history_length=5),
        torch.ones(40),
    )
    batches = list(
        objective.batches(
            data_of(sequences, leave_out=0), batch_size=10, seed=0, epoch=1, start=0
        )
    )
    assert sorted(np.concatenate([b.users for b in batches])) == list(range(30))
    for batch in batches:
        rows = batch.item_rows
        assert len(rows) == len(set(rows.tolist()))
        candidates = rows[batch.candidates]
        assert len(set(candidates.tolist())) == len(candidates)
        assert 6 < len(candidates) <= 12 if num_candidates else len(candidates) == 40
        for user, anchors, positives in zip(
            batch.users, batch.anchors, batch.positives, strict=True
        ):
            events = sequences.of(int(user)).tolist()
            real = anchors >= 0
            history = rows[batch.history[anchors[real]]].tolist()
            target = rows[batch.target[positives[real]]].tolist()
            assert len(history) == min(len(events) - 1, 5)
            pairs = list(itertools.pairwise(events))
            taken = list(zip(history, target, strict=True))
            assert taken in [
                pairs[first : first + len(taken)] for first in range(len(pairs))
            ]


@pytest.mark.parametrize(("anchors", "logits"), [(2, 99), (4096, 1), (4096, 1 << 20)])
@pytest.mark.parametrize("num_candidates", [11, 5])
@pytest.mark.parametrize("with_offsets_and_repeats", [False, True])
@pytest.mark.parametrize("is_drawn", [False, True])
def test_the_loss_equals_the_naive_formula(
    anchors, logits, num_candidates, with_offsets_and_repeats, is_drawn, monkeypatch
):
    monkeypatch.setattr(losses, "_ANCHORS_IN_CHUNK", anchors)
    monkeypatch.setattr(losses, "_LOGITS_IN_CHUNK", logits)
    random = torch.Generator().manual_seed(1)
    users = F.normalize(torch.randn(4, 3, 5, generator=random), dim=-1)
    vectors = F.normalize(torch.randn(11, 5, generator=random), dim=-1)
    users.requires_grad_()
    vectors.requires_grad_()
    mask = torch.tensor([[1, 1, 0], [1, 0, 0], [1, 1, 1], [1, 1, 0]]).bool()
    positives = torch.randint(0, 11, (4, 3), generator=random)
    candidates = torch.randperm(11, generator=random)[:num_candidates]
    inclusion = torch.rand(11, generator=random) if is_drawn else torch.ones(11)
    offsets, repeated, met = None, None, torch.zeros(12, 11)
    if with_offsets_and_repeats:
        offsets = torch.randn(11, generator=random)
        anchor = torch.tensor([0, 0, 1, 3, 6, 7, 8, 9, 10])
        item = torch.randint(0, 11, (9,), generator=random)
        item[2] = positives[0, 1]  # one anchor's own positive is met again
        item[1] = (item[0] + 1) % 11
        repeated = RepeatedItems(anchor, item, torch.randn(9, generator=random))
        met = met.index_put((anchor, item), repeated.score)

    terms = []
    for user, position in mask.nonzero().tolist():
        own = positives[user, position]
        items = torch.stack([own, *(c for c in candidates if c != own)])
        similarity = vectors[items] @ users[user, position]
        logits = (similarity + met[user * 3 + position, items]) / 0.1
        if offsets is not None:
            logits = logits + offsets[items]
        logits[1:] -= inclusion[items[1:]].log()  # a drawn item stands for several
        terms.append(-logits.log_softmax(0)[0])
    expected = torch.stack(terms).mean()
    gradients = torch.autograd.grad(expected, (users, vectors))

    inputs = [x.detach().clone().requires_grad_() for x in (users, vectors)]
    loss = next_item_loss(
        *inputs,
        positives.where(mask, -1),
        candidates,
        temperature=0.1,
        offsets=offsets,
        repeated=repeated,
        log_inclusion=inclusion.log() if is_drawn else None,
    )
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-5)
    loss.backward()
    assert inputs[0].grad[~mask].abs().sum() == 0
    for value, naive in zip(inputs, gradients, strict=True):
        torch.testing.assert_close(value.grad, naive, atol=1e-5, rtol=1e-5)


def test_over_the_whole_catalogue_it_is_cross_entropy():
    users = torch.randn(6, 1, 4)
    vectors = torch.randn(9, 4)
    positives = torch.randint(0, 9, (6, 1))
    loss = next_item_loss(users, vectors, positives, torch.arange(9), temperature=0.5)
    expected = F.cross_entropy(users[:, 0] @ vectors.T / 0.5, positives[:, 0])
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("is_drawn", [False, True])
def test_a_positive_that_is_the_only_candidate_costs_nothing(is_drawn):
    users = torch.randn(1, 2, 4, requires_grad=True)
    positives, candidates = torch.tensor([[3, 3]]), torch.tensor([3])
    loss = next_item_loss(
        *(users, torch.randn(9, 4), positives, candidates),
        temperature=0.5,
        log_inclusion=torch.full((9,), 0.3).log() if is_drawn else None,
    )
    loss.backward()
    assert loss == 0
    assert (users.grad == 0).all()


@pytest.mark.parametrize(("candidates", "largest"), [(10, 5), (25, 2), (90, 1)])
def test_a_chunk_of_the_loss_is_bounded(candidates, largest, monkeypatch):
    monkeypatch.setattr(losses, "_ANCHORS_IN_CHUNK", 5)
    monkeypatch.setattr(losses, "_LOGITS_IN_CHUNK", 50)
    seen, one_chunk = [], losses._next_item_chunk

    def watched(users, *rest):
        seen.append(len(users))
        # A checkpoint keeps what it is given until the backward pass.
        for kept in (users, *rest[:3], *rest[3][:3]):
            assert kept.numel() <= max(users.numel(), rest[3].vectors.numel())
        return one_chunk(users, *rest)

    monkeypatch.setattr(losses, "_next_item_chunk", watched)
    next_item_loss(
        torch.randn(4, 3, 1),
        torch.randn(90, 1),
        torch.randint(0, 90, (4, 3)),
        torch.arange(candidates),
        temperature=0.5,
    )
    assert sum(seen) == 12
    assert max(seen) == largest


def test_shrinkage_scales_ids_by_their_counts():
    counts = torch.tensor([0, 1, 5, 95])
    ids = ItemIds(counts, dim=4, shrinkage=5.0)
    assert ids.trust.tolist() == pytest.approx([0, 1 / 6, 1 / 2, 0.95])
    rows = torch.tensor([3, 0, 2])
    looked_up = ids(as_kjt(rows))
    table = ids.table.embeddings["t_item_id"].weight
    torch.testing.assert_close(looked_up, table[rows] * ids.trust[rows, None])
    assert looked_up[1].abs().sum() == 0  # an item that was never seen has no id
    alike = ItemIds(counts, dim=4, shrinkage=0.0)
    assert alike.trust.tolist() == [0, 1, 1, 1]
    assert alike(as_kjt(rows))[1].abs().sum() == 0


@pytest.mark.parametrize("inputs", ["id", "content+id"])
@pytest.mark.parametrize("item_tower", ["self", "projection"])
def test_every_parameter_learns(store, one_rank, inputs, item_tower):
    del one_rank
    towers = make_towers(store, inputs, item_tower)
    config = LossConfig(objective="next_item")
    sampling = SamplingConfig(history_length=8)
    objective = NextItem(config, sampling, torch.ones(len(store)))
    task = TwinTowerTrain(towers, objective, config)
    ids = objective.batches(
        data_of(make_sequences(), leave_out=0),
        batch_size=30,
        seed=0,
        epoch=0,
        start=0,
    )
    batch = next(attach_content(ids, store, with_ids=True))
    task(batch)[0].backward()
    for name, parameter in task.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert parameter.grad.abs().sum() > 0, name
    assert (
        "towers.encoder.content_projection.weight" in dict(task.named_parameters())
    ) == (inputs != "id")
    assert not batch.content.requires_grad


def loss_of(towers, batch, **options):
    """Return the loss of a batch at a temperature of 0.1."""
    return next_item_loss(
        towers.encode_anchors(batch, None),
        towers.encode_items(batch.content, torch.arange(len(batch.item_rows))),
        batch.target[batch.positives.clamp(min=0)].where(batch.anchors >= 0, -1),
        batch.candidates,
        temperature=0.1,
        **options,
    )


@pytest.mark.parametrize(("adjustment", "weight"), [(0.5, 1.0), (0.5, 0.25), (0, 0.25)])
def test_offsets_are_log_shares_of_events_and_weights_of_the_unseen(
    store, one_rank, adjustment, weight
):
    del one_rank
    towers = make_towers(store, "content", "self").eval()
    config = LossConfig(
        objective="next_item",
        temperature=0.1,
        logit_adjustment=adjustment,
        unseen_weight=weight,
    )
    # Items 0 to 39 have so many events: 0 counts as 1, so that all are 781.
    objective = NextItem(config, SamplingConfig(history_length=8), torch.arange(40))
    data = data_of(make_sequences(), leave_out=0)
    ids = objective.batches(data, batch_size=30, seed=0, epoch=0, start=0)
    batch = next(attach_content(ids, store))
    share = torch.from_numpy(np.maximum(batch.item_rows.numpy(), 1) / 781)
    unseen = batch.item_rows == 0
    assert unseen.any()
    expected = loss_of(
        towers,
        batch,
        offsets=adjustment * share.log().float() + unseen * math.log(weight),
    )
    task = TwinTowerTrain(towers, objective, config)
    torch.testing.assert_close(task(batch)[0], expected)


def test_drawn_candidates_stand_for_the_catalogue(store, one_rank):
    del one_rank
    towers = make_towers(store, "content", "self").eval()
    config = LossConfig(objective="next_item", temperature=0.1, candidates=9)
    objective = NextItem(config, SamplingConfig(history_length=8), torch.arange(40))
    data = data_of(make_sequences(), leave_out=0)
    ids = objective.batches(data, batch_size=30, seed=0, epoch=0, start=0)
    batch = next(attach_content(ids, store))
    drawn = CandidateSampler(np.arange(40), 9)
    rows = batch.item_rows[batch.candidates].tolist()
    assert rows == drawn.draw(0, 0, 0).tolist()
    expected = loss_of(
        towers,
        batch,
        log_inclusion=torch.from_numpy(drawn.inclusion).log()[batch.item_rows].float(),
    )
    task = TwinTowerTrain(towers, objective, config)
    torch.testing.assert_close(task(batch)[0], expected)


def test_training_counts_the_events_of_the_items(store, one_rank, tmp_path):
    """The shrinkage factor of an id is n / (n + k)."""
    del one_rank
    sequences, config = make_sequences(), config_of(epochs=1)
    model = dataclasses.replace(config.model, id_shrinkage=3.0)
    with RunLog(tmp_path / "towers") as log:
        trained = train_towers(
            dataclasses.replace(config, model=model),
            data_of(sequences),
            store,
            RetrievalConfig(ks=(1,)),
            CPU,
            log,
        )
    events = data_of(sequences).train.packed().items.tolist()
    counts = [events.count(item) for item in range(len(store))]
    assert trained.state["ids.trust"].tolist() == pytest.approx(
        [count / (count + 3) for count in counts]
    )
    assert trained.facts["actions"] == ("like",)


def test_the_projection_tower_skips_the_transformer(store):
    towers = make_towers(store).eval()
    content = torch.from_numpy(store.gather(np.arange(3)))
    id_vectors = towers.id_vectors(as_kjt(torch.arange(3)))
    items = torch.tensor([2, 0])
    vectors = towers.encode_items(content, items, id_vectors)
    embedded = towers.encoder.content_projection(towers.encoder.standardized(content))
    expected = towers.encoder.vector_projection(embedded + id_vectors)[items]
    torch.testing.assert_close(vectors, F.normalize(expected, dim=-1))


def test_inference_reads_the_ids(store):
    towers, sequences = make_towers(store).eval(), make_sequences(4)
    ends = sequences.offsets[1:] - 1
    items = encode_catalogue(towers, store, np.arange(len(store)), CPU)
    users = encode_histories(towers, store, sequences, ends, 8, CPU)
    with torch.no_grad():
        towers.ids.table.embeddings["t_item_id"].weight.normal_()
    assert not torch.allclose(
        items, encode_catalogue(towers, store, np.arange(len(store)), CPU)
    )
    again = encode_histories(towers, store, sequences, ends, 8, CPU)
    assert not torch.allclose(users, again)
    rows = sequences.of(2)
    content = torch.from_numpy(store.gather(rows))
    alone = towers.encoder(
        content,
        torch.arange(len(rows)),
        torch.tensor([len(rows)]),
        id_vectors=towers.id_vectors(as_kjt(torch.from_numpy(rows))),
    )
    torch.testing.assert_close(again[2], alone[-1])


def test_training_finds_an_order_and_comes_back_from_disk(store, one_rank, tmp_path):
    """Every user walks the same ring of items, so that the next one is certain."""
    del one_rank
    users, length = 60, 6
    starts = np.random.default_rng(0).integers(0, 20, users)
    items = (starts[:, None] + np.arange(length)).flatten() % 20
    sequences = sequence_set(
        user_ids=pa.array(range(users)),
        offsets=np.arange(users + 1) * length,
        items=items,
        times=np.tile(np.arange(length), users),
    )
    config = config_of(epochs=30)
    with RunLog(tmp_path / "towers") as log:
        trained = train_towers(
            config, data_of(sequences), store, RetrievalConfig(ks=(1, 5)), CPU, log
        )
    assert trained.facts["validation"]["r@1"] > 0.9
    assert trained.state["ids.table.embeddings.t_item_id.weight"].shape == (40, 16)
    lines = [json.loads(line) for line in log.path.read_text().splitlines()]
    assert {"loss", "users_per_s", "tokens_per_s", "peak_share", "peak_memory_mb"} <= (
        lines[-1].keys()
    )


def test_training_may_start_from_given_weights(store, one_rank, tmp_path):
    del one_rank
    encoder = make_towers(store).encoder
    torch.nn.init.normal_(encoder.vector_projection.weight)
    optimizer = OptimizerConfig(learning_rate=1e-12)
    with RunLog(tmp_path / "towers") as log:
        trained = train_towers(
            config_of(optimizer=optimizer, epochs=1),
            data_of(make_sequences()),
            store,
            RetrievalConfig(ks=(1,)),
            CPU,
            log,
            InitialTowers(encoder.state_dict()),
        )
    for name, value in encoder.state_dict().items():
        torch.testing.assert_close(trained.state[f"encoder.{name}"], value)


def test_training_keeps_a_learned_temperature_in_its_range(
    store, one_rank, tmp_path, monkeypatch
):
    del one_rank
    monkeypatch.setattr(task_module, "MIN_TEMPERATURE", 0.3)
    config = config_of(optimizer=OptimizerConfig(learning_rate=1e-6), epochs=1)
    loss = dataclasses.replace(config.loss, temperature=0.1, learn_temperature=True)
    with RunLog(tmp_path / "towers") as log:
        train_towers(
            dataclasses.replace(config, loss=loss),
            data_of(make_sequences()),
            store,
            RetrievalConfig(ks=(1,)),
            CPU,
            log,
        )
    (line,) = map(json.loads, log.path.read_text().splitlines())
    assert line["temperature"] == pytest.approx(0.3, abs=1e-4)


def test_a_loss_that_is_not_finite_stops_and_names_the_users(store, one_rank, tmp_path):
    del one_rank
    optimizer = OptimizerConfig(learning_rate=1e9, max_grad_norm=0.0, warmup=0.0)
    config = config_of(optimizer=optimizer, table_learning_rate=1e9)
    with (
        RunLog(tmp_path / "towers") as log,
        pytest.raises(UserError, match=r"the loss is nan in a batch of 10 users.*'u"),
    ):
        train_towers(
            config,
            data_of(make_sequences()),
            store,
            RetrievalConfig(ks=(1,)),
            CPU,
            log,
        )
    (path,) = tmp_path.glob("logs/*.non_finite.0.json")
    body = json.loads(path.read_text())
    assert len(body["users"]) == 10
    assert set(body["users"]) <= {f"u{user}" for user in range(30)}
    assert not math.isfinite(float(body["loss"]))


def test_wrong_settings_are_named(store, one_rank, tmp_path):
    del one_rank
    with pytest.raises(ValueError, match="item_tower: content cannot use ids"):
        TowersModelConfig(inputs="id", item_tower="content")
    with pytest.raises(ValueError, match="nothing to correct"):
        LossConfig(objective="next_item", sampling_correction=True)
    causal = TowersConfig(loss=LossConfig(objective="next_item"))
    split = TowersConfig(sampling=SamplingConfig(cut="split", min_history=1))
    for config, message in (
        (causal, "set towers.model.item_tower to self or projection"),
        (split, r"only split\.holdout=time"),
    ):
        with RunLog(tmp_path / "t") as log, pytest.raises(UserError, match=message):
            train_towers(
                config,
                data_of(make_sequences()),
                store,
                RetrievalConfig(),
                CPU,
                log,
            )


def test_users_on_one_side_of_the_split_time_are_cut_at_random(store):
    sequences = make_sequences()
    data = dataclasses.replace(
        data_of(sequences), train=sequences, cuts=np.arange(30) % 10
    )
    config = TowersConfig(
        model=TowersModelConfig(encoder=SHAPE),
        sampling=SamplingConfig(cut="split", min_history=2),
    )
    objective = build_objective(config, torch.ones(len(store)))
    cuts = objective.cuts(data)
    assert len(cuts) == 30
    for cut, given, length in zip(cuts, data.cuts, sequences.lengths, strict=True):
        assert cut == (given if 2 <= given < length else 0)
