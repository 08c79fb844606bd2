"""Column maps: CSV, JSONL and Parquet under other names (`csv:DIR#NAME=VALUE,...`).

    csv:../logs#interactions=events.csv,user_id=uid,item_id=asin,timestamp=ts,
        default_action=buy
    csv:shop#items.item_id=id,interactions.item_id=product_id,encoding=latin-1
    parquet:s3://bucket/market#timestamp=event_time,time_unit=ms

An option gives the name of a file (`items`, `interactions`, `impressions`), or of the
column that holds one of ours (`user_id`, `item_id`, `timestamp`, `action`, `label`,
`weight`, `title`, ...) in all files or in one of them (`items.item_id`), or it is:

- `default_action`: the action of every event in a log without an action column;
- `time_unit`: `s`, `ms`, `us` or `ns`, of times as numbers;
- `time_format`: of times as text, in strptime's notation; ISO 8601 by default;
- `delimiter`: of CSV, e.g. `;`, `||`, `tab` or `comma`;
- `escape`: of CSV, the character before a quote within quotes (Spark's backslash), e.g.
  `backslash`;
- `decimal`: of CSV, `comma` if numbers have one;
- `encoding`: of CSV and JSONL, e.g. `latin-1`; UTF-8 by default.

The items may be JSONL (`.jsonl`, `.json`) beside a CSV log. For how ids and texts of
CSV are read, see `csv_files`.
"""

import codecs
import functools
import re
from dataclasses import dataclass, fields

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt

from learn_torchrec.credentials import holds_credentials, without_credentials
from learn_torchrec.datasets.adapters import csv_files
from learn_torchrec.datasets.adapters.base import Dataset
from learn_torchrec.datasets.adapters.item_texts import table_of
from learn_torchrec.datasets.adapters.text_files import UTF_8, read_jsonl
from learn_torchrec.datasets.loading import tables
from learn_torchrec.datasets.loading.location import Location
from learn_torchrec.errors import UserError, first_line
from learn_torchrec.ids import is_text
from learn_torchrec.schema import (
    ACTION,
    IMPRESSIONS_FILE,
    INTERACTIONS_FILE,
    ITEM_ID,
    ITEM_TEXT_FIELDS,
    ITEMS_FILE,
    LABEL,
    PRICE,
    TIMESTAMP,
    USER_ID,
    WEIGHT,
)
from learn_torchrec.times import TICKS, from_iso, from_numbers

_FILES = {
    "items": ITEMS_FILE,
    "interactions": INTERACTIONS_FILE,
    "impressions": IMPRESSIONS_FILE,
}
_COLUMNS = (USER_ID, ITEM_ID, TIMESTAMP, ACTION, LABEL, WEIGHT, *ITEM_TEXT_FIELDS)
_IDS = (USER_ID, ITEM_ID)
# Columns that a table may lack although the map names them, as another table has them.
_ELSEWHERE = {
    ITEMS_FILE: {*_COLUMNS} - {ITEM_ID},
    INTERACTIONS_FILE: {ACTION, LABEL, WEIGHT, *ITEM_TEXT_FIELDS},
    IMPRESSIONS_FILE: {ACTION, LABEL, WEIGHT, *ITEM_TEXT_FIELDS},
}
# Characters that are hard to type in an option.
_NAMES = {"tab": "\t", r"\t": "\t", "comma": ",", "space": " ", "backslash": "\\"}
_JSON = (".jsonl", ".json", ".jsonl.gz", ".json.gz")


@dataclass(frozen=True, kw_only=True)
class MapOptions:
    """Options that are neither a file nor a column."""

    default_action: str = ""
    time_unit: str = "s"
    time_format: str = ""
    delimiter: str = ""
    escape: str = ""
    decimal: str = "."
    encoding: str = UTF_8


_OTHERS = [field.name for field in fields(MapOptions)]
_KNOWN = {
    *(*_FILES, *_COLUMNS, *_OTHERS),
    *(f"{file}.{column}" for file in _FILES for column in _COLUMNS),
}


class ColumnMap(Dataset):
    """A data set whose files and columns have the names that its options give.

    Args:
        spec: `DIR#NAME=VALUE,...`.
        suffix: of the files' default names.

    Raises:
        UserError: an unknown option or value.
    """

    def __init__(self, spec: str, suffix: str) -> None:
        where, text = _split(spec)
        super().__init__(where)
        spec = without_credentials(spec)
        self._suffix, self.map_of = suffix, suffix.removeprefix(".")
        options = parse_options(text, spec)
        self._files = {n: options.pop(n) for n in _FILES if n in options}
        self._columns = {
            name: options.pop(name)
            for column in _COLUMNS
            for name in (column, *(f"{file}.{column}" for file in _FILES))
            if name in options
        }
        for name in options:
            if name not in _OTHERS:
                names = ", ".join((*_FILES, *_COLUMNS, *_OTHERS))
                raise UserError(f"--data {spec}: unknown name {name!r}; known: {names}")
        self._options = MapOptions(**options)
        if self._options.time_unit not in TICKS:
            raise UserError(
                f"--data {spec}: time_unit must be one of {', '.join(TICKS)}"
            )
        self._format = csv_files.Format(
            delimiter=_delimiter(self._options.delimiter, spec),
            encoding=_encoding(self._options.encoding, spec),
            escape=_character("escape", self._options.escape, spec),
            decimal=_character("decimal", self._options.decimal, spec),
        )

    def fingerprint(self, table: str) -> str:
        """Return the digest of a table's files and of the options."""
        settings = sorted({**self._files, **self._columns}.items())
        return f"{super().fingerprint(table)} {settings} {self._options}"

    def sources(self, table: str) -> list[Location]:
        stem = table.removesuffix(".parquet")
        if stem in self._files:
            return [self.location / self._files[stem]]
        others = csv_files.SUFFIXES if self._suffix == ".csv" else ()
        names = [self.location / f"{stem}{end}" for end in (self._suffix, *others)]
        return [next((one for one in names if one.exists()), names[0])]

    def read_items(self) -> pa.Table:
        return self._read(ITEMS_FILE)

    def read_interactions(self) -> pa.Table:
        table = self._read(INTERACTIONS_FILE)
        if ACTION not in table.column_names:
            if not self._options.default_action:
                raise UserError(
                    f"{self.name(INTERACTIONS_FILE)}: has no column {ACTION!r}; its "
                    f"columns: {', '.join(table.column_names)}; name it "
                    "(action=COLUMN) or give one to all events (default_action=buy)"
                )
            actions = pa.repeat(self._options.default_action, table.num_rows)
            table = table.append_column(ACTION, actions)
        return self._with_times(table, INTERACTIONS_FILE)

    def read_impressions(self) -> pa.Table:
        return self._with_times(self._read(IMPRESSIONS_FILE), IMPRESSIONS_FILE)

    def _read(self, name: str) -> pa.Table:
        """Return a table with our column names and with ids of the common type."""
        (source,) = self.sources(name)
        if not source.exists():
            stem = name.removesuffix(".parquet")
            raise UserError(
                f"{source}: no such file; say which it is: "
                f"--data {self.map_of}:DIR#{stem}=FILE"
            )
        if source.path.endswith(_JSON):
            table = table_of(read_jsonl(source, self._format.encoding), source)
        elif self._suffix == ".parquet":
            table = tables.read_parquet(source)
        else:
            table = csv_files.read(source, self._format)
        table = self._renamed(table, name)
        if self._suffix == ".parquet":  # columns already have a type
            return table
        columns = [self._typed(table, column, name) for column in table.column_names]
        return pa.table(columns, table.column_names)

    def _typed(self, table: pa.Table, name: str, source: str) -> pa.ChunkedArray:
        """Return a column of CSV or JSONL with its type."""
        values, where = table[name], f"{self.name(source)}: column {name!r}"
        if name in _IDS:
            integers = name in self._integer_ids
            if is_text(values.type):
                return csv_files.as_ids(values, integers=integers, where=where)
            # From JSONL; strings if another file has strings.
            is_integer = pt.is_integer(values.type)
            return values.cast(pa.string()) if is_integer and not integers else values
        if not is_text(values.type):
            return values
        if name == ACTION or (name in ITEM_TEXT_FIELDS and name != PRICE):
            return csv_files.empty_as_null(values)
        if name == TIMESTAMP and self._options.time_format:
            return values
        return csv_files.typed(values, self._format.decimal)

    def _names(self, table: str) -> dict[str, str]:
        """Return the name in a table's file of each of our columns that is mapped."""
        file = f"{table.removesuffix('.parquet')}."
        for_all = {n: v for n, v in self._columns.items() if "." not in n}
        own = {n: v for n, v in self._columns.items() if n.startswith(file)}
        return for_all | {n.removeprefix(file): v for n, v in own.items()}

    @functools.cached_property
    def _integer_ids(self) -> set[str]:
        """The id columns that hold nothing but integers in all files."""
        found = set(_IDS)
        for table in _FILES.values():
            (source,) = self.sources(table)
            if not found or not source.exists():
                continue
            names = {ours: self._names(table).get(ours, ours) for ours in found}
            if source.path.endswith(_JSON):
                rows = table_of(read_jsonl(source, self._format.encoding), source)
                integers = {
                    name
                    for name in names.values()
                    if name not in rows.column_names or pt.is_integer(rows[name].type)
                }
            else:
                integers = csv_files.integer_columns(
                    source, self._format, names.values()
                )
            found = {ours for ours in found if names[ours] in integers}
        return found

    def _renamed(self, table: pa.Table, name: str) -> pa.Table:
        """Rename mapped columns to ours; another column of that name is dropped."""
        file = name.removesuffix(".parquet")
        for ours, theirs in self._names(name).items():
            if theirs not in table.column_names:
                if ours in _ELSEWHERE[name] and f"{file}.{ours}" not in self._columns:
                    continue
                raise UserError(
                    f"{self.name(name)}: column {theirs!r}, which {ours}={theirs} "
                    f"names, is missing; it has: {', '.join(table.column_names)}"
                )
            if ours != theirs:
                kept = [column for column in table.column_names if column != ours]
                table = table.select(kept)
                names = [ours if n == theirs else n for n in table.column_names]
                table = table.rename_columns(names)
        return table

    def _with_times(self, table: pa.Table, name: str) -> pa.Table:
        """Return a table whose times are Arrow timestamps or integer seconds."""
        if TIMESTAMP not in table.column_names:
            return table
        times = table[TIMESTAMP]
        unit = self._options.time_unit
        if pt.is_integer(times.type) and unit != "s":
            times = times.cast(pa.int64()).cast(pa.timestamp(unit))
        elif pt.is_float64(times.type) or pt.is_decimal(times.type):
            times = from_numbers(times, unit)
        elif is_text(times.type):
            times = self._parsed(times, self.name(name))
        place = table.column_names.index(TIMESTAMP)
        return table.set_column(place, TIMESTAMP, times)

    def _parsed(self, times: pa.ChunkedArray, source: str) -> pa.ChunkedArray:
        try:
            if self._options.time_format:
                return pc.strptime(times, self._options.time_format, unit="s")
            return from_iso(times)
        except pa.ArrowInvalid as error:
            raise UserError(
                f"{source}: column {TIMESTAMP!r}: {first_line(error)}; give "
                "time_format, e.g. time_format=%d.%m.%Y"
            ) from None


def _split(spec: str) -> tuple[str, str]:
    """Return the folder and the options; a `#` may be one of a password, too."""
    if not holds_credentials(spec):
        where, _, text = spec.partition("#")
        return where, text
    for found in reversed(list(re.finditer(r"#([\w.]+)=", spec))):
        if found[1] in _KNOWN:
            return spec[: found.start()], spec[found.start() + 1 :]
    return spec, ""


def parse_options(text: str, spec: str) -> dict[str, str]:
    """Read `NAME=VALUE,...`.

    Raises:
        UserError: a part without a name or value; `spec` is the whole of `--data`.
    """
    options = {}
    for part in filter(None, text.split(",")):
        name, separator, value = part.partition("=")
        if not separator or not value:
            raise UserError(f"--data {spec}: write {part!r} as NAME=VALUE")
        options[name.strip()] = value
    return options


def _delimiter(value: str, spec: str) -> str:
    delimiter = _NAMES.get(value, value)
    if not re.fullmatch(r"[\t!#-/:-@\[-`{-~ ]*", delimiter):
        raise UserError(
            f"--data {spec}: delimiter={value} must be ASCII signs but quotes, or one "
            f"of {', '.join(_NAMES)}"
        )
    return delimiter


def _character(option: str, value: str, spec: str) -> str:
    character = _NAMES.get(value, value)
    if len(character) > 1 or not character.isascii():
        raise UserError(f"--data {spec}: {option}={value} must be one ASCII character")
    return character


def _encoding(value: str, spec: str) -> str:
    try:
        name = codecs.lookup(value).name
    except LookupError:
        raise UserError(
            f"--data {spec}: encoding={value} is unknown; write e.g. utf-8 or latin-1"
        ) from None
    return UTF_8 if name == "utf-8" else name
