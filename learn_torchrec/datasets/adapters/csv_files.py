"""CSV files as people save them.

Quoted texts may hold line breaks. Every column is read as text and gets a type only if
all of its values, in all files, are written in that form: `007` is not 7, and
`0439358078` is a product beside `B00X4WHP5E`. Ids become integers only if every id of
the data set is one.
"""

import contextlib
import io
import itertools
import logging
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pv
import pyarrow.dataset as ds

from learn_torchrec.datasets.adapters.text_files import UTF_8, encoding_of
from learn_torchrec.datasets.loading.location import Location
from learn_torchrec.datasets.loading.row_groups import hive_keys
from learn_torchrec.errors import UserError, first_line
from learn_torchrec.times import ISO, from_iso

logger = logging.getLogger(__name__)

SUFFIXES = tuple(
    f".{name}{zipped}" for name in ("csv", "tsv") for zipped in ("", ".gz")
)
_INTEGER = r"^(0|-?[1-9][0-9]*)$"
_NUMBER = r"^[+-]?(((0|[1-9]\d*)(\.\d*)?|\.\d+)([eE][+-]?\d+)?|inf)$"
_FLOAT_ID = r"^-?\d+\.0+$"
_DATE = r"^\d{4}-\d\d-\d\d$"
# How programs write a missing number, in the order of `_EMPTY`.
_MISSING = pa.array(["", "NULL", "null", "NA", "N/A", "n/a", "NaN", "nan", r"\N"])
_EMPTY = _MISSING.slice(0, 1)
# A text may fill a block.
_BLOCK_BYTES = 1 << 24
# No column has such a name: a header is missing.
_MOMENT = re.compile(r"\d{9,}(\.\d+)?|\d{4}-\d\d-\d\d[ T]\d\d:\d\d.*")
_ONE_CHARACTER = "\x1f"  # stands for a delimiter of several: Arrow takes one


@dataclass(frozen=True, kw_only=True)
class Format:
    """How files are written.

    Attributes:
        delimiter: between values; "" for a tab in `.tsv` files and a comma in others.
        encoding: as Python names it; a UTF-16 byte order mark overrides it.
        escape: the character before a quote within quotes; "" if quotes are doubled.
        decimal: the point of numbers.
    """

    delimiter: str = ""
    encoding: str = UTF_8
    escape: str = ""
    decimal: str = "."


def read(location: Location, form: Format) -> pa.Table:
    """Read a file, or a folder of files, as strings; see `typed`.

    Folders `key=value` give a column; one without a name (a row index) is left out.

    Raises:
        UserError: no such file, or not CSV in that format.
    """
    table = pa.concat_tables(
        [
            pa.Table.from_batches(_batches(file, form, keys))
            for file, keys in _files(location)
        ],
        promote_options="default",
    )
    for column in table.columns:
        if form.escape == "" and pc.any(pc.match_substring(column, r"\"")).as_py():
            logger.warning(
                r"%s: a value holds \"; are quotes escaped so? give escape=backslash",
                location,
            )
            break
    _refuse_open_quote(table, location)
    return table


def integer_columns(
    location: Location, form: Format, columns: Collection[str]
) -> set[str]:
    """Return the columns that hold nothing but integers, or are absent.

    Raises:
        UserError: see `read`.
    """
    found = set(columns)
    for file, keys in _files(location):
        for batch in _batches(file, form, keys, columns):
            found -= {n for n in batch.schema.names if not _are_integers(batch[n])}
            if not found:
                return found
    return found


def as_ids(ids: pa.ChunkedArray, *, integers: bool, where: str) -> pa.ChunkedArray:
    """Return ids that were read as strings, as int64 or unchanged; "" is null.

    Raises:
        UserError: ids that are written as floats; names `where`.
    """
    numbers = _present(ids)
    if integers and numbers.null_count < len(numbers):
        return numbers.cast(pa.int64())
    present = pc.if_else(pc.is_in(ids, value_set=_EMPTY), None, ids)
    if _all_match(present, rf"{_INTEGER}|{_FLOAT_ID}") and len(present.drop_null()):
        is_float = pc.match_substring_regex(present, _FLOAT_ID)
        if pc.any(is_float).as_py():
            example = present.filter(is_float)[0]
            raise UserError(
                f"{where}: ids are floats, such as {example}; write them as integers "
                '(in pandas: .astype("Int64"))'
            )
    if pc.any(pc.match_substring_regex(present, r"^\s|\s$")).as_py():
        logger.warning("%s: ids have spaces around them, which are kept", where)
    return present


def typed(values: pa.ChunkedArray, decimal: str = ".") -> pa.ChunkedArray:
    """Return strings as int64, float64, bool, dates or times if all are so written.

    A missing value is null then; of strings, only the empty one is.
    """
    present = pc.utf8_trim_whitespace(_present(values))
    if present.null_count == len(present):
        return empty_as_null(values)
    numbers = pc.replace_substring(present, decimal, ".")
    with contextlib.suppress(pa.ArrowInvalid):  # more digits than int64 has
        if _all_match(present, _INTEGER):
            return present.cast(pa.int64())
    if _all_match(numbers, _NUMBER):
        return numbers.cast(pa.float64())
    if _all_match(present, "^([Tt]rue|[Ff]alse|TRUE|FALSE)$"):
        return pc.equal(pc.utf8_lower(present), "true")
    with contextlib.suppress(pa.ArrowInvalid):  # no such day
        if _all_match(present, _DATE):
            return present.cast(pa.date32())
        if _all_match(present, ISO):
            return from_iso(present)
    return empty_as_null(values)


def empty_as_null(texts: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return texts with null, as other files write it, for an empty one."""
    return pc.if_else(pc.equal(texts, ""), None, texts)


def _files(location: Location) -> Iterator[tuple[Location, dict[str, str]]]:
    """Yield the files that are not empty, and their folders' keys."""
    files = location.files(*SUFFIXES) if location.is_dir() else []
    files = [one for one in files or location.files() if one.size()]
    if not files:
        raise UserError(f"{location}: is empty; give a file with a header and rows")
    paths = [file.path[len(location.path) :] for file in files]
    hive = hive_keys(paths)
    for file, path in zip(files, paths, strict=True):
        keys = ds.get_partition_keys(hive.parse(path))
        yield file, {n: "" if v is None else str(v) for n, v in keys.items()}


def _batches(
    file: Location, form: Format, keys: dict[str, str], columns: Collection[str] = ()
) -> Iterator[pa.RecordBatch]:
    """Yield a file's rows as strings, some columns or all that have a name."""
    with _one_line(file):
        names = _open(file, form).schema.names
        _check_header(names, file)
        wanted = {name: name.strip() for name in names if name.strip()}
        if columns:
            wanted = {n: name for n, name in wanted.items() if name in columns}
        added = {n: v for n, v in keys.items() if n in (columns or keys)}
        options = pv.ConvertOptions(
            column_types=dict.fromkeys(wanted, pa.string()),
            include_columns=list(wanted),
        )
        schema = pa.schema([(name, pa.string()) for name in wanted])
        empty = pa.RecordBatch.from_pylist([], schema)  # of a header alone
        rows = _open(file, form, options) if wanted else []
        for batch in itertools.chain([empty], rows):
            batch = batch.rename_columns(list(wanted.values()))
            if len(form.delimiter) > 1:
                parts = [
                    pc.replace_substring(column, _ONE_CHARACTER, form.delimiter)
                    for column in batch.columns
                ]
                batch = pa.RecordBatch.from_arrays(parts, batch.schema.names)
            for key, value in added.items():
                batch = batch.append_column(key, pa.repeat(value, batch.num_rows))
            yield batch


def _open(
    file: Location, form: Format, options: pv.ConvertOptions | None = None
) -> pv.CSVStreamingReader:
    delimiter = form.delimiter or ("\t" if ".tsv" in file.file_name else ",")
    stream, encoding = file.open(), encoding_of(file, form.encoding)
    if len(delimiter) > 1:
        text = stream.read().decode(encoding).replace(delimiter, _ONE_CHARACTER)
        stream, encoding, delimiter = io.BytesIO(text.encode()), UTF_8, _ONE_CHARACTER
    return pv.open_csv(
        stream,
        convert_options=options,
        parse_options=pv.ParseOptions(
            delimiter=delimiter,
            newlines_in_values=True,
            escape_char=form.escape or False,
        ),
        read_options=pv.ReadOptions(
            encoding="utf8" if encoding == UTF_8 else encoding, block_size=_BLOCK_BYTES
        ),
    )


def _check_header(names: list[str], file: Location) -> None:
    twice = [name for name in names if name and names.count(name) > 1]
    if twice:
        raise UserError(f"{file}: has column {twice[0]!r} twice; rename one of them")
    if moments := [name for name in names if _MOMENT.fullmatch(name)]:
        raise UserError(
            f"{file}: the first line holds {moments[0]!r} and no names; put the names "
            "of the columns before it, e.g. user_id,item_id,timestamp,action"
        )
    if len(names) == 1 and (found := [c for c in ";\t|," if c in names[0]]):
        shown = {"\t": "tab", ",": "comma"}.get(found[0], found[0])
        raise UserError(
            f"{file}: has one column, {names[0]!r}; name what separates columns, e.g. "
            f"--data csv:DIR#delimiter={shown}"
        )


def _refuse_open_quote(table: pa.Table, location: Location) -> None:
    """Refuse a file that ends within quotes, whose last rows are one value."""
    if table.num_rows and table.num_columns:
        last = table.columns[-1][-1].as_py()
        if last is not None and last.endswith("\n"):
            quotes = sum(file.open().read().count(b'"') for file, _ in _files(location))
            if quotes % 2:
                raise UserError(
                    f"{location}: a quote is not closed before the end; its value "
                    f"begins {last[:40]!r}"
                )


def _present(values: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return values with missing ones as null."""
    return pc.if_else(pc.is_in(values, value_set=_MISSING), None, values)


def _are_integers(values: pa.Array) -> bool:
    present = _present(values)
    try:
        present.cast(pa.int64())
    except pa.ArrowInvalid:  # no number, or more digits than int64 has
        return False
    return _all_match(present, _INTEGER)


def _all_match(values: pa.ChunkedArray, pattern: str) -> bool:
    """Whether all values that are not null match."""
    matches = pc.match_substring_regex(values, pattern)
    return bool(pc.all(matches, min_count=0).as_py())


@contextlib.contextmanager
def _one_line(location: Location) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except (pa.ArrowException, OSError, UnicodeError) as error:
        reason = first_line(error)
        fix = ""
        if "UTF" in reason or "codec" in reason:
            fix = "; give encoding, e.g. encoding=latin-1"
        elif "Expected" in reason:
            fix = "; give delimiter, or escape=backslash if quotes are escaped so"
        raise UserError(f"{location}: cannot be read as CSV ({reason}){fix}") from None
