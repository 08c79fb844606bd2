"""Configuration: frozen dataclasses beside their owners, composed by presets.

A run is a plain Python value. `--set section.field=value` changes one field by
its dotted name, typed by the dataclass; `--config` reads back what a run saved.
"""

import dataclasses
import json
import typing
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from learn_torchrec.errors import UserError

Config = TypeVar("Config")


def require(holds: bool, message: str) -> None:
    """Check a configuration in its `__post_init__`.

    Raises:
        ValueError: it does not hold; becomes one line that names the option.
    """
    if not holds:
        raise ValueError(message)


def require_at_least(least: int, config: Any, *names: str) -> None:
    """Check the lower bound of fields of a configuration; see `require`."""
    for name in names:
        require(getattr(config, name) >= least, f"{name}: at least {least}")


def to_dict(config: Any) -> dict[str, Any]:
    """Return a configuration as JSON-ready nested dictionaries."""
    dumped: dict[str, Any] = TypeAdapter(type(config)).dump_python(config, mode="json")
    return dumped


def from_dict(kind: type[Config], body: Any, source: str | Path) -> Config:
    """Build a configuration from nested dictionaries, refusing unknown names.

    Raises:
        UserError: an unknown field, or a value of the wrong type; names `source`.
    """
    _refuse_unknown(kind, body, source, prefix="")
    try:
        return TypeAdapter(kind).validate_python(body)
    except ValidationError as error:
        raise UserError(f"{source}: {_first_problem(error)}") from None


def load(kind: type[Config], path: Path) -> Config:
    """Read a configuration that a run saved."""
    try:
        body = json.loads(path.read_text())
    except OSError as error:
        raise UserError(f"--config {path}: {error.strerror}; name a file") from None
    except ValueError as error:
        raise UserError(f"--config {path}: not valid JSON ({error})") from None
    return from_dict(kind, body, source=f"--config {path}")


def apply_overrides(config: Config, overrides: Iterable[str]) -> Config:
    """Return `config` with `section.field=value` assignments applied together.

    Values are parsed by the field's type: numbers, true/false, null, a bare
    string, or a comma-separated list for tuples.

    Raises:
        UserError: a malformed assignment, an unknown name, a bad value, or values
            that do not fit each other.
    """
    body = to_dict(config)
    overrides = list(overrides)
    for override in overrides:
        name, separator, text = override.partition("=")
        if not separator or not name:
            raise UserError(f"--set {override}: write it as section.field=value")
        _assign(type(config), body, name.split("."), text, override)
    return from_dict(type(config), body, f"--set {' '.join(overrides)}")


def _assign(
    kind: Any, body: dict[str, Any], path: list[str], text: str, override: str
) -> None:
    hints = typing.get_type_hints(kind)
    name, *rest = path
    if name not in hints:
        raise UserError(
            f"--set {override}: unknown name {name!r}; known here: {', '.join(hints)}"
        )
    is_section = dataclasses.is_dataclass(hints[name])
    if is_section and not rest:
        fields = ", ".join(typing.get_type_hints(hints[name]))
        raise UserError(f"--set {override}: {name} is a section; set one of: {fields}")
    if rest and not is_section:
        raise UserError(f"--set {override}: {name} has no fields")
    if is_section:
        _assign(hints[name], body[name], rest, text, override)
    else:
        body[name] = _parse(hints[name], text, override)


def _parse(annotation: Any, text: str, override: str) -> Any:
    """Return a field's value, ready for JSON."""
    value: Any = text
    if text == "null":
        value = None
    elif typing.get_origin(annotation) is tuple:
        value = _parse_list(text, override)
    try:
        if isinstance(value, list):
            for entry in value:
                _refuse_unknown_entry(annotation, entry, f"--set {override}")
        adapter: TypeAdapter[Any] = TypeAdapter(annotation)
        return adapter.dump_python(adapter.validate_python(value), mode="json")
    except ValidationError as error:
        raise UserError(f"--set {override}: {_first_problem(error)}") from None


def _parse_list(text: str, override: str) -> list[Any]:
    """Read `a,b,c`, or a JSON list where the entries are objects."""
    if not text.startswith("["):
        return [part.strip() for part in text.split(",") if part.strip()]
    try:
        entries: list[Any] = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"--set {override}: not a JSON list ({error})") from None
    return entries


def _refuse_unknown_entry(annotation: Any, entry: Any, source: str | Path) -> None:
    kind = typing.get_args(annotation)[0]
    if dataclasses.is_dataclass(kind):
        _refuse_unknown(kind, entry, source, prefix="")


def _refuse_unknown(kind: Any, body: Any, source: str | Path, prefix: str) -> None:
    if not isinstance(body, dict):
        raise UserError(f"{source}: {prefix or 'the file'} must be a JSON object")
    fields = {f.name: f for f in dataclasses.fields(kind)}
    hints = typing.get_type_hints(kind)
    for name, value in body.items():
        if name not in fields:
            raise UserError(
                f"{source}: unknown name {prefix}{name}; known here: "
                + ", ".join(fields)
            )
        if dataclasses.is_dataclass(hints[name]):
            _refuse_unknown(hints[name], value, source, f"{prefix}{name}.")
        elif typing.get_origin(hints[name]) is tuple and isinstance(value, list):
            for entry in value:
                _refuse_unknown_entry(hints[name], entry, source)


def _first_problem(error: ValidationError) -> str:
    problem = error.errors()[0]
    place = ".".join(str(part) for part in problem["loc"])
    message = problem["msg"].removeprefix("Value error, ")
    return f"{place}: {message}" if place else message
