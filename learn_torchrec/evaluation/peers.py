"""The AUCs that other libraries print for the same predictions.

Each rule follows the library's source. Tests compare the numbers with TorchRec,
RecBole, FuxiCTR and torchmetrics (TorchEasyRec's AUC), and with references written from
the source of TorchEasyRec's grouped AUC and of RecIS, which are not on PyPI. Rounding
and float32 sums may differ.
"""

import math
from typing import NamedTuple

import numpy as np

from learn_torchrec.arrays import BoolArray
from learn_torchrec.errors import UserError
from learn_torchrec.evaluation.auc import metrics_of, totals_of
from learn_torchrec.evaluation.conventions import PAPER, Convention
from learn_torchrec.evaluation.pairs import Scores
from learn_torchrec.evaluation.rows import ScoredRows
from learn_torchrec.evaluation.user_auc import count_users, user_means

_THRESHOLDS = 200
_RECIS_EPSILON = 1e-6
_TORCHREC = Convention(single_class="half", ties="first", user_weight="none")
_BY_POSITIVES = Convention(user_weight="positives")

_EXCLUDED = "users of one class left out"


class PeerNumbers(NamedTuple):
    """The numbers of one library.

    Attributes:
        library: its name, with the metric's if it has several.
        auc: over all rows.
        grouped_auc: over users.
        rule: how both are computed.
    """

    library: str
    auc: float
    grouped_auc: float
    rule: str


def compare_conventions(rows: ScoredRows, batch_rows: int = 1024) -> list[PeerNumbers]:
    """Return the numbers of each library for the same rows.

    Args:
        rows: checked rows, in the file's order. TorchRec weights rows; the other
            libraries ignore weights.
        batch_rows: rows per batch of RecIS, which does not merge a user's rows across
            batches.

    Raises:
        UserError: batches of fewer than two rows.
    """
    if batch_rows < 2:
        raise UserError(f"batch rows {batch_rows}: use 2 or more")
    ours = metrics_of(totals_of(rows))
    single = rows._replace(scores=rows.scores.astype(np.float32))
    torchrec = metrics_of(totals_of(single, _TORCHREC), _TORCHREC)
    plain = rows._replace(weights=None)
    auc = metrics_of(totals_of(plain))["auc"]
    users = count_users(plain)
    mean, by_impressions = user_means(users, PAPER)
    by_positives = user_means(users, _BY_POSITIVES)[1]
    binned = binned_auc(rows.is_positive, rows.scores)
    recis = recis_auc(rows.is_positive, rows.scores)
    recis_users = recis_grouped_auc(plain, batch_rows)
    exact, at_thresholds = f"exact; {_EXCLUDED}", f"AUC at {_THRESHOLDS} thresholds"
    impressions = f"{exact}; weighted by impressions"
    table = (
        ("paper, UAUC", ours["auc"], ours["uauc"], f"{exact}; mean"),
        ("paper, WUAUC", ours["auc"], ours["wuauc"], impressions),
        (
            "TorchRec",
            torchrec["auc"],
            torchrec["uauc"],
            "ties in the order of its sort (here: of the rows); users of one class "
            "count 0.5; mean",
        ),
        ("TorchEasyRec", binned, mean, f"{at_thresholds}; {_EXCLUDED}; mean"),
        ("RecBole", auc, by_positives, f"{exact}; weighted by positives"),
        ("FuxiCTR, gAUC", auc, by_impressions, impressions),
        ("FuxiCTR, avgAUC", auc, mean, f"{exact}; mean"),
        (
            "RecIS",
            recis,
            recis_users,
            f"{at_thresholds}; a user is a run of rows within a batch of {batch_rows}; "
            "one class left out; weighted by positives",
        ),
    )
    return [PeerNumbers(*line) for line in table]


def binned_auc(is_positive: BoolArray, scores: Scores) -> float:
    """Return the AUC of torchmetrics at 200 thresholds from 0 to 1; NaN for one class.

    Scores within a bin are tied, as are those below 0 and those above 1.
    """
    thresholds = np.linspace(0, 1, _THRESHOLDS, dtype=np.float32)
    bins = np.searchsorted(thresholds, scores.astype(np.float32), side="right")
    true, false = (
        np.bincount(bins[chosen], minlength=_THRESHOLDS + 1)[:0:-1].cumsum()
        for chosen in (is_positive, ~is_positive)
    )
    totals = float(is_positive.sum()), float((~is_positive).sum())
    if not all(totals):
        return math.nan
    # As in torchmetrics, the curve starts at the highest threshold, not at (0, 0).
    return float(np.trapezoid(true / totals[0], false / totals[1]))


def recis_auc(is_positive: BoolArray, scores: Scores) -> float:
    """Return RecIS's AUC at 200 thresholds; a score must exceed a threshold."""
    inner = np.arange(1, _THRESHOLDS - 1, dtype=np.float32) / (_THRESHOLDS - 1)
    thresholds = np.concatenate(([-1e-7], inner, [1 + 1e-7])).astype(np.float32)
    above = np.searchsorted(thresholds, scores.astype(np.float32), side="left")
    true, false = (
        len(above[chosen])
        - np.bincount(above[chosen], minlength=_THRESHOLDS + 1).cumsum()[:_THRESHOLDS]
        for chosen in (is_positive, ~is_positive)
    )
    positives, negatives = int(is_positive.sum()), int((~is_positive).sum())
    recall = (true + _RECIS_EPSILON) / (positives + _RECIS_EPSILON)
    false_rate = false / (negatives + _RECIS_EPSILON)
    return float(-np.trapezoid(recall, false_rate))


def recis_grouped_auc(rows: ScoredRows, batch_rows: int) -> float:
    """Return RecIS's grouped AUC over runs of one user's rows within a batch.

    RecIS sorts equal scores in an undefined order; they count one half here.
    """
    starts = np.diff(rows.users, prepend=-1) != 0
    starts[::batch_rows] = True
    runs = np.cumsum(starts) - 1
    num_runs = int(runs[-1]) + 1 if len(runs) else 0
    by_run = rows._replace(users=runs, num_users=num_runs)
    return user_means(count_users(by_run), _BY_POSITIVES)[1]
