"""CSV, JSON lines and Parquet under other names: `ADAPTER:DIR#NAME=VALUE,...`.

    csv:../logs#interactions=events.csv,user_id=uid,item_id=asin,timestamp=ts,
        default_action=buy
    parquet:s3://bucket/market#timestamp=event_time,time_unit=ms

Options name a file (`items`, `interactions`, `impressions`), the column that is ours
(`user_id`, `item_id`, `timestamp`, `action`, `label`, `weight`, `title`, ...), or:

- `default_action`: the action of a log without such a column;
- `time_unit`: `s`, `ms`, `us` or `ns`, of integer times;
- `time_format`: of times that are text, as strptime spells it; else they are ISO;
- `delimiter`: of CSV, one character or `tab`.

The items may be JSON lines (`.jsonl`, `.json`) beside a CSV log.
"""

from dataclasses import dataclass, fields
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pv
import pyarrow.types as pt

from learn_torchrec.datasets.adapters.base import Dataset
from learn_torchrec.datasets.adapters.jsonl import read_lines
from learn_torchrec.datasets.adapters.text_fields import catalogue
from learn_torchrec.datasets.loading import tables
from learn_torchrec.datasets.loading.location import Location
from learn_torchrec.errors import UserError
from learn_torchrec.schema import (
    ACTION,
    INTERACTIONS_FILE,
    ITEM_ID,
    ITEM_TEXT_FIELDS,
    ITEMS_FILE,
    LABEL,
    TIMESTAMP,
    USER_ID,
    WEIGHT,
)

_FILES = ("items", "interactions", "impressions")
_COLUMNS = (USER_ID, ITEM_ID, TIMESTAMP, ACTION, LABEL, WEIGHT, *ITEM_TEXT_FIELDS)
_PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
_JSON = (".jsonl", ".json", ".jsonl.gz", ".json.gz")


@dataclass(frozen=True, kw_only=True)
class MapOptions:
    """Options that are neither a file nor a column."""

    default_action: str = ""
    time_unit: str = "s"
    time_format: str = ""
    delimiter: str = ","


class Mapped(Dataset):
    """Files and columns under the names that the options give.

    Args:
        spec: `DIR#NAME=VALUE,...`.
        suffix: of the files' own names where no option names them.

    Raises:
        UserError: an unknown option or value.
    """

    def __init__(self, spec: str, suffix: str) -> None:
        where, _, text = spec.partition("#")
        super().__init__(where)
        self._suffix = suffix
        options = _parse(text, spec)
        self._files = {n: options.pop(n) for n in _FILES if n in options}
        self._columns = {n: options.pop(n) for n in _COLUMNS if n in options}
        known = [field.name for field in fields(MapOptions)]
        for name in options:
            if name not in known:
                names = ", ".join((*_FILES, *_COLUMNS, *known))
                raise UserError(f"--data {spec}: unknown name {name!r}; known: {names}")
        self._options = MapOptions(**options)
        if self._options.time_unit not in _PER_SECOND:
            raise UserError(f"--data {spec}: time_unit is one of s, ms, us, ns")

    def fingerprint(self, file: str) -> str:
        """Return the digest of a table's files and of how they are read."""
        settings = sorted({**self._files, **self._columns}.items())
        return f"{super().fingerprint(file)} {settings} {self._options}"

    def _sources(self, file: str) -> list[Location]:
        stem = file.removesuffix(".parquet")
        return [self.location / self._files.get(stem, f"{stem}{self._suffix}")]

    def _name(self, file: str) -> str:
        return str(self._sources(file)[0])

    def _read(self, file: str) -> pa.Table:
        (source,) = self._sources(file)
        table = self._renamed(self._read_file(source), source)
        if file == ITEMS_FILE:
            return table
        if file == INTERACTIONS_FILE and ACTION not in table.column_names:
            if not self._options.default_action:
                raise UserError(
                    f"{source}: has no column {ACTION!r}; name it (action=COLUMN) or "
                    "give all events one (default_action=buy)"
                )
            actions = pa.array([self._options.default_action] * table.num_rows)
            table = table.append_column(ACTION, actions)
        if TIMESTAMP in table.column_names:
            index = table.column_names.index(TIMESTAMP)
            times = self._seconds(table[TIMESTAMP], source)
            table = table.set_column(index, TIMESTAMP, times)
        return table

    def _read_file(self, source: Location) -> pa.Table:
        if not source.exists():
            raise UserError(f"{source}: no such file; the data set needs it")
        if source.path.endswith(_JSON):
            return catalogue(read_lines(source), source)
        if self._suffix == ".parquet":
            return tables.read_parquet(source)
        delimiter = self._options.delimiter.replace("tab", "\t")
        try:
            parts = [
                pv.read_csv(
                    file.open(), parse_options=pv.ParseOptions(delimiter=delimiter)
                )
                for file in source.files()
            ]
            return pa.concat_tables(parts, promote_options="permissive")
        except (pa.ArrowException, OSError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"{source}: cannot be read as CSV ({reason})") from None

    def _renamed(self, table: pa.Table, source: Location) -> pa.Table:
        """Give the mapped columns our names; another column of that name goes."""
        for ours, theirs in self._columns.items():
            if theirs not in table.column_names:
                if ours in ITEM_TEXT_FIELDS or ours in (LABEL, WEIGHT, ACTION):
                    continue  # another of the tables has it
                if (
                    ours in (USER_ID, TIMESTAMP)
                    and source == self._sources(ITEMS_FILE)[0]
                ):
                    continue
                raise UserError(
                    f"{source}: column {theirs!r}, which {ours}={theirs} names, is "
                    f"missing; it has: {', '.join(table.column_names)}"
                )
            if ours != theirs:
                kept = [name for name in table.column_names if name != ours]
                table = table.select(kept)
                names = [ours if n == theirs else n for n in table.column_names]
                table = table.rename_columns(names)
        return table

    def _seconds(self, times: pa.ChunkedArray, source: Location) -> pa.ChunkedArray:
        """Return integer and text times as unix seconds; the check does dates."""
        if pt.is_integer(times.type):
            per_second = _PER_SECOND[self._options.time_unit]
            return pc.divide(times.cast(pa.int64()), per_second)
        if not pt.is_string(times.type):
            return times
        try:
            if self._options.time_format:
                parsed: Any = pc.strptime(times, self._options.time_format, unit="s")
            else:
                parsed = times.cast(pa.timestamp("s"))
        except pa.ArrowInvalid as error:
            reason = str(error).splitlines()[0]
            raise UserError(
                f"{source}: column {TIMESTAMP!r}: {reason}; give time_format, e.g. "
                "time_format=%d.%m.%Y"
            ) from None
        return parsed.cast(pa.int64())


def _parse(text: str, spec: str) -> dict[str, str]:
    options = {}
    for part in filter(None, text.split(",")):
        name, separator, value = part.partition("=")
        if not separator or not value:
            raise UserError(f"--data {spec}: write {part!r} as NAME=VALUE")
        options[name.strip()] = value
    return options
