"""Item texts: catalogue fields under our names, without HTML."""

import html
import itertools
import re
from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt

from learn_torchrec.datasets.loading.location import Location
from learn_torchrec.errors import UserError, first_line
from learn_torchrec.ids import is_text
from learn_torchrec.schema import ATTRIBUTES, BRAND, CATEGORY, ITEM_ID, PRICE, TITLE

DESCRIPTION = "description"

_TAG = re.compile(r"<[^>]*>")
_ENTITY = re.compile(r"&(#\d+|#[xX][0-9a-fA-F]+|\w+);")
_CHUNK = 1 << 16


def table_of(rows: Iterable[Mapping[str, Any]], source: Location) -> pa.Table:
    """Return a table from objects, a chunk of them at a time.

    Columns are those of any object; a missing value is null.

    Raises:
        UserError: a column of `source` whose values are of several types.
    """
    rows, tables = iter(rows), [pa.table({})]
    while chunk := list(itertools.islice(rows, _CHUNK)):
        columns = {}
        for name in dict.fromkeys(name for row in chunk for name in row):
            values = [row.get(name) for row in chunk]
            try:
                columns[name] = pa.array(values)
            except (pa.ArrowInvalid, pa.ArrowTypeError):
                examples = {type(v): repr(v)[:40] for v in values if v is not None}
                found = "such as " + " and ".join(examples.values())
                raise _several_types(f"{source}: column {name!r}", found) from None
            except (UnicodeError, OverflowError) as error:
                raise UserError(
                    f"{source}: column {name!r} holds a value that is no text or "
                    f"64-bit number ({first_line(error)})"
                ) from None
        tables.append(pa.table(columns))
    try:
        return pa.concat_tables(tables[1:] or tables, promote_options="permissive")
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        reason = first_line(error)
        raise _several_types(f"{source}: a column", reason) from None


def text_fields(row: Mapping[str, Any]) -> dict[str, str | None]:
    """Return the text fields of a catalogue's object under our names.

    `categories` and `category` may be nested lists; `store` is the brand if there is no
    `brand`; `features` and `feature` are the attributes. HTML tags are removed.
    """
    found = {
        TITLE: row.get("title"),
        CATEGORY: row.get("categories") or row.get("category"),
        BRAND: row.get("brand") or row.get("store"),
        PRICE: row.get("price"),
        ATTRIBUTES: row.get("features") or row.get("feature"),
        DESCRIPTION: row.get("description"),
    }
    return {name: as_text(value) for name, value in found.items()}


def as_text(value: Any) -> str | None:
    """Return a value as one line of text, lists joined with ", "; None if empty."""
    if isinstance(value, list | tuple):
        parts = [part for part in map(as_text, value) if part]
        return ", ".join(dict.fromkeys(parts)) or None
    if value is None:
        return None
    return " ".join(_TAG.sub(" ", str(value)).split()) or None


def item(item_id: Any, row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row of the item table."""
    return {ITEM_ID: item_id, **text_fields(row)}


def unescape(items: pa.Table) -> pa.Table:
    """Return the items with HTML entities (`&amp;`) in texts and lists replaced.

    Applied once to every adapter's items, so that adapters need not do it.
    """
    for place, name in enumerate(items.column_names):
        column = items.column(place)
        if pt.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        in_lists = hasattr(column.type, "value_field")
        texts = pc.list_flatten(column) if in_lists else column
        if name == ITEM_ID or not is_text(texts.type) or not _has_entity(texts):
            continue
        values = column.to_pylist()
        if in_lists:
            clean: list[Any] = [row and [_unescaped(v) for v in row] for row in values]
        else:
            clean = [_unescaped(value) for value in values]
        items = items.set_column(place, name, pa.array(clean, column.type))
    return items


def _has_entity(texts: pa.ChunkedArray) -> bool:
    return bool(pc.any(pc.match_substring_regex(texts, _ENTITY.pattern)).as_py())


def _unescaped(text: str | None) -> str | None:
    if text is None or "&" not in text:
        return text
    clean = text
    while (less := _ENTITY.sub(lambda match: html.unescape(match[0]), clean)) != clean:
        clean = less  # `&amp;amp;` was escaped twice
    # A text may consist of `&nbsp;` alone.
    return text if clean == text else " ".join(clean.split()) or None


def _several_types(column: str, found: str) -> UserError:
    return UserError(f"{column} holds values of several types ({found}); use one")
