"""The pages that MkDocs makes from the code: commands, settings, formats and API."""

import argparse
import dataclasses
import importlib
import inspect
import json
import math
import sys
import typing
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from nbconvert import MarkdownExporter
from pydantic import TypeAdapter

import learn_torchrec
from learn_torchrec import presets
from learn_torchrec.apps.evaluate_ab import EvaluateAbConfig
from learn_torchrec.apps.evaluate_auc import EvaluationConfig
from learn_torchrec.apps.stages import STAGES, Stage
from learn_torchrec.config import OPERATIONAL, meanings, to_dict
from learn_torchrec.datasets.adapters import ADAPTERS, csv_files
from learn_torchrec.datasets.adapters.base import Dataset
from learn_torchrec.ranker.features import derive, past

NOTEBOOK = Path(__file__).parent / "pages" / "from_text_to_ranker.ipynb"
_SETTINGS_INTRO = """# Settings

Change one with `--set section.field=value`; a list is `a,b,c` or JSON, and `null` is no
value. Unknown names are refused. The settings that a run used lie in `config.json`
beside each artefact, and `--config` repeats them. A dagger (†) marks settings that
decide how a stage runs but not its result.
"""
_FORMATS_INTRO = """# Formats

`--data ADAPTER:PATH` names a data set. Each adapter brings its files into the three
tables of [your own data](data.md).
"""
_WORDS = {"string": "text", "boolean": "`true`, `false`"}
_BOUNDS = {
    "exclusiveMinimum": ">",
    "minimum": ">=",
    "exclusiveMaximum": "<",
    "maximum": "<=",
    "multipleOf": "a multiple of",
}


def on_config(config: MkDocsConfig) -> None:
    """Fill the section of commands in the navigation."""
    for entry in config.nav or []:
        if "Commands" in entry:
            entry["Commands"] = [{name: f"commands/{name}.md"} for name in STAGES]


def on_files(files: Files, config: MkDocsConfig) -> None:
    """Add the generated pages to the site."""
    for path, text in pages().items():
        files.append(File.generated(config, path, content=text))


def pages() -> dict[str, str]:
    """Return the generated pages by their paths."""
    return {
        **{f"commands/{name}.md": command_page(one) for name, one in STAGES.items()},
        "settings.md": settings_page(),
        "formats.md": formats_page(),
        "features.md": features_page(),
        "api.md": api_page(),
        "notebook.md": notebook_page(),
    }


def parser_of(stage: Stage) -> argparse.ArgumentParser:
    """Return a command's own parser."""
    app = importlib.import_module(f"learn_torchrec.apps.{stage.app}")
    return app.build_parser()


def command_page(stage: Stage) -> str:
    """Return a command's usage and options."""
    parser = parser_of(stage)
    parts = [f"# {stage.command}\n\n{parser.description}\n"]
    if stage.distributed:
        parts.append("Ranks under `torchrun` or `torchx` share the work.\n")
    parts.extend(_options(parser))
    notes, _, example = (parser.epilog or "").partition("example:\n")
    parts.append(f"{notes}\n")
    if example:
        parts.append(f"## Example\n\n```bash\n{inspect.cleandoc(example)}\n```\n")
    return "\n".join(parts)


def _options(parser: argparse.ArgumentParser) -> Iterator[str]:
    for group in parser._action_groups:
        actions = [a for a in group._group_actions if a.help != argparse.SUPPRESS]
        nested = [a for a in actions if isinstance(a, argparse._SubParsersAction)]
        shown = [a for a in actions if a not in nested and a.dest != "help"]
        if shown:
            yield f"## {(group.title or 'options').capitalize()}\n"
            yield from (_option(action, parser) for action in shown)
        for each in nested:
            for name, sub in each.choices.items():
                yield f"## {parser.prog.split()[-1]} {name}\n"
                yield f"{help_of(sub, each)}\n"
                yield from (line.replace("## ", "### ") for line in _options(sub))


def help_of(
    sub: argparse.ArgumentParser, nested: "argparse._SubParsersAction[Any]"
) -> str:
    """Return what a command of a command does."""
    named = {nested.choices[a.dest]: a.help for a in nested._choices_actions}
    return named.get(sub) or ""


def _option(action: argparse.Action, parser: argparse.ArgumentParser) -> str:
    names = ", ".join(f"`{name}`" for name in action.option_strings) or action.dest
    value = ""
    if action.nargs != 0:
        value = f" `{_value(action)}`"
    needed = " (required)" if action.required else ""
    return f"{names}{value}{needed}\n:   {option_help(action, parser)}\n"


def _value(action: argparse.Action) -> str:
    if action.metavar is None and action.choices is not None:
        return "{" + ",".join(map(str, action.choices)) + "}"
    name = action.metavar or action.dest.upper()
    return f"{name} ..." if action.nargs in ("+", "*") else str(name)


def option_help(action: argparse.Action, parser: argparse.ArgumentParser) -> str:
    """Return an option's help as `--help` prints it."""
    expand: Callable[[argparse.Action], str] = parser._get_formatter()._expand_help
    return expand(action) if action.help else ""


class Setting(NamedTuple):
    """One field of a configuration.

    Attributes:
        name: of the field.
        annotation: its type with constraints.
        default: its value, as a configuration or JSON.
        text: what it means.
    """

    name: str
    annotation: Any
    default: Any
    text: str


class Section(NamedTuple):
    """One configuration dataclass, at its place in another.

    Attributes:
        name: with dots, as for `--set`; of an entry of a list, the class's.
        kind: the class.
        settings: its fields.
    """

    name: str
    kind: Any
    settings: list[Setting]


def settings_page() -> str:
    """Return every setting, and what each preset changes."""
    parts = [_SETTINGS_INTRO]
    shown: set[str] = set()
    for title, found in all_sections().items():
        parts.append(f"## {title}\n")
        for section in found:
            if section.name not in shown:
                parts.append(_section(section))
                shown.add(section.name)
    parts.append("## Presets\n")
    parts.extend(map(_preset, presets.PRESETS))
    return "\n".join(parts)


def all_sections() -> dict[str, list[Section]]:
    """Return the sections that the page shows, by its headings."""
    lists = [
        Section(kind.__name__, kind, fields(kind)) for kind in entries(presets.Run)
    ]
    return {
        "Of a run": list(sections(presets.Run())),
        "Entries of lists": lists,
        "Of evaluate-auc": list(sections(EvaluationConfig())),
        "Of evaluate-ab": list(sections(EvaluateAbConfig())),
    }


def setting_names() -> Iterator[str]:
    """Yield every name that `--set` takes, and those of sections."""
    for found in all_sections().values():
        for section in found:
            yield section.name
            yield from (f"{section.name}.{one.name}" for one in section.settings)


def sections(value: Any, name: str = "") -> Iterator[Section]:
    """Yield the sections inside a configuration, depth first."""
    own = fields(type(value), value)
    if name:
        yield Section(name, type(value), own)
    for setting in own:
        if dataclasses.is_dataclass(setting.default):
            inner = f"{name}.{setting.name}" if name else setting.name
            yield from sections(setting.default, inner)


def fields(kind: Any, value: Any = None) -> list[Setting]:
    """Return a section's fields, with the defaults of `value` or of the class."""
    texts, hints = meanings(kind), typing.get_type_hints(kind, include_extras=True)
    return [
        Setting(
            field.name,
            hints[field.name],
            field.default if value is None else getattr(value, field.name),
            texts.get(field.name, ""),
        )
        for field in dataclasses.fields(kind)
    ]


def entries(root: Any) -> list[Any]:
    """Return the configurations that are entries of lists, e.g. `TaskConfig`."""
    found: dict[Any, None] = {}
    for section in sections(root()):
        for setting in section.settings:
            if isinstance(setting.default, tuple):
                found |= dict.fromkeys(_classes(setting.annotation))
    return list(found)


def _classes(annotation: Any) -> Iterator[Any]:
    if isinstance(annotation, type) and dataclasses.is_dataclass(annotation):
        yield annotation
    for inner in typing.get_args(annotation):
        yield from _classes(inner)


def _section(section: Section) -> str:
    summary = inspect.cleandoc(section.kind.__doc__).partition("\nAttributes:")[0]
    rows = [
        f"| `{one.name}`{_dagger(one)} | {_cell(one.text)} | {_shown(one.default)} "
        f"| {_values(one)} |"
        for one in section.settings
        if not dataclasses.is_dataclass(one.default)
    ]
    if not rows:
        return ""
    head = ["| setting | meaning | default | values |", "|---|---|---|---|"]
    return "\n".join([f"### {section.name}\n\n{summary}\n", *head, *rows, ""])


def _preset(name: str) -> str:
    make = presets.PRESETS[name]
    plain = dict(_flat(to_dict(presets.Run())))
    changed = dict(_flat(to_dict(make()))).items() - plain.items()
    rows = [f"| `{key}` | `{_cell(value)}` |" for key, value in sorted(changed)]
    head = ["| setting | value |", "|---|---|"] if rows else []
    return "\n".join([f"### {name}\n\n{inspect.getdoc(make)}\n", *head, *rows, ""])


def _dagger(one: Setting) -> str:
    return " †" if OPERATIONAL in getattr(one.annotation, "__metadata__", ()) else ""


def _shown(default: Any) -> str:
    if default is dataclasses.MISSING:
        return "required"
    value = TypeAdapter(type(default)).dump_python(default, mode="json")
    return f"`{_cell(_as_typed(value))}`" if value != "" else ""


def _as_typed(value: Any) -> str:
    """Return a value as one types it after `--set name=`."""
    if isinstance(value, list) and value and not isinstance(value[0], dict):
        return ",".join(map(_as_typed, value))
    if isinstance(value, str):
        return value
    return json.dumps(_without_nulls(value))


def _without_nulls(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_nulls(each) for each in value]
    if isinstance(value, dict):
        return {key: each for key, each in value.items() if each is not None}
    return value


def _values(one: Setting) -> str:
    return _cell(_of_schema(TypeAdapter(one.annotation).json_schema()))


def _of_schema(schema: Mapping[str, Any]) -> str:
    """Return the values that a JSON schema allows, in words."""
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(map(_of_schema, schema["anyOf"])))
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    kind = schema.get("type", "")
    if kind == "array":
        return f"list of {_of_schema(schema.get('items', {}))}"
    bounds = [
        f"{word} {schema[key]}"
        for key, word in _BOUNDS.items()
        if abs(schema.get(key, math.inf)) < 2**63
    ]
    return " ".join([_WORDS.get(kind, kind), ", ".join(bounds)]).strip()


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _flat(body: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in body.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", _as_typed(value)


def formats_page() -> str:
    """Return what each adapter reads, from the docstring of its module."""
    names: dict[str, dict[str, None]] = {}
    for name, opener in ADAPTERS.items():
        for kind in _datasets(opener):
            text = inspect.getdoc(sys.modules[kind.__module__]) or ""
            names.setdefault(text, {})[f"`{name}:`"] = None
    parts = [_FORMATS_INTRO]
    for text, adapters in names.items():
        title, _, rest = text.partition("\n")
        parts.append(f"## {title.rstrip('.')}\n\n{', '.join(adapters)}\n{rest}\n")
    parts.append(f"## How CSV is read\n\n{inspect.getdoc(csv_files)}\n")
    return "\n".join(parts)


def features_page() -> str:
    """Return what becomes of each column, from the modules that derive features."""
    title, _, rest = (inspect.getdoc(derive) or "").partition("\n")
    return (
        f"# {title.partition(':')[0]}\n\n{title}\n{rest}\n\n"
        f"## Past counts and rates\n\n{inspect.getdoc(past)}\n"
    )


def _datasets(opener: Callable[[str], Dataset]) -> list[type[Dataset]]:
    """Return the classes that an entry of `ADAPTERS` makes."""
    if isinstance(opener, type):
        return [opener]
    function: Any = opener
    named = (function.__globals__.get(name) for name in function.__code__.co_names)
    return [one for one in named if isinstance(one, type) and issubclass(one, Dataset)]


def api_page() -> str:
    """Return the public names, for mkdocstrings to fill in."""
    shown = "\n".join(
        f"::: learn_torchrec.{place}.{name}\n"
        for name, place in learn_torchrec._PUBLIC.items()
    )
    return f"# Python\n\n`from learn_torchrec import NAME`, of these names.\n\n{shown}"


def notebook_page() -> str:
    """Return the notebook with its outputs, and a link to the file."""
    text, _ = MarkdownExporter().from_filename(str(NOTEBOOK))
    return f"{text}\n[Download the notebook]({NOTEBOOK.name})\n"
