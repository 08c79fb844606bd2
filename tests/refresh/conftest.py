"""A market as it was at the end of each day."""

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from daily_market import DAY, NEW_ITEMS, SETTINGS, TABLES


@pytest.fixture
def days(market, tmp_path, model_dir):
    """Return a function that gives the data as they were at the end of a day."""
    whole = {name: pq.read_table(market / f"{name}.parquet") for name in TABLES}
    titles = [f"{color} mug of {n}" for n in range(20) for color in ("red", "blue")]
    whole["items"] = whole["items"].set_column(1, "title", pa.array(titles))
    live = tmp_path / "live"
    live.mkdir()
    late = pa.array(NEW_ITEMS)

    def until(day):
        for name in TABLES:
            table = whole[name]
            if name != "items":
                times = table["timestamp"]
                is_late = pc.is_in(table["item_id"], value_set=late)
                early = pc.less(times, 56 * DAY)
                table = table.filter(pc.less(times, day * DAY))
                keep = pc.invert(pc.and_(is_late, early)).filter(
                    pc.less(times, day * DAY)
                )
                table = table.filter(keep)
            elif day <= 56:
                is_late = pc.is_in(table["item_id"], value_set=late)
                table = table.filter(pc.invert(is_late))
            pq.write_table(table, live / f"{name}.parquet")
        return f"parquet:{live}"

    return until, [*SETTINGS, f"content.encoder.model={model_dir}"]
