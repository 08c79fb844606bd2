"""Parts of a date or time, such as the hour; embedded like ids."""

from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt

from learn_torchrec.arrays import Int64Array
from learn_torchrec.config import configuration
from learn_torchrec.errors import UserError
from learn_torchrec.ids import type_name
from learn_torchrec.ranker.features.base import IdFeature
from learn_torchrec.ranker.features.columns import FeatureColumn
from learn_torchrec.times import as_seconds, is_time

Part = Literal["hour", "weekday", "month", "year"]
# Table rows of a part, and its lowest value; years outside 1900 to 2099 are clipped.
_ROWS = {"hour": 24, "weekday": 7, "month": 12, "year": 200}
_LOWEST = {"hour": 0, "weekday": 0, "month": 1, "year": 1900}
_FUNCTIONS = {
    "hour": pc.hour,
    "weekday": pc.day_of_week,
    "month": pc.month,
    "year": pc.year,
}


@configuration
class CalendarFeature(IdFeature):
    """A column of dates or times (UTC), or of unix seconds.

    Attributes:
        part: of the time. Weekdays start on Monday.
        ids: the kind.
    """

    part: Part
    ids: Literal["calendar"] = "calendar"

    @property
    def default_name(self) -> str:
        """The column and the part, such as `timestamp_hour`."""
        return f"{super().default_name}_{self.part}"

    @property
    def table_rows(self) -> int:
        """Rows of its table, one for each value of the part."""
        return _ROWS[self.part]

    @property
    def row_mapping(self) -> str:
        """How times map to rows."""
        return f"{self.ids} {self.part}"

    def rows_of(self, ids: FeatureColumn) -> Int64Array:
        """Return the part of every time, int64 [V]."""
        times, name = ids.values, f"{ids.source}: column {ids.name!r}"
        if not is_time(times.type):
            raise UserError(
                f"{name} is {type_name(times.type)}, must be a date or time for a "
                "feature of the kind 'calendar'; convert it, or use the kind 'hash'"
            )
        if not (pt.is_timestamp(times.type) or pt.is_date(times.type)):
            times = pa.array(as_seconds(times, name))
        moments = times.cast(pa.timestamp("s"), safe=False)
        values = _FUNCTIONS[self.part](moments).to_numpy(zero_copy_only=False)
        rows = values.astype(np.int64) - _LOWEST[self.part]
        return np.clip(rows, 0, self.table_rows - 1)
