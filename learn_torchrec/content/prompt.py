"""Items as text: the minimal prompt of the paper (section 3.1, v1 "CEG").

The prompt states an item's fields in declarative sentences and asks nothing: a lead-in,
the title, category and brand in one sentence, the price, the keywords and the supported
attributes, every value in double quotes. A missing field's clause is left out.
"""

import datetime
import math
import string
from collections.abc import Sequence
from decimal import Decimal
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from learn_torchrec.config import configuration
from learn_torchrec.errors import UserError
from learn_torchrec.schema import (
    ATTRIBUTES,
    BRAND,
    CATEGORY,
    ITEM_ID,
    ITEM_TEXT_FIELDS,
    KEYWORDS,
    PRICE,
    TITLE,
)

# A language's sentences; `{}` is a quoted value. Sentences end with `stop` + `gap`.
_WORDINGS = {
    "en": {
        "lead_in": "An item is described as follows",
        TITLE: "Its title is {}",
        CATEGORY: "Its category is {}",
        BRAND: "Its brand is {}",
        "category_and_brand": "Its category is {} and its brand is {}",
        PRICE: "Its price is {}",
        KEYWORDS: "Its keywords are {}",
        ATTRIBUTES: "It supports {}",
        "stop": ".",
        "gap": " ",
    },
    "zh": {
        "lead_in": "商品描述如下",
        TITLE: "商品的标题是{}",
        CATEGORY: "商品的类目是{}",
        BRAND: "商品的品牌是{}",
        "category_and_brand": "商品的类目是{}，品牌是{}",  # noqa: RUF001 (a Chinese comma)
        PRICE: "商品的价格是{}",
        KEYWORDS: "商品的关键词是{}",
        ATTRIBUTES: "商品支持{}",
        "stop": "。",
        "gap": "",
    },
}


@configuration
class PromptConfig:
    """How an item becomes text.

    Attributes:
        language: of the prompt's sentences, English or Chinese; values stay unchanged.
        currency: the word after a price, e.g. "yuan"; empty for none.
        template: replaces the paper's prompt, with `{column}` placeholders, e.g.
            `"{title}. {brand}."`; a missing value is empty.
    """

    language: Literal["en", "zh"] = "en"
    currency: str = ""
    template: str | None = None


def render(items: pa.Table, config: PromptConfig, source: str = "items") -> list[str]:
    """Return one text per item, in the table's order; "" for an item without any.

    Prices may be numbers; a list of strings is joined with ", "; null, blank and NaN
    values count as missing.

    Args:
        items: the column `item_id` and any of `title`, `category`, `brand`,
            `price`, `keywords`, `attributes`; a template may name other columns.
        config: the prompt's settings.
        source: of the items, for messages.

    Raises:
        UserError: a column is missing or holds no text, or the template has an unknown
            placeholder.

    Example:
        >>> items = pa.table({"item_id": [7], "title": ["Red mug"], "price": [4.5]})
        >>> render(items, PromptConfig(currency="yuan"))[0]
        'An item is described as follows. Its title is "Red mug". \
Its price is "4.5 yuan".'
    """
    if ITEM_ID not in items.column_names:
        raise UserError(f"{source}: no column {ITEM_ID}; every item needs an id")
    if config.template is None:
        fields = [name for name in ITEM_TEXT_FIELDS if name in items.column_names]
    else:
        fields = _placeholders(config.template, items.column_names)
    if not fields:
        raise UserError(
            f"{source}: no text column; it has: {', '.join(items.column_names)}; give "
            f"at least one of {', '.join(ITEM_TEXT_FIELDS)}, or name columns in "
            "content.prompt.template"
        )
    columns = {name: _column_texts(items, name, source) for name in fields}
    has_text = [any(values) for values in zip(*columns.values(), strict=True)]
    if PRICE in columns and config.currency and config.template is None:
        columns[PRICE] = [p and f"{p} {config.currency}" for p in columns[PRICE]]
    rows = (
        dict(zip(fields, values, strict=True))
        for values in zip(*columns.values(), strict=True)
    )
    if config.template is None:
        wording = _WORDINGS[config.language]
        texts = [_describe(row, wording) for row in rows]
    else:
        texts = [config.template.format_map(row) for row in rows]
    return [text if has else "" for text, has in zip(texts, has_text, strict=True)]


def _describe(texts: dict[str, str], wording: dict[str, str]) -> str:
    """Return the paper's prompt for one item; a missing field is an empty text."""

    def clause(sentence: str, *names: str) -> str:
        values = [f'"{texts[name]}"' for name in names if texts.get(name)]
        complete = len(values) == len(names)
        return wording[sentence].format(*values) if complete else ""

    clauses = [
        wording["lead_in"],
        clause(TITLE, TITLE),
        clause("category_and_brand", CATEGORY, BRAND)
        or clause(CATEGORY, CATEGORY)
        or clause(BRAND, BRAND),
        *(clause(name, name) for name in (PRICE, KEYWORDS, ATTRIBUTES)),
    ]
    return wording["gap"].join(f"{part}{wording['stop']}" for part in clauses if part)


def _placeholders(template: str, columns: Sequence[str]) -> list[str]:
    """Return the distinct columns of a template's placeholders."""
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise UserError(
            f"template {template!r}: {error}; write literal braces as {{{{ and }}}}"
        ) from None
    known = [name for name in columns if name != ITEM_ID]
    names: dict[str, None] = {}
    for _, name, format_spec, conversion in parts:
        if name is None:
            continue
        if name not in known:
            raise UserError(
                f"template {template!r}: unknown placeholder {{{name}}}; the items' "
                "columns are: " + (", ".join(known) or "none")
            )
        if format_spec or conversion:
            raise UserError(
                f"template {template!r}: values are texts; write {{{name}}} alone"
            )
        names[name] = None
    if not names:
        raise UserError(
            f"template {template!r}: no placeholder, so all items would be the same; "
            "add columns such as {title}"
        )
    return list(names)


def _column_texts(items: pa.Table, name: str, source: str) -> list[str]:
    values = items[name].to_pylist()
    # A float32 price must print as it was written (4.99), not as a double.
    single = pa.types.is_float32(items.schema.field(name).type)
    try:
        return [_text(np.float32(v) if single and v is not None else v) for v in values]
    except TypeError as error:
        raise UserError(
            f"{source}: column {name} has {error}; give text, numbers or lists of text"
        ) from None


def _text(value: Any) -> str:
    """Return a value as text on one line, empty when it is missing."""
    if value is None:
        return ""
    if isinstance(value, str):
        return " ".join(value.split())
    if isinstance(value, list):
        return ", ".join(part for part in map(_text, value) if part)
    if isinstance(value, datetime.date):  # or a time
        return str(value)
    if isinstance(value, int | Decimal) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, float | np.floating):
        if math.isnan(value):
            return ""
        return np.format_float_positional(value, trim="-")
    raise TypeError(f"a value of type {type(value).__name__}")
