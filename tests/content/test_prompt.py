import pyarrow as pa
import pytest

from learn_torchrec.content.prompt import PromptConfig, render
from learn_torchrec.errors import UserError


def test_all_fields_in_the_papers_order() -> None:
    items = pa.table(
        {
            "attributes": [["instalments", "free returns"]],
            "keywords": [["mug", "red", "gift"]],
            "price": [29.9],
            "brand": ["Acme"],
            "category": ["Kitchen"],
            "title": ["Red mug"],
            "item_id": [1],
        }
    )
    assert render(items, PromptConfig(currency="yuan")) == [
        "An item is described as follows. "
        'Its title is "Red mug". '
        'Its category is "Kitchen" and its brand is "Acme". '
        'Its price is "29.9 yuan". '
        'Its keywords are "mug, red, gift". '
        'It supports "instalments, free returns".'
    ]


def test_chinese() -> None:
    items = pa.table(
        {
            "item_id": [1, 2],
            "title": ["红色杯子", None],
            "category": ["厨房", None],
            "brand": ["Acme", "Acme"],
            "price": [29.9, None],
            "keywords": [["杯子", "礼物"], None],
            "attributes": [["包邮"], None],
        }
    )
    assert render(items, PromptConfig(language="zh", currency="元")) == [
        "商品描述如下。"
        '商品的标题是"红色杯子"。'
        '商品的类目是"厨房"，品牌是"Acme"。'
        '商品的价格是"29.9 元"。'
        '商品的关键词是"杯子, 礼物"。'
        '商品支持"包邮"。',
        '商品描述如下。商品的品牌是"Acme"。',
    ]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"title": ["A"]}, 'Its title is "A".'),
        ({"category": ["B"], "brand": [None]}, 'Its category is "B".'),
        ({"category": ["  "], "brand": ["C"]}, 'Its brand is "C".'),
        ({"title": ["A"], "price": [float("nan")]}, 'Its title is "A".'),
        ({"title": ["A"], "keywords": [[]]}, 'Its title is "A".'),
        ({"title": ["A"], "keywords": [["", None]]}, 'Its title is "A".'),
        ({"attributes": [["returns", " "]]}, 'It supports "returns".'),
    ],
)
def test_missing_fields_leave_no_words_behind(
    fields: dict[str, list[object]], expected: str
) -> None:
    items = pa.table({"item_id": ["x"], **fields})
    assert render(items, PromptConfig()) == [
        f"An item is described as follows. {expected}"
    ]


@pytest.mark.parametrize(
    ("prices", "expected"),
    [
        (pa.array([12.0]), "12"),
        (pa.array([4.99], pa.float32()), "4.99"),
        (pa.array([1e16]), "10000000000000000"),
        (pa.array([0]), "0"),
        (pa.array(["12,50"]), "12,50"),
        (pa.array(["1.50"]).cast(pa.decimal128(6, 2)), "1.50"),
    ],
)
def test_prices_of_any_type(prices: pa.Array, expected: str) -> None:
    items = pa.table({"item_id": [1], "price": prices})
    assert render(items, PromptConfig()) == [
        f'An item is described as follows. Its price is "{expected}".'
    ]


def test_text_is_put_on_one_line_and_dictionary_columns_are_read() -> None:
    category = pa.array(["a \n\tb", "c"]).dictionary_encode()
    items = pa.table({"item_id": [1, 2], "category": category})
    assert render(items, PromptConfig(template="{category}!")) == ["a b!", "c!"]


def test_template_may_name_any_column_and_leaves_missing_values_empty() -> None:
    items = pa.table(
        {"item_id": [1, 2], "title": ["T", None], "director": ["D", "E"]}
        | {"price": [1.5, 2.0]}
    )
    config = PromptConfig(template="{{{title}}} by {director}, {price}", currency="x")
    assert render(items, config) == ["{T} by D, 1.5", "{} by E, 2"]


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{colour}", r"unknown placeholder \{colour\}.*columns are: title"),
        ("{item_id}", r"unknown placeholder \{item_id\}"),
        ("{title.__class__}", "unknown placeholder"),
        ("{}", r"unknown placeholder \{\}"),
        ("{title:>9}", r"write \{title\}"),
        ("{title!r}", r"write \{title\}"),
        ("{title", "write literal braces"),
        ("the same for all", "no placeholder"),
    ],
)
def test_bad_templates(template: str, message: str) -> None:
    items = pa.table({"item_id": [1], "title": ["T"]})
    with pytest.raises(UserError, match=message):
        render(items, PromptConfig(template=template))


@pytest.mark.parametrize("template", [None, "Title: {title}"])
def test_items_without_text_have_an_empty_one(template: str | None) -> None:
    items = pa.table({"item_id": [1, 42, 43], "title": ["T", " ", None]})
    first, *others = render(items, PromptConfig(template=template))
    assert "T" in first
    assert others == ["", ""]


def test_tables_that_are_no_item_tables() -> None:
    with pytest.raises(UserError, match="no column item_id"):
        render(pa.table({"title": ["T"]}), PromptConfig())
    with pytest.raises(UserError, match=r"x: no text column; it has: item_id; give"):
        render(pa.table({"item_id": [1]}), PromptConfig(), "x")
    with pytest.raises(UserError, match="column title has a value of type dict"):
        render(pa.table({"item_id": [1], "title": [{"a": 1}]}), PromptConfig())
