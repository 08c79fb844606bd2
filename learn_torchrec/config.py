"""Configuration: frozen dataclasses beside their owners, composed by presets.

A run's configuration is a plain Python value, validated by pydantic on construction.
`--set section.field=value` changes one field by its dotted name; `--config` reads the
configuration that a run saved.
"""

import dataclasses
import inspect
import re
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, TypeVar, Union, dataclass_transform

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as pydantic_dataclass
from pydantic.fields import FieldInfo

from learn_torchrec.credentials import holds_credentials, without_credentials
from learn_torchrec.errors import UserError, refuse_special
from learn_torchrec.text import parse_json

Config = TypeVar("Config")

# A fraction between 0 and 1, both excluded.
Share = Annotated[float, Field(gt=0, lt=1)]
# Dimensions and layers of networks: far above any that is in use.
Width = Annotated[int, Field(gt=0, le=65_536)]
Depth = Annotated[int, Field(gt=0, le=1024)]
# Days: a century, which every clock and calendar can count.
Days = Annotated[int, Field(gt=0, le=36_525)]
# Of numbers without a bound of their own. What is larger is a typing error, and
# overflows in a library: times in threads, sizes in C.
_LARGEST: dict[type, float] = {int: 2**31 - 1, float: 1e9}


class Operational:
    """Marks a setting that decides how a stage runs but not its result."""


OPERATIONAL = Operational()
# `name: text` and its further lines, which are indented more.
_ATTRIBUTE = re.compile(r"^ {4}(\w+): (.*(?:\n {5,}.*)*)", re.MULTILINE)
_BOUNDS = {"too_short": ("min_length", "least"), "too_long": ("max_length", "most")}


@dataclass_transform(
    frozen_default=True,
    kw_only_default=True,
    field_specifiers=(dataclasses.field, Field, FieldInfo),
)
def configuration(cls: type[Config]) -> type[Config]:
    """Make a class a frozen, keyword-only, validated dataclass.

    Ranges are part of the types (`PositiveInt`, `Annotated[float, Field(lt=1)]`);
    numbers without an upper bound get one, 2³¹ - 1 for int and 10⁹ for float. Rules
    between fields raise a `ValueError` in `__post_init__` (see `require`). A message
    that starts with a field's name and a colon is shown under the field's full name.
    """
    cls.__annotations__ = {k: _bounded(v) for k, v in cls.__annotations__.items()}
    settings = ConfigDict(extra="forbid", allow_inf_nan=False)
    made = pydantic_dataclass(frozen=True, kw_only=True, config=settings)(cls)
    return typing.cast(type[Config], made)


def _bounded(annotation: Any, is_bounded: bool = False) -> Any:
    """Return an annotation whose numbers all have an upper bound."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation in _LARGEST and not is_bounded:
        return Annotated[annotation, Field(le=_LARGEST[annotation])]
    if origin is Annotated:
        kind, *rules = arguments
        is_bounded = any(_has_upper_bound(rule) for rule in rules)
        return Annotated[(_bounded(kind, is_bounded), *rules)]
    if origin is tuple:
        return tuple[tuple(map(_bounded, arguments))]  # type: ignore[misc]
    if origin in (Union, UnionType):
        return Union[tuple(map(_bounded, arguments))]  # noqa: UP007
    return annotation


def _has_upper_bound(rule: object) -> bool:
    rules = (rule, *rule.metadata) if isinstance(rule, FieldInfo) else (rule,)
    return any(
        getattr(each, name, None) is not None for each in rules for name in ("le", "lt")
    )


def require(holds: bool, message: str) -> None:
    """Check a rule between fields in a configuration's `__post_init__`.

    Raises:
        ValueError: with the message; becomes a `UserError` that names the option.
    """
    if not holds:
        raise ValueError(message)


def replace(config: Config, **changes: Any) -> Config:
    """Return a validated copy with some fields changed.

    Raises:
        ValueError: a value out of range.
    """
    copy: Config = dataclasses.replace(config, **changes)  # type: ignore[type-var]
    return copy


def to_dict(config: Any) -> dict[str, Any]:
    """Return a configuration as JSON-ready nested dictionaries."""
    dumped: dict[str, Any] = TypeAdapter(type(config)).dump_python(config, mode="json")
    return dumped


def deciding(config: Any) -> dict[str, Any]:
    """Return the settings that decide the result, as nested dictionaries.

    Settings and sections declared as `Annotated[int, OPERATIONAL]` are left out, such
    as workers, time limits and table placement.
    """
    settings: dict[str, Any] = _without_operational(config, to_dict(config))
    return settings


def dotted(value: Any, name: str) -> dict[str, Any]:
    """Return the settings of nested dictionaries by dotted name.

    >>> dotted({"training": {"seed": 0}, "kind": "hstu"}, "towers")
    {'towers.training.seed': 0, 'towers.kind': 'hstu'}
    """
    if not isinstance(value, dict):
        return {name: value}
    parts = (dotted(part, f"{name}.{key}") for key, part in value.items())
    return {key: one for part in parts for key, one in part.items()}


def _without_operational(value: Any, dumped: Any) -> Any:
    if dataclasses.is_dataclass(value):
        hints = typing.get_type_hints(type(value), include_extras=True)
        return {
            field.name: _without_operational(
                getattr(value, field.name), dumped[field.name]
            )
            for field in dataclasses.fields(value)
            if OPERATIONAL not in getattr(hints[field.name], "__metadata__", ())
        }
    if isinstance(value, tuple):
        pairs = zip(value, dumped, strict=True)
        return [_without_operational(*pair) for pair in pairs]
    return dumped


def meanings(kind: Any) -> dict[str, str]:
    """Return what each field of a configuration means, from the docstrings."""
    found: dict[str, str] = {}
    for each in reversed(kind.__mro__):
        _, _, section = inspect.cleandoc(each.__doc__ or "").partition(
            "\nAttributes:\n"
        )
        section = section.partition("\n\n")[0]
        for name, text in _ATTRIBUTE.findall(section):
            found[name] = " ".join(text.split())
    return found


def from_dict(kind: type[Config], body: Any, source: str | Path) -> Config:
    """Build a configuration from nested dictionaries, refusing unknown names.

    Raises:
        UserError: an unknown field, or a value of the wrong type or out of range.
    """
    try:
        return TypeAdapter(kind).validate_python(body)
    except ValidationError as error:
        raise UserError(f"{source}: {_first_problem(kind, error)}") from None


def load(kind: type[Config], path: Path) -> Config:
    """Read a configuration that a run saved.

    Raises:
        UserError: no such file, not JSON, or not a valid configuration.
    """
    refuse_special(path)
    try:
        body = parse_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"--config {path}: {error.strerror}; name a file") from None
    except ValueError as error:
        raise UserError(f"--config {path}: not valid JSON ({error})") from None
    return from_dict(kind, body, source=f"--config {path}")


def apply_overrides(config: Config, overrides: Iterable[str]) -> Config:
    """Return a copy of `config` with `section.field=value` assignments applied.

    Values are parsed as the field's type: numbers, true/false, null, a bare string, or
    a comma-separated list for tuples. Rules between fields apply to the final values.

    Raises:
        UserError: a malformed assignment, an unknown name, an invalid value, or a URI
            with credentials, which would be saved with what is made.
    """
    body = to_dict(config)
    overrides = list(overrides)
    for override in overrides:
        name, separator, text = override.partition("=")
        if not separator or not name:
            raise UserError(f"--set {override}: write it as section.field=value")
        _assign(type(config), body, name.split("."), text, override)
    _refuse_credentials(body)
    return from_dict(type(config), body, f"--set {' '.join(overrides)}")


def _refuse_credentials(value: object, name: str = "") -> None:
    if isinstance(value, dict):
        for key, part in value.items():
            _refuse_credentials(part, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list | tuple):
        for part in value:
            _refuse_credentials(part, name)
    elif isinstance(value, str) and holds_credentials(value):
        raise UserError(
            f"{name}={without_credentials(value)}: has credentials, and settings are "
            "saved with every artefact; leave them out"
        )


def _assign(
    kind: Any, body: dict[str, Any], path: list[str], text: str, override: str
) -> None:
    hints = typing.get_type_hints(kind, include_extras=True)
    name, *rest = path
    if name not in hints:
        raise UserError(
            f"--set {override}: unknown name {name!r}; known here: {', '.join(hints)}"
        )
    hint = _plain(hints[name])
    is_section = dataclasses.is_dataclass(hint)
    if is_section and not rest:
        fields = ", ".join(typing.get_type_hints(hint))
        raise UserError(f"--set {override}: {name} is a section; set one of: {fields}")
    if rest and not is_section:
        raise UserError(f"--set {override}: {name} has no fields")
    if is_section:
        _assign(hint, body[name], rest, text, override)
    else:
        body[name] = _parse(hints[name], text, override)


def _parse(annotation: Any, text: str, override: str) -> Any:
    """Return a field's value as JSON."""
    value: Any = text
    if text == "null":
        value = None
    elif _plain(annotation) is tuple:
        value = _parse_list(text, override)
    adapter: TypeAdapter[Any] = TypeAdapter(annotation)
    try:
        return adapter.dump_python(adapter.validate_python(value), mode="json")
    except ValidationError as error:
        problem = _first_problem(annotation, error)
        raise UserError(f"--set {override}: {problem}") from None


def _plain(annotation: Any) -> Any:
    """Return the plain type of an annotation, without constraints or parameters."""
    while typing.get_origin(annotation) is Annotated:
        annotation = typing.get_args(annotation)[0]
    return typing.get_origin(annotation) or annotation


def _parse_list(text: str, override: str) -> list[Any]:
    """Parse `a,b,c`, or a JSON list (for entries that are objects)."""
    if not text.startswith("["):
        return [part.strip() for part in text.split(",") if part.strip()]
    try:
        entries: list[Any] = parse_json(text)
    except ValueError as error:
        raise UserError(f"--set {override}: not a JSON list ({error})") from None
    return entries


def _first_problem(kind: Any, error: ValidationError) -> str:
    """Return the first error as one line with the field's full name."""
    problems = error.errors()
    # A misspelt name is the cause of a missing one.
    unknown = (p for p in problems if p["type"] == "unexpected_keyword_argument")
    problem = next(unknown, problems[0])
    path = [str(part) for part in problem["loc"]]
    entry, name = _spoken(path)
    if problem["type"] == "unexpected_keyword_argument":
        fields = _field_names(_kind_at(kind, path[:-1]))
        return f"{entry}unknown name {name}; known here: {', '.join(fields)}"
    fields = _field_names(_kind_at(kind, path))
    if problem["type"] == "value_error":
        message = problem["msg"].removeprefix("Value error, ")
        if message.partition(":")[0] in fields:
            return entry + ".".join([*([name] if name else []), message])
    elif problem["type"] == "dataclass_type" and path:
        message = (
            f'must be an object such as {{"{fields[0]}": ...}}, not '
            f"{problem['input']!r}"
        )
    else:
        message = _reworded(problem["type"], problem["msg"], problem.get("ctx", {}))
    is_ours = problem["type"] == "value_error"
    if path and not is_ours and isinstance(problem["input"], str | int | float):
        message += f", not {problem['input']!r}"
    return f"{entry}{name}: {message}" if name else f"{entry}{message}"


def _spoken(path: Sequence[str]) -> tuple[str, str]:
    """Return the list's entry that a path leads into, if any, and the rest by name.

    >>> _spoken(["ranker", "tasks", "0", "name"])
    ('ranker.tasks entry 1: ', 'name')
    """
    numbers = [place for place, part in enumerate(path) if part.isdigit()]
    if not numbers:
        return "", ".".join(path)
    at = numbers[-1]
    where = f"{'.'.join(path[:at])} entry {int(path[at]) + 1}: ".lstrip()
    return where, ".".join(path[at + 1 :])


def _reworded(kind: str, message: str, context: Mapping[str, Any]) -> str:
    """Return a message of pydantic in this project's words."""
    if kind == "string_pattern_mismatch":
        return f"must match {context['pattern']}"
    if kind in _BOUNDS:
        bound, word = _BOUNDS[kind]
        return f"needs at {word} {context[bound]}"
    return message.replace("Input should be", "must be").replace(
        "Field required", "is missing"
    )


def _field_names(kind: Any) -> list[str]:
    """Return the fields of a configuration, or of all members of a union of them."""
    while typing.get_origin(kind) is Annotated:
        kind = typing.get_args(kind)[0]
    kinds = [k for k in (kind, *typing.get_args(kind)) if dataclasses.is_dataclass(k)]
    names = (field.name for k in kinds for field in dataclasses.fields(k))
    return list(dict.fromkeys(names))


def _kind_at(kind: Any, path: Sequence[str]) -> Any:
    """Return the type of a field at a path inside a configuration's type."""
    for name in path:
        if dataclasses.is_dataclass(kind):
            kind = typing.get_type_hints(kind)[name]
        elif _plain(kind) is tuple:  # homogeneous
            kind = typing.get_args(kind)[0]
    return kind
