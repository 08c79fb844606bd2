"""Each library's numbers, from the library itself where PyPI has it."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torchmetrics.functional.classification import binary_auroc
from torchrec.metrics.auc import compute_auc, compute_auc_per_group

from learn_torchrec.errors import UserError
from learn_torchrec.evaluation.auc import evaluate_auc
from learn_torchrec.evaluation.conventions import Convention
from learn_torchrec.evaluation.peers import compare_conventions
from learn_torchrec.evaluation.rows import prepare_rows

CASES = ("distinct", "tied", "weighted")


def rows(case: str):
    """Rows of 60 users, many of one class; users' rows lie together, mostly."""
    random = np.random.default_rng(5)
    users = np.sort(random.integers(60, size=700))
    users[100:110] = 3
    labels = (random.random(700) < 0.08).astype(np.int64)
    scores = (random.random(700) + 0.3 * labels) / 1.3
    if case == "tied":
        scores = np.round(scores * 16) / 16
    weights = random.integers(1, 4, size=700) / 2 if case == "weighted" else None
    return users, labels, scores.astype(np.float32), weights


def numbers(case: str, **options):
    columns = rows(case)
    table = compare_conventions(prepare_rows(*columns), **options)
    return {line.library: line for line in table}, *columns


@pytest.mark.parametrize("case", CASES)
def test_torchrec(case: str) -> None:
    table, users, labels, scores, weights = numbers(case)
    weights = np.ones(700) if weights is None else weights
    columns = [[torch.from_numpy(c).float()[None]] for c in (scores, labels, weights)]
    auc = compute_auc(1, *columns)
    grouped = compute_auc_per_group(1, *columns, torch.from_numpy(users))
    if case == "tied":  # its sort is not stable: any order of equal scores may come
        columns = (users, labels, scores)
        lowest, highest = (
            evaluate_auc(
                *columns, convention=Convention(single_class="half", ties=ties)
            )
            for ties in ("negative", "positive")
        )
        assert lowest["auc"] < auc.item() < highest["auc"]
        assert lowest["uauc"] <= grouped.item() <= highest["uauc"]
        assert lowest["auc"] < table["TorchRec"].auc < highest["auc"]
        return
    assert table["TorchRec"].auc == pytest.approx(auc.item(), abs=1e-5)
    assert table["TorchRec"].grouped_auc == pytest.approx(grouped.item(), abs=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_torcheasyrec(case: str) -> None:
    table, users, labels, scores, _ = numbers(case)
    tensors = torch.from_numpy(scores), torch.from_numpy(labels)
    auc = binary_auroc(*tensors, thresholds=200)
    assert table["TorchEasyRec"].auc == pytest.approx(auc.item(), abs=1e-5)
    # Its grouped AUC: torchmetrics' exact AUC of each user with both classes.
    values = [
        binary_auroc(tensors[0][users == user], tensors[1][users == user]).item()
        for user in np.unique(users)
        if 0 < labels[users == user].mean() < 1
    ]
    grouped = table["TorchEasyRec"].grouped_auc
    assert grouped == pytest.approx(np.mean(values), abs=1e-6)


@pytest.mark.parametrize("case", CASES)
def test_recbole(case: str) -> None:
    metrics = pytest.importorskip(
        "recbole.evaluator.metrics", reason="needs RecBole's own requirements"
    )
    from recbole.evaluator.collector import Collector

    table, users, labels, scores, _ = numbers(case)
    auc = metrics.AUC.metric_info(None, scores, labels)
    assert table["RecBole"].auc == pytest.approx(auc, abs=1e-9)

    on_cpu, ranks = SimpleNamespace(device="cpu"), []
    for user in np.unique(users):
        mine = users == user
        ordered = torch.sort(torch.from_numpy(scores[mine]), descending=True)
        average = Collector._average_rank(on_cpu, ordered.values[None])[0].numpy()
        is_positive = labels[mine][ordered.indices.numpy()] == 1
        ranks.append([average[is_positive].sum(), mine.sum(), labels[mine].sum()])
    rank_sum, lengths, positives = np.array(ranks, dtype=float).T
    gauc = metrics.GAUC.metric_info(None, rank_sum[:, None], lengths, positives)
    assert table["RecBole"].grouped_auc == pytest.approx(gauc, abs=1e-6)


@pytest.mark.parametrize("case", CASES)
def test_fuxictr(case: str) -> None:
    fuxictr = pytest.importorskip("fuxictr.metrics", reason="needs FuxiCTR")
    table, users, labels, scores, _ = numbers(case)
    # What its process pool does with one user after another.
    for name in ("gAUC", "avgAUC"):
        parts = [
            getattr(fuxictr, name)(labels[users == user], scores[users == user])
            for user in np.unique(users)
        ]
        value, weight = np.sum(parts, axis=0)
        expected = value / weight
        assert table[f"FuxiCTR, {name}"].grouped_auc == pytest.approx(expected)
    auc = fuxictr.evaluate_metrics(labels, scores, ["AUC"])["AUC"]
    assert table["FuxiCTR, gAUC"].auc == pytest.approx(auc, abs=1e-12)


def recis_auc(labels, scores):
    thresholds = [(i + 1) / 199 for i in range(198)]
    thresholds = torch.tensor([-1e-7, *thresholds, 1 + 1e-7])
    above = torch.from_numpy(scores)[:, None] > thresholds
    positive = torch.from_numpy(labels)[:, None] == 1
    recall = ((above & positive).sum(0) + 1e-6) / (positive.sum() + 1e-6)
    false_rate = (above & ~positive).sum(0) / ((~positive).sum() + 1e-6)
    steps = (false_rate[:-1] - false_rate[1:]) * (recall[:-1] + recall[1:]) / 2
    return steps.sum().item()


def recis_grouped(users, labels, scores, batch):
    total = weight = 0.0
    for first in range(0, len(users), batch):
        start = first
        stop_of_batch = min(first + batch, len(users))
        while start < stop_of_batch:
            stop = start
            while stop < stop_of_batch and users[stop] == users[start]:
                stop += 1
            mine, own = scores[start:stop], labels[start:stop]
            positive, negative = mine[own == 1], mine[own == 0]
            if len(positive) and len(negative):
                gap = positive[:, None] - negative[None]
                auc = np.mean((gap > 0) + 0.5 * (gap == 0))
                total += auc * len(positive)
                weight += len(positive)
            start = stop
    return total / weight


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("batch_rows", [7, 64, 1024])
def test_recis(case: str, batch_rows: int) -> None:
    table, users, labels, scores, _ = numbers(case, batch_rows=batch_rows)
    assert table["RecIS"].auc == pytest.approx(recis_auc(labels, scores), abs=1e-5)
    expected = recis_grouped(users, labels, scores, batch_rows)
    assert table["RecIS"].grouped_auc == pytest.approx(expected, abs=1e-9)


def test_one_class_and_unfit_batches() -> None:
    one_class = prepare_rows([1, 1, 2], [0, 0, 0], [0.1, 0.2, 0.3])
    table = {line.library: line for line in compare_conventions(one_class)}
    assert (table["TorchRec"].auc, table["TorchRec"].grouped_auc) == (0.5, 0.5)
    assert math.isnan(table["TorchEasyRec"].auc)
    assert math.isnan(table["RecIS"].grouped_auc)
    with pytest.raises(UserError, match="batch rows 1: use 2 or more"):
        compare_conventions(one_class, batch_rows=1)
