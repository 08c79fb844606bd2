"""Batches as a GPU gets them: pinned, and with nothing left to ask it for."""

import problem
import pytest
import torch

from learn_torchrec.ranker import scoring
from learn_torchrec.ranker.build import build_ranker
from learn_torchrec.ranker.learn.inputs import _keyed_jagged
from learn_torchrec.ranker.scoring import score
from learn_torchrec.towers.ids import as_kjt
from learn_torchrec.training.batch import pinned, to_device

META = torch.device("meta")  # has no values: whoever reads one fails


def test_what_ranks_exchange_is_known_before_a_batch_is_on_its_device(one_rank):
    rows = problem.impressions(problem.architecture("auto"))
    batch = next(rows.batches(epoch=0))
    here, there = batch.sparse_features, batch.to(META, non_blocking=True)
    # Of the first feature alone, and of the others: rows, ids, weights.
    counts = here.lengths().view(len(here.keys()), -1).sum(1).tolist()
    ids = [counts[0], sum(counts[1:])]
    splits = there.sparse_features.dist_splits([1, len(counts) - 1])
    size = problem.BATCH
    assert splits == [[size, size * (len(counts) - 1)], ids, ids]
    assert there.sparse_features.offset_per_key()[1] == counts[0]
    assert there.sequence_features.dist_splits([2])[0] == [2 * size]
    for features in (there.sparse_features, there.sequence_features):
        assert features.lengths().dtype == torch.int32


def test_so_are_the_ids_that_attention_and_towers_look_up():
    lengths = torch.tensor([1, 0, 2, 3])
    ids = _keyed_jagged(["candidate", "history"], torch.arange(6), lengths)
    assert ids.to(META).dist_splits([1, 1])[1] == [1, 5]
    assert ids.lengths().dtype == torch.int32
    assert as_kjt(torch.arange(3, device="meta")).dist_splits([1]) == [[3], [3]]


def test_rows_to_score_are_pinned_for_their_device(one_rank, monkeypatch):
    asked = []

    def noted(batches, device):
        asked.append(device)
        return pinned(batches, device)

    monkeypatch.setattr(scoring, "pinned", noted)
    settings = problem.config("auto")
    model = build_ranker(settings, problem.SHAPE, one_rank)
    score(model, problem.impressions(settings), 50, one_rank)
    assert asked == [one_rank]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_copies_to_a_gpu_start_in_pinned_memory(one_rank):
    rows = problem.impressions(problem.architecture("auto"))
    batch = next(rows.batches(epoch=0, device=one_rank))
    for tensor in (batch.dense_features, batch.sparse_features.values()):
        assert tensor.is_pinned()
    values = batch.sparse_features.to(one_rank, non_blocking=True).values()
    assert values.cpu().tolist() == batch.sparse_features.values().tolist()
    array = batch.weights.numpy().copy()
    assert to_device(array, one_rank).cpu().tolist() == array.tolist()
