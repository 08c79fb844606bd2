"""RecBole's SASRec as a row of the retrieval study."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from random_sequences import make_sequences, sequence_set

from learn_torchrec.apps.benchmarks import sasrec
from learn_torchrec.evaluation.recommended import recommended_scores
from learn_torchrec.evaluation.retrieval import evaluate_scores
from learn_torchrec.towers.holdout import RetrievalTask


def test_every_prefix_has_its_next_item():
    sequences = sequence_set(
        user_ids=pa.array([1, 2]),
        offsets=np.array([0, 3, 5]),
        items=np.array([4, 5, 6, 7, 8]),
        times=np.arange(5),
    )
    rows = sasrec.prefixes(sequences)
    found = [
        (items[:length].tolist(), after)
        for items, length, after in zip(
            rows.items, rows.lengths.tolist(), rows.following.tolist(), strict=True
        )
    ]
    # Item 0 is padding: all are one more.
    assert found == [([5], 6), ([5, 6], 7), ([8], 9)]
    long = sasrec.prefixes(make_sequences([60]))
    assert long.lengths.tolist()[-1] == sasrec.LENGTH
    assert long.items[-1, -1] == long.following[-2]  # the latest events remain


def test_its_recommendations_rank_as_its_scores(store, tmp_path):
    pytest.importorskip("recbole", reason="needs RecBole's wheel")
    torch.manual_seed(0)
    sequences = make_sequences([8, 5, 20])
    lengths = np.array([5, 2, 15])
    task = RetrievalTask(sequences=sequences, history_lengths=lengths)
    model = sasrec.build_model(len(store), dropout=0.1)
    scores = sasrec.scores_of(model, task)
    path = tmp_path / "sasrec.parquet"
    pq.write_table(pa.concat_tables(sasrec.recommendations(scores, task, store)), path)
    listed = recommended_scores(path, sequences.user_ids, store)
    rank = [
        evaluate_scores(one, len(store), task.targets, ks=(5,))
        for one in (lambda start, stop: scores[start:stop], listed)
    ]
    assert rank[0] == pytest.approx(rank[1])
