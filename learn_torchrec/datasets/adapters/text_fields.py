"""The values that public catalogues call by many names, as our text fields."""

import html
import re
from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa

from learn_torchrec.datasets.loading.location import Location
from learn_torchrec.errors import UserError
from learn_torchrec.schema import ATTRIBUTES, BRAND, CATEGORY, ITEM_ID, PRICE, TITLE

DESCRIPTION = "description"

_TAG = re.compile(r"<[^>]*>")


def catalogue(rows: Iterable[Mapping[str, Any]], source: Location) -> pa.Table:
    """Return an item table from objects with `item_id` and texts.

    Columns are those that any object has; a missing value is null.

    Args:
        rows: the objects.
        source: their file, for the message.

    Raises:
        UserError: a column whose values are of several types.
    """
    rows = list(rows)
    names = list(dict.fromkeys(name for row in rows for name in row))
    columns = {}
    for name in names:
        try:
            columns[name] = pa.array([row.get(name) for row in rows])
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(
                f"{source}: column {name!r} holds values of several types ({reason}); "
                "use one"
            ) from None
    return pa.table(columns)


def text_fields(row: Mapping[str, Any]) -> dict[str, str | None]:
    """Return the text fields of a catalogue's object, whatever it calls them.

    `categories` and `category` may be nested lists; `store` is the brand where there
    is none; `features` and `feature` are the attributes. HTML is taken out.
    """
    found = {
        TITLE: row.get("title"),
        CATEGORY: row.get("categories") or row.get("category"),
        BRAND: row.get("brand") or row.get("store"),
        PRICE: row.get("price"),
        ATTRIBUTES: row.get("features") or row.get("feature"),
        DESCRIPTION: row.get("description"),
    }
    return {name: plain(value) for name, value in found.items()}


def plain(value: Any) -> str | None:
    """Return a value as text on one line, lists joined with ", "; None when empty."""
    if isinstance(value, list | tuple):
        parts = [part for part in map(plain, value) if part]
        return ", ".join(dict.fromkeys(parts)) or None
    if value is None:
        return None
    text = html.unescape(_TAG.sub(" ", str(value)))
    return " ".join(text.split()) or None


def item(item_id: Any, row: Mapping[str, Any]) -> dict[str, Any]:
    """Return an item table's row."""
    return {ITEM_ID: item_id, **text_fields(row)}
