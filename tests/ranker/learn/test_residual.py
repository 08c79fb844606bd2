"""LEARN's part of the logit: zero at first, trained apart, and blind to later rows."""

import dataclasses

import numpy as np
import pyarrow as pa
import pytest
import torch
from torchrec import EmbeddingBagCollection, EmbeddingCollection

from learn_torchrec.config import replace
from learn_torchrec.datasets.loading.in_memory import TableRows
from learn_torchrec.datasets.sequences import SequenceSet
from learn_torchrec.ids import IdIndex
from learn_torchrec.jagged import offsets_of
from learn_torchrec.ranker.build import build_task
from learn_torchrec.ranker.config import (
    RankerConfig,
    RankerModelConfig,
    RankerTrainingConfig,
)
from learn_torchrec.ranker.features import FeaturesConfig, HashedFeature
from learn_torchrec.ranker.impressions import Impressions
from learn_torchrec.ranker.learn.config import LearnConfig, StatisticsConfig
from learn_torchrec.ranker.learn.histories import Histories
from learn_torchrec.ranker.learn.inputs import LearnInputs
from learn_torchrec.ranker.learn.neighbours import NeighbourRates, PastLabels
from learn_torchrec.ranker.learn.reduced import ReducedContent
from learn_torchrec.ranker.learn.statistics import TargetStatistics, mean_of_history
from learn_torchrec.ranker.learn.vectors import LearnVectors
from learn_torchrec.ranker.scoring import score
from learn_torchrec.ranker.training import train_ranker
from learn_torchrec.training.optim import OptimizerConfig
from learn_torchrec.training.sharding import init_tables
from learn_torchrec.vector_table import VectorTable

ROWS, USERS, ITEMS = 256, 12, 30
SPARSE = tuple(
    HashedFeature(column=name, num_embeddings=32) for name in ("user_id", "item_id")
)
EVERYTHING = LearnConfig(
    statistics=StatisticsConfig(spaces=("content", "towers")),
    neighbours=3,
    hidden_layers=(8,),
    projected_dim=4,
)


def config(learn=EVERYTHING, **training):
    return RankerConfig(
        features=FeaturesConfig(sparse=SPARSE),
        model=RankerModelConfig(embedding_dim=8, dense_layers=(8,), over_layers=(8,)),
        learn=learn,
        optimizer=OptimizerConfig(learning_rate=1e-2, weight_decay=0.1),
        training=RankerTrainingConfig(batch_size=32, **training),
    )


def table(seed=0):
    random = np.random.default_rng(seed)
    return pa.table(
        {
            "user_id": random.integers(0, USERS + 2, size=ROWS),
            "item_id": random.integers(0, ITEMS + 2, size=ROWS),
            "timestamp": np.sort(random.integers(50, 100, size=ROWS)),
            "label": random.integers(0, 2, size=ROWS),
        }
    )


def sequences(seed=0):
    random = np.random.default_rng(seed)
    lengths = random.integers(0, 20, size=USERS)
    times = [np.sort(random.integers(0, 100, size=n)) for n in lengths]
    return SequenceSet.of_offsets(
        user_ids=pa.array(range(USERS)),
        offsets=offsets_of(lengths),
        items=random.integers(0, ITEMS, size=lengths.sum()),
        times=np.concatenate(times),
        actions=np.zeros(lengths.sum(), np.int16),
        action_names=("buy",),
    )


def inputs(learn=EVERYTHING, rows=None, known=None, seed=0):
    random = np.random.default_rng(seed)
    unit = random.normal(size=(ITEMS, 6))
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    index = IdIndex.build(pa.array(range(ITEMS)), "items")
    content = ReducedContent.build(index, unit.astype(np.float16), 5)
    known = sequences() if known is None else known
    owners = np.repeat(np.arange(USERS), known.lengths)
    users = VectorTable.build(
        ids=pa.array(owners),
        times=known.times,
        vectors=random.normal(size=(len(owners), 4)),
    )
    items = VectorTable.build(
        ids=pa.array(range(ITEMS)), vectors=random.normal(size=(ITEMS, 4))
    )
    rows = table() if rows is None else rows
    shown = rows.filter(pa.array(rows["item_id"].to_numpy() < ITEMS))
    past = PastLabels.of(
        content.texts[shown["item_id"].to_numpy()].astype(np.int64),
        shown["item_id"].to_numpy(),
        shown["timestamp"].to_numpy(),
        shown["label"].to_numpy(),
    )
    return LearnInputs(
        LearnVectors(users=users, items=items, manifest=None, content=content),
        content,
        learn,
        Histories.build(known),
        NeighbourRates(content, [past], learn.neighbours),
    )


def impressions(settings, given, rows=None):
    source = TableRows(table() if rows is None else rows, None, "rows")
    return Impressions(source, settings, given)


def first_batch(settings, given, rows=None):
    return next(iter(impressions(settings, given, rows).batches(0)))


class Silent:
    """A run log that nobody reads."""

    path = None

    def write(self, **values) -> None:
        """Drop the values."""

    def progress(self, *values) -> None:
        """Drop the values."""


def materialized(settings, shape):
    """Build the task unsharded, its tables filled from a seed."""
    task = build_task(settings, shape, torch.device("cpu"))
    for module in task.modules():
        if isinstance(module, EmbeddingBagCollection | EmbeddingCollection):
            module.to_empty(device="cpu")
    init_tables(task, seed=9)
    return task


@pytest.mark.usefixtures("one_rank")
@pytest.mark.parametrize("attention", ["off", "content", "content+id", "id"])
@pytest.mark.parametrize("alone", [False, True])
def test_at_step_0_on_is_off_to_the_bit(alone, attention):
    settings = config(replace(EVERYTHING, alone=alone, attention=attention))
    given = inputs(settings.learn)
    on, off = materialized(settings, given.shape), materialized(settings, None)
    batch, plain = first_batch(settings, given), first_batch(settings, None)
    _, with_learn = on(batch)
    loss, without = off(plain)
    assert torch.equal(with_learn.logits["cvr"], without.logits["cvr"])
    if alone:
        assert torch.equal(with_learn.loss, 2 * loss)
    names = {name for name, _ in off.named_parameters()}
    added = [n for n, _ in on.named_parameters() if n not in names]
    assert added
    assert all(".residual." in name or "history_ids" in name for name in added)


@pytest.mark.usefixtures("one_rank")
@pytest.mark.parametrize("attention", ["off", "content", "content+id", "id"])
def test_gradients_reach_all_of_the_residual_and_no_vector(attention):
    settings = config(replace(EVERYTHING, attention=attention))
    given = inputs(settings.learn)
    task = materialized(settings, given.shape)
    last = task.ranker.residual.network[-1]
    torch.nn.init.normal_(last.weight)
    batch = first_batch(settings, given)
    task(batch)[0].backward()
    for name, parameter in task.named_parameters():
        assert (parameter.grad != 0).any(), name
    learn = batch.learn
    for tensor in (learn.user_vectors, learn.item_vectors, learn.neighbour_rates):
        assert not tensor.requires_grad


@pytest.mark.usefixtures("one_rank")
def test_the_residual_does_not_train_the_baseline_through_its_input():
    settings = config(EVERYTHING)
    given = inputs(settings.learn)
    task = materialized(settings, given.shape)
    dense = torch.randn(32, 8, requires_grad=True)
    batch = first_batch(settings, given)
    torch.nn.init.normal_(task.ranker.residual.network[-1].weight)
    added = task.ranker.residual(batch.learn, dense)
    added["cvr"].sum().backward()
    assert dense.grad is None


def test_a_baseline_trained_alone_is_the_one_without_learn(one_rank):
    settings = config(replace(EVERYTHING, alone=True), epochs=3)
    trained = {}
    for name, given in (("on", inputs(settings.learn)), ("off", None)):
        model, *_ = train_ranker(
            settings, impressions(settings, given), one_rank, Silent()
        )
        trained[name] = model.state_dict()
    on, off = trained["on"], trained["off"]
    assert set(off) < set(on)
    for name, value in off.items():
        one, other = value, on[name]
        if hasattr(value, "local_shards"):
            one, other = (v.local_shards()[0].tensor for v in (value, on[name]))
        assert torch.equal(one, other), name


@pytest.mark.parametrize("attention", ["off", "content+id", "id"])
def test_scores_of_one_row_do_not_depend_on_the_batch(attention, one_rank):
    settings = config(replace(EVERYTHING, attention=attention), epochs=2)
    given = inputs(settings.learn)
    model, *_ = train_ranker(settings, impressions(settings, given), one_rank, Silent())
    whole, small = (
        score(model, impressions(settings, given), size, one_rank)["score"]
        for size in (256, 16)
    )
    np.testing.assert_allclose(whole, small, rtol=1e-5)


def known_of(given, rows, in_memory):
    """Return all that LEARN knows of rows, however it is computed."""
    learn = given.batch(given.finder(in_memory)(rows, "rows"))
    assert (learn.history is None) == in_memory
    found = {name: getattr(learn, name) for name in ("statistics", "history_means")}
    if not in_memory:
        found["statistics"] = TargetStatistics(given.config.statistics)(learn.history)
        found["history_means"] = mean_of_history(learn.history)
    names = ("has_vectors", "user_vectors", "item_vectors", "candidates")
    names += ("neighbour_rates",)
    return found | {name: getattr(learn, name) for name in names}


def test_statistics_computed_with_the_rows_are_those_of_the_model():
    given = inputs()
    with_rows, in_model = (known_of(given, table(), kept) for kept in (True, False))
    for name, value in with_rows.items():
        torch.testing.assert_close(value, in_model[name], msg=name)


@pytest.mark.parametrize("in_memory", [True, False])
def test_what_happens_at_a_row_or_later_changes_none_of_its_inputs(in_memory):
    """Scrambled events, labels and items from a moment on, bit for bit."""
    rows, known = table(), sequences()
    moment, random = 75, np.random.default_rng(3)
    earlier = rows.filter(pa.array(rows["timestamp"].to_numpy() <= moment))
    later = known.times >= moment
    scrambled = dataclasses.replace(
        known,
        items=np.where(later, random.permutation(known.items), known.items),
        times=np.where(later, 1000, known.times),
    )
    is_later = rows["timestamp"].to_numpy() >= moment
    labels = np.where(is_later, 1 - rows["label"].to_numpy(), rows["label"].to_numpy())
    items = np.where(is_later, rows["item_id"].to_numpy()[::-1], rows["item_id"])
    other_rows = rows.set_column(3, "label", pa.array(labels))
    other_rows = other_rows.set_column(1, "item_id", pa.array(items))
    one, other = (
        known_of(inputs(rows=shown, known=log), earlier, in_memory)
        for log, shown in ((known, rows), (scrambled, other_rows))
    )
    assert (one["statistics"][:, 0] > 0).any()
    for name in one.keys() - {"user_vectors"}:  # which this test draws by event
        assert torch.equal(one[name], other[name]), name
