"""LEARN's history in somebody's own ranker: by id, and from plain tensors."""

import doctest

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch.distributed as dist
from test_residual import EVERYTHING, inputs, table
from torch import nn
from torchrec import JaggedTensor
from vectors_artefact import write_vectors

from learn_torchrec import (
    HistoryBatch,
    HistoryFeatures,
    LearnBatch,
    LearnConfig,
    LearnInputs,
    LearnResidual,
    LearnShape,
    UserError,
)
from learn_torchrec.config import replace
from learn_torchrec.ranker.learn import batch, history_features, residual
from learn_torchrec.ranker.learn.attention import HistoryAttention

ITEMS = 6
DAY = 86_400
CONTENT = np.random.default_rng(0).normal(size=(ITEMS, 5)).astype(np.float32)
CONTENT = (CONTENT / np.linalg.norm(CONTENT, axis=1, keepdims=True)).astype(np.float16)
# Users 0 and 1 bought; 2 has no history.
EVENTS = {
    "user_id": [0, 0, 0, 1, 0, 1],
    "item_id": [1, 2, 1, 5, 4, 0],
    "timestamp": [d * DAY for d in (1, 2, 3, 3, 5, 6)],
    "action": ["buy"] * 6,
}
SHOWN = {
    "user_id": [0, 1, 0, 1],
    "item_id": [1, 5, 2, 1],
    "timestamp": [d * DAY for d in (1, 2, 4, 5)],
    "label": [1, 0, 1, 0],
}


def named(ids, as_text):
    return [f"id{i}" for i in ids] if as_text else list(ids)


def write(folder, as_text=False, events=EVENTS, shown=SHOWN, split=None):
    """Write a vectors artefact and the tables; return what `load` takes."""
    rows = {"items": {"item_id": range(ITEMS)}, "interactions": events}
    if shown is not None:
        rows["impressions"] = shown
    (folder / "shop").mkdir(parents=True)
    for name, columns in rows.items():
        columns = {
            column: named(values, as_text) if column.endswith("_id") else values
            for column, values in columns.items()
        }
        pq.write_table(pa.table(columns), folder / "shop" / f"{name}.parquet")
    users = (named([0, 1], as_text), [0, 1, 2], [DAY, 2 * DAY], np.eye(2, 3))
    items = (named(range(ITEMS), as_text), CONTENT[:, :3])
    write_vectors(
        folder / "v", users, items, content=CONTENT, config={"split": split or {}}
    )
    return folder / "v", f"parquet:{folder / 'shop'}"


def features_of(inputs):
    torch.manual_seed(0)
    return HistoryFeatures(inputs.shape, inputs.config)


@pytest.mark.parametrize("in_memory", [False, True])
def test_by_id_they_are_what_this_projects_ranker_computes(in_memory):
    given, rows = inputs(), table()
    ours = given.batch(given.finder(in_memory)(rows, "rows"))
    theirs = given.of_ids(*(rows[n] for n in ("user_id", "item_id", "timestamp")))
    assert theirs.history is not None
    assert theirs.neighbour_rates.equal(ours.neighbour_rates)
    learn = features_of(given)
    found = learn(theirs)
    assert found.shape == (len(rows), learn.out_features)
    if in_memory:  # computed in blocks of rows, which may round differently
        torch.testing.assert_close(found, learn(ours))
    else:
        assert found.equal(learn(ours))
    task = LearnResidual(given.shape, given.config, 3, ["cvr"])
    nn.init.normal_(task.network[-1].weight)
    dense = torch.randn(len(rows), 3)
    assert task.features(theirs).shape == found.shape
    added = task.network(torch.cat([dense, task.features(theirs)], dim=1))
    assert task(theirs, dense)["cvr"].equal(added.squeeze(1))


@pytest.mark.parametrize("as_text", [False, True])
def test_loaded_with_integers_and_strings(tmp_path, as_text):
    given = LearnInputs.load(*write(tmp_path, as_text), ["buy"])
    learn = features_of(given)
    users, items = named([0, 0, 2, 9], as_text), named([1, 9, 1, 1], as_text)
    days = [4, 4, 4, 4]
    read = given.of_ids(users, items, [d * DAY for d in days])
    found = learn(read)
    assert read.history.lengths.tolist() == [2, 2, 0, 0]
    assert read.has_vectors.tolist() == [[1, 1], [1, 0], [0, 1], [0, 1]]
    assert found[2].equal(found[3])  # an unknown user is one without a past
    # log(1 + events) and of those with the candidate, after the two flags.
    assert found[:2, 2].tolist() == pytest.approx([np.log(4)] * 2)
    assert found[:2, 3].tolist() == pytest.approx([np.log(3), 0])
    empty = learn(given.of_ids([], [], []))
    assert empty.shape == (0, learn.out_features)


def test_without_times_all_events_count(tmp_path):
    given = LearnInputs.load(*write(tmp_path), ["buy"])
    now, later = (given.of_ids([0, 1], [3, 3], t) for t in (None, [6 * DAY + 1] * 2))
    learn = features_of(given)
    assert learn(now).equal(learn(later))
    assert now.history.lengths.tolist() == [3, 2]
    assert given.of_ids([1], [3], [6 * DAY]).history.lengths.tolist() == [1]


def test_nothing_at_or_after_a_row_changes_its_features(tmp_path):
    """Scrambled items and labels from the fourth day on, bit for bit."""
    scrambled = []
    for rows in (EVENTS, SHOWN):
        late = [t >= 4 * DAY for t in rows["timestamp"]]
        changed = dict(rows)
        for column in ("item_id", "label"):
            if column in rows:
                pairs = zip(rows[column], late, strict=True)
                changed[column] = [1 - v % 2 if is_late else v for v, is_late in pairs]
        assert changed != rows
        scrambled.append(changed)
    found = []
    for name, (events, shown) in {
        "a": (EVENTS, SHOWN),
        "b": scrambled,
    }.items():
        given = LearnInputs.load(*write(tmp_path / name, False, events, shown), ["buy"])
        learn = features_of(given)
        users, items = np.repeat([0, 1, 2], ITEMS), np.tile(np.arange(ITEMS), 3)
        found.append(learn(given.of_ids(users, items, np.full(3 * ITEMS, 4 * DAY))))
        after = learn(given.of_ids(users, items, np.full(3 * ITEMS, 4 * DAY + 1)))
        found.append(after)
    assert found[0].equal(found[2])
    assert (found[0] != 0).any(0).sum() > 15
    assert not found[1].equal(found[3])


def test_what_the_data_lack_is_left_out_or_asked_for(tmp_path):
    where = write(tmp_path, shown=None)
    given = LearnInputs.load(*where, ["buy"])
    assert given.shape == LearnShape(vector_dim=3, content_dim=5, rates=0, items=6)
    with pytest.raises(UserError, match=r'/v: does not say .*actions=\["buy"\]'):
        LearnInputs.load(*where)
    with pytest.raises(UserError, match="2 users, 1 items and 1 times"):
        given.of_ids([0, 1], [1], [500])
    with pytest.raises(UserError, match=r"user_id.*string"):
        given.of_ids(["a"], [1], [500])
    with pytest.raises(UserError, match=r"leak: .* up to 100, but timestamp is 99"):
        given.of_ids([0, 1], [1, 1], [100, 99])
    own = write(tmp_path / "own", split={"actions": ["buy"]})
    assert len(LearnInputs.load(*own).histories.items) == 6


def test_from_plain_lists_they_are_what_the_log_gives(tmp_path):
    """Repeated items, one without a vector, and events at the row's time or later."""
    given = LearnInputs.load(
        *write(tmp_path, shown=None), ["buy"], LearnConfig(neighbours=0)
    )
    read = given.of_ids([0, 1, 2, 0], [1, 5, 3, 77], np.full(4, 6 * DAY))
    events = [1, -1, 2, 1, 4, 4]
    days = [5.0, 4.5, 4.0, 3.0, 1.0, 0.0]
    made = HistoryBatch.of(
        [1, 5, 3, -1],
        [*events, 5, 0, 0, *events],
        [6, 3, 0, 6],
        [*days, 3.0, 0.0, -1.0, *days],
        2 * torch.from_numpy(CONTENT).float(),  # brought to unit length
    )
    assert made.lengths.tolist() == read.history.lengths.tolist() == [3, 1, 0, 3]
    for name in ("counts", "ages"):
        assert getattr(made, name).equal(getattr(read.history, name)), name
    assert made.longest == read.history.longest
    learn = features_of(given)
    batch = LearnBatch.of(made, read.user_vectors, read.item_vectors)
    torch.testing.assert_close(learn(batch), learn(read), atol=2e-3, rtol=0)
    alone = HistoryFeatures(LearnShape(content_dim=5))
    assert alone(made)[:, :2].tolist() == [[0, 1], [0, 1], [0, 1], [0, 0]]
    assert alone(made).equal(alone(LearnBatch.of(made)))


def test_plain_lists_that_do_not_fit_are_refused():
    for candidates, lengths, ages in (([0], [1, 1], [1, 1]), ([0, 1], [1, 2], [1, 1])):
        with pytest.raises(ValueError, match=r"candidates and \d lengths"):
            HistoryBatch.of(candidates, [0, 1], lengths, ages, torch.eye(2))
    none = HistoryBatch.of([], [], [], [], torch.eye(2))
    assert HistoryFeatures(LearnShape(content_dim=2))(none).shape[0] == 0


def test_a_residual_in_a_plain_model_starts_at_zero_and_trains(tmp_path):
    given = LearnInputs.load(*write(tmp_path), ["buy"])
    ranker, learn = nn.Linear(4, 1), LearnResidual(given.shape)
    known = given.of_ids(SHOWN["user_id"], SHOWN["item_id"], [9 * DAY] * 4)
    dense, labels = torch.randn(4, 4), torch.tensor(SHOWN["label"]).float()
    logits = ranker(dense).squeeze(1)
    assert (logits + learn(known)["cvr"]).equal(logits)
    optimizer = torch.optim.Adam([*ranker.parameters(), *learn.parameters()], 0.01)
    losses = []
    for _ in range(60):
        total = ranker(dense).squeeze(1) + learn(known)["cvr"]
        loss = nn.functional.binary_cross_entropy_with_logits(total, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    for name, parameter in learn.named_parameters():
        assert (parameter.grad != 0).any(), name
    assert not dist.is_initialized()


def test_gradients_reach_what_the_features_learn():
    given, rows = inputs(), table()
    learn = features_of(given)
    known = given.of_ids(rows["user_id"], rows["item_id"], rows["timestamp"])
    learn(known).square().sum().backward()
    names = [name for name, _ in learn.named_parameters()]
    assert len(names) == 4
    assert all((p.grad != 0).any() for p in learn.parameters())
    without = replace(EVERYTHING, interactions=False)
    assert not list(HistoryFeatures(given.shape, without).parameters())


@pytest.mark.parametrize("module", [batch, history_features, residual])
def test_docstring_examples(module):
    results = doctest.testmod(module)
    assert results.attempted > 0
    assert results.failed == 0


def test_a_user_without_a_vector_is_flagged():
    history = HistoryBatch.of([0, 1, -1], [1], [1, 0, 0], [2.0], torch.randn(2, 5))
    users, items = torch.randn(3, 3), torch.randn(3, 3)
    users[1] = 0
    made = LearnBatch.of(history, users, items)
    assert made.has_vectors.tolist() == [[True, True], [False, True], [True, False]]
    assert not LearnBatch.of(history).has_vectors[:, 0].any()


def test_attention_over_ids_does_not_go_without_them():
    history = HistoryBatch.of([0], [1], [1], [2.0], torch.randn(2, 5))
    shape = LearnShape(content_dim=5)
    attending = HistoryFeatures(shape, LearnConfig(attention="content"))
    assert attending(history).shape == (1, attending.out_features)
    with pytest.raises(ValueError, match="embeddings of the ids"):
        HistoryFeatures(shape, LearnConfig(attention="content+id"))(history)


def test_attention_to_ids_alone_reads_no_content():
    attention = HistoryAttention(0, projected_dim=4, with_ids=True)
    ids = {
        "candidate": JaggedTensor(torch.randn(1, 4), lengths=torch.tensor([1])),
        "history": JaggedTensor(torch.randn(2, 4), lengths=torch.tensor([2])),
    }
    found = [
        attention(HistoryBatch.of([0], [1, 0], [2], [2.0, 1.0], content), ids)
        for content in (torch.randn(2, 5), torch.randn(2, 5))
    ]
    assert found[0].shape == (1, attention.out_features)
    assert torch.equal(*found)
    ids["history"] = JaggedTensor(torch.randn(2, 4), lengths=torch.tensor([2]))
    history = HistoryBatch.of([0], [1, 0], [2], [2.0, 1.0], torch.randn(2, 5))
    assert not torch.equal(attention(history, ids), found[0])
