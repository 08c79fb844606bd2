"""Every form of ranker is served with the scores of its training code."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from exported import Exported, export
from small_market import write_small_market, write_small_store
from vectors_artefact import write_vectors

from learn_torchrec.apps import export_bundle, main
from learn_torchrec.errors import UserError
from learn_torchrec.serving.fixed_rows import requests_of

ROWS = 200
_LISTS = """[
 {"column": "user_id", "embedding_dim": 8},
 {"column": "item_id", "num_embeddings": 512},
 {"column": "timestamp", "ids": "calendar", "part": "hour"},
 {"column": "hour", "ids": "bucketized", "boundaries": [6, 12, 18]},
 {"column": "tags", "weights": "shares"},
 {"column": "tags", "name": "tags_mean", "pooling": "mean", "table": "tags"},
 {"column": "seen", "pooling": "attention", "query": "item_id", "table": "item_id"}
]""".replace("\n", "")
_TASKS = """[
 {"name": "ctr", "label": "click"},
 {"name": "cvr", "given": "ctr", "auxiliary_weight": 0}
]""".replace("\n", "")
FORMS = {
    "lists, cross network, two tasks, attention to ids": (
        "content",
        f"ranker.features.sparse={_LISTS}",
        "ranker.features.dense=hour,user_past_rate_ctr,item_past_rate_cvr",
        f"ranker.tasks={_TASKS}",
        "ranker.model.interaction=dcn",
        "ranker.learn.attention=content+id",
    ),
    "towers' vectors in both spaces": (
        "vectors",
        'ranker.learn.statistics.spaces=["content","towers"]',
        "ranker.learn.attention=content",
        "ranker.learn.dropout=0.2",
    ),
    "no content, no counts": ("none", "ranker.features.dense="),
    "the paper's form": ("vectors", "ranker.learn.form=paper"),
    "statistics alone, no neighbours": (
        "content",
        "ranker.learn.neighbours=0",
        "ranker.learn.interactions=false",
        "ranker.learn.alone=true",
    ),
}


def widen(market):
    """Add lists, weights and a second label to the impressions; some are null."""
    random = np.random.default_rng(5)
    path = market / "impressions.parquet"
    table = pq.read_table(path)
    count = table.num_rows

    def lists(values):
        ends = np.r_[0, np.cumsum(lengths)].astype(np.int32)
        return pa.ListArray.from_arrays(pa.array(ends), pa.array(values))

    lengths = random.integers(0, 4, count)
    columns = {
        "tags": lists([f"t{n}" for n in random.integers(0, 9, lengths.sum())]),
        "shares": lists(random.random(lengths.sum()).astype(np.float32)),
    }
    lengths = random.integers(0, 6, count)
    columns["seen"] = lists(random.integers(100, 140, lengths.sum()))
    columns["click"] = pa.array(
        random.integers(0, 2, count) | table["label"].to_numpy()
    )
    for name, values in columns.items():
        table = table.append_column(name, values)
    pq.write_table(table, path)


@pytest.mark.parametrize("form", FORMS)
def test_a_form_is_served_with_its_own_scores(form, tmp_path):
    inputs, *settings = FORMS[form]
    market = write_small_market(tmp_path / "market")
    if inputs == "content":
        widen(market)
        write_small_store(tmp_path / "content")
    if inputs == "vectors":
        random = np.random.default_rng(2)
        times = np.sort(random.integers(0, 40 * 86_400, 90))
        owners = np.sort(random.integers(0, 45, 90))
        content = random.normal(size=(40, 6))
        write_vectors(
            tmp_path / "vectors",
            (
                np.arange(45),
                np.r_[0, np.cumsum(np.bincount(owners, minlength=45))],
                times[np.lexsort((times, owners))],
                random.normal(size=(90, 4)),
            ),
            (np.arange(100, 140), random.normal(size=(40, 4))),
            content=content / np.linalg.norm(content, axis=1, keepdims=True),
        )
    where = None if inputs == "none" else tmp_path / inputs
    exported = export(market, where, *settings)
    runner = exported.runner()
    rows = exported.latest(ROWS, runner.as_of).sort_by("user_id")
    expected = exported.trained_scores(rows)

    found = np.concatenate(
        runner.rank(requests_of(rows, list(runner.required_context)))
    )

    assert tuple(expected) == tuple(runner.score_columns)
    for column, scores in zip(expected.values(), found.T, strict=True):
        assert column.std() > 0.005
        np.testing.assert_allclose(scores, column, atol=3e-6)
    cold = runner.rank(
        [requests_of(rows.slice(0, 1), [])[0], requests_of(rows.slice(0, 1), [])[0]]
    )
    assert all(np.isfinite(scores).all() for scores in cold)


def test_managed_collision_is_refused_in_one_line(market, tmp_path):
    made = Exported(market, tmp_path / "ranker", None, tmp_path / "bundle")
    settings = [
        'ranker.features.sparse=[{"column":"user_id","ids":"managed_collision"},'
        '"item_id"]',
        "ranker.tables.optimizer=adagrad",
        "ranker.training.batch_size=64",
        "ranker.features.dense=hour",
    ]
    command = [*made.inputs, "--out", str(made.ranker), "--set", *settings]
    main.main(["train-ranker", *command])

    command = [*made.inputs, "--ranker", str(made.ranker), "--out", str(made.bundle)]
    with pytest.raises(UserError, match="user_id is of the kind managed_collision"):
        export_bundle.main(command)
