"""Every setting of every command: odd values are taken or refused in one line."""

import dataclasses
import typing
from collections.abc import Iterator
from typing import Any

import pytest

from learn_torchrec import config, presets
from learn_torchrec.apps.evaluate_ab import EvaluateAbConfig
from learn_torchrec.apps.evaluate_auc import EvaluationConfig
from learn_torchrec.datasets.generated.market import MarketConfig
from learn_torchrec.errors import UserError

ROOTS = (presets.Run, EvaluationConfig, EvaluateAbConfig, MarketConfig)
NOT_FINITE = ("inf", "-inf", "nan", "Infinity", "1e400")
HUGE = ("9" * 30, "1" + "0" * 18, "2147483648", "1e23")
ODD = (*NOT_FINITE, *HUGE, "0", "-1", "-2147483649", "1e-400", "", "null", "x", "٣")


def leaves(kind: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the full name and the type of every setting."""
    hints = typing.get_type_hints(kind, include_extras=True)
    for field in dataclasses.fields(kind):
        plain = config._plain(hints[field.name])
        name = f"{prefix}{field.name}"
        if dataclasses.is_dataclass(plain):
            yield from leaves(plain, f"{name}.")
        else:
            yield name, hints[field.name]


def numbers_in(kind: Any) -> set[type]:
    """Return which of int and float a type is made of."""
    if kind in (int, float):
        return {kind}
    return set().union(*map(numbers_in, typing.get_args(kind)), set())


SETTINGS = [(root, name, kind) for root in ROOTS for name, kind in leaves(root)]
NUMBERS = [setting for setting in SETTINGS if numbers_in(setting[2])]


def read(root: Any, name: str, text: str) -> Any:
    value = config.apply_overrides(root(), [f"{name}={text}"])
    for part in name.split("."):
        value = getattr(value, part)
    return value


def test_there_are_many():
    assert len(SETTINGS) > 150
    assert len(NUMBERS) > 100


@pytest.mark.parametrize("root", ROOTS, ids=lambda root: root.__name__)
def test_each_odd_value_is_taken_or_refused_in_one_line(root):
    for name, _ in leaves(root):
        for text in ODD:
            try:
                read(root, name, text)
            except UserError as error:
                line = str(error)
                assert line.startswith(f"--set {name}={text}"), line
                assert "\n" not in line


@pytest.mark.parametrize("text", [*NOT_FINITE, *HUGE])
def test_no_number_is_infinite_or_too_large_for_a_library(text):
    taken = []
    for root, name, _ in NUMBERS:
        try:
            value = read(root, name, text)
        except UserError:
            continue
        if name.endswith(".seed") and isinstance(value, int):
            continue  # has a bound of its own, 2**63
        if not isinstance(value, str):
            taken.append((name, value))
    assert taken == []


@pytest.mark.parametrize(
    "name",
    [
        *("towers.model.encoder.width", "towers.model.encoder.feed_forward_dim"),
        *("towers.model.encoder.vector_dim", "ranker.model.embedding_dim"),
        *("ranker.model.over_layers", "ranker.learn.hidden_layers"),
        *("export.content_dim", "codes.components", "ranker.model.dcn_rank"),
    ],
)
def test_a_width_that_no_memory_holds_is_refused_before_any_is_taken(name):
    with pytest.raises(UserError, match="must be less than or equal to 65536"):
        read(presets.Run, name, "1000000000")


def test_own_bounds_are_kept():
    assert read(presets.Run, "towers.training.seed", str(2**63 - 1)) == 2**63 - 1
    with pytest.raises(UserError, match="must be greater than 0"):
        read(presets.Run, "towers.optimizer.eps", "0")
