"""Rows with two score columns, and conventions by which they are compared."""

import numpy as np

from learn_torchrec.evaluation.conventions import PAPER, Convention

RANK_METRICS = ("auc", "uauc", "wuauc")
METRICS = (*RANK_METRICS, "ne", "log_loss", "calibration")


def rows(seed: int, gain: float, num_rows: int = 600, num_users: int = 50):
    random = np.random.default_rng(seed)
    users = random.integers(num_users, size=num_rows)
    labels = (random.random(num_rows) < 0.3).astype(int)
    baseline = random.normal(size=num_rows).round(1) + 0.5 * labels
    candidate = baseline + gain * labels + 0.1 * random.normal(size=num_rows).round(1)
    return users, labels, *(1 / (1 + np.exp(-x)) for x in (baseline, candidate))


CONVENTIONS = {
    "paper": PAPER,
    "clicks": Convention(user_weight="clicks"),
    "half": Convention(single_class="half", user_weight="none"),
    "negative": Convention(ties="negative", user_weight="positives"),
    "positive": Convention(ties="positive"),
}
