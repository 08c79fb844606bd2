"""Features that are the label, or know it: refused or warned of."""

import logging

import numpy as np
import pyarrow as pa
import pytest

from learn_torchrec.datasets.loading.in_memory import TableRows
from learn_torchrec.errors import UserError
from learn_torchrec.ranker.config import RankerConfig
from learn_torchrec.ranker.features import DenseFeature, FeaturesConfig, HashedFeature
from learn_torchrec.ranker.impressions import Impressions
from learn_torchrec.ranker.leaks import refuse_label_copies
from learn_torchrec.ranker.tasks import TaskConfig

ROWS = 400
LABELS = (np.arange(ROWS) * 7 % 10 < 3).astype(np.int64)
CTR_CVR = (TaskConfig(name="ctr", label="click"), TaskConfig(name="cvr"))


@pytest.mark.parametrize(
    ("name", "tasks"),
    [
        *(("label", (TaskConfig(),)), ("score", (TaskConfig(),))),
        *(("click", CTR_CVR), ("score_cvr", CTR_CVR)),
    ],
)
def test_labels_and_scores_are_no_features(name, tasks):
    dense = FeaturesConfig(dense=(DenseFeature(column=name),))
    sparse = FeaturesConfig(sparse=(HashedFeature(column=name, num_embeddings=8),))
    for features in (dense, sparse):
        with pytest.raises(ValueError, match=f"column '{name}' is a label or a score"):
            RankerConfig(features=features, tasks=tasks)
    RankerConfig(features=FeaturesConfig(dense=(DenseFeature(column="score_old"),)))


def impressions(column, sparse: bool = False, labels=LABELS) -> Impressions:
    rows = pa.table(
        {
            "user_id": np.arange(ROWS) % 7,
            "item_id": np.arange(ROWS) % 5,
            "timestamp": np.arange(ROWS),
            "label": labels,
            "x": column,
        }
    )
    dense = FeaturesConfig(dense=(DenseFeature(column="x"),))
    hashed = FeaturesConfig(sparse=(HashedFeature(column="x", num_embeddings=8),))
    config = RankerConfig(features=hashed if sparse else dense)
    return Impressions(TableRows(rows, None, "rows"), config, None)


COPIES = {
    "equal": LABELS,
    "negated": 1 - LABELS,
    "scaled": 3.5 - 2 * LABELS,
    "boolean": LABELS == 1,
    "as text": np.where(LABELS, "bought", "seen"),
}


@pytest.mark.parametrize("column", COPIES.values(), ids=COPIES)
@pytest.mark.parametrize("sparse", [False, True])
def test_a_copy_of_the_label_is_refused(column, sparse):
    with pytest.raises(UserError, match=r"rows: column 'x' is .* it is the label"):
        refuse_label_copies(impressions(pa.array(column), sparse))


def test_one_row_that_differs_is_no_copy_but_suspicious(caplog):
    column = LABELS.astype(float)
    column[3] = 1 - column[3]
    with caplog.at_level(logging.WARNING):
        refuse_label_copies(impressions(column))
    assert "rows: column 'x' alone ranks 'label' with AUC 0.99" in caplog.text


@pytest.mark.parametrize("sign", [1, -1])
def test_a_number_that_knows_the_label_is_warned_of(sign, caplog):
    seconds = np.arange(ROWS) * sign / ROWS + 2 * sign * LABELS
    with caplog.at_level(logging.WARNING):
        refuse_label_copies(impressions(seconds))
    assert "column 'x' alone ranks 'label' with AUC" in caplog.text


@pytest.mark.parametrize("sparse", [False, True])
def test_honest_columns_and_few_rows_are_left_alone(sparse, caplog):
    random = np.random.default_rng(0)
    with caplog.at_level(logging.WARNING):
        refuse_label_copies(impressions(random.integers(0, 9, ROWS), sparse))
        rare = (np.arange(ROWS) < 40).astype(np.int64)
        refuse_label_copies(impressions(rare, sparse, labels=rare))
    assert not caplog.records
