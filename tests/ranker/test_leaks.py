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


SOLD = LABELS == 1
PRESENT = {
    "prices": np.where(SOLD, np.arange(ROWS), np.nan),
    "orders": pa.array([f"o{n}" if sold else None for n, sold in enumerate(SOLD)]),
    "unsold": pa.array([None if sold else n for n, sold in enumerate(SOLD)]),
    "times": pa.array([n if sold else None for n, sold in enumerate(SOLD)]).cast(
        pa.timestamp("s")
    ),
    "lists": pa.array([[n, 2] if sold else [] for n, sold in enumerate(SOLD)]),
    "coded": pa.array([str(n) if s else None for n, s in enumerate(SOLD)]).cast(
        pa.dictionary(pa.int32(), pa.string())
    ),
}


@pytest.mark.parametrize("column", PRESENT.values(), ids=PRESENT)
@pytest.mark.parametrize("sparse", [False, True])
def test_a_column_of_one_label_s_rows_is_a_copy(column, sparse):
    with pytest.raises(UserError, match=r"column 'x' is (there|missing) .*the label"):
        refuse_label_copies(impressions(column, sparse))


CODES = np.arange(ROWS) // 10 % 5
TELLING = {
    "words": [
        f"{'won' if sold else 'lost'} {code}"
        for code, sold in zip(CODES, SOLD, strict=True)
    ],
    "numbers": CODES * 2 + LABELS,
    "booleans": np.r_[~SOLD[:1], SOLD[1:]],
    "lists": [[int(code), int(sold)] for code, sold in zip(CODES, SOLD, strict=True)],
}


@pytest.mark.parametrize("column", TELLING.values(), ids=TELLING)
def test_values_that_know_the_label_are_warned_of(column, caplog):
    with caplog.at_level(logging.WARNING):
        refuse_label_copies(impressions(pa.array(column), sparse=True))
    assert "column 'x' alone ranks 'label' with AUC" in caplog.text


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
        refuse_label_copies(impressions(np.full(ROWS, np.nan), sparse))
        refuse_label_copies(impressions([f"user {n}" for n in range(ROWS)], sparse))
        gaps = [None if random.random() < 0.3 else n % 9 for n in range(ROWS)]
        refuse_label_copies(impressions(pa.array(gaps), sparse))
    assert not caplog.records
