"""The pages say what the code does: options, settings, examples and formats."""

import argparse
import doctest
import importlib.util
import inspect
import os
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import nbclient
import nbformat
import pytest
import reference
import vectors_artefact

from learn_torchrec.apps.evaluate_ab import EvaluateAbConfig
from learn_torchrec.apps.evaluate_auc import EvaluationConfig
from learn_torchrec.apps.stages import STAGES
from learn_torchrec.config import apply_overrides
from learn_torchrec.datasets.adapters import ADAPTERS
from learn_torchrec.errors import UserError
from learn_torchrec.presets import Run
from learn_torchrec.torchx_components import learn

ROOT = Path(__file__).parents[1]
PAGES = {
    str(path.relative_to(ROOT)): path.read_text()
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md")))
}
CONFIGURATIONS = {"evaluate-auc": EvaluationConfig, "evaluate-ab": EvaluateAbConfig}
PYTHON = [
    (page, code)
    for page in PAGES
    for code in re.findall(r"```python\n(.*?)```", PAGES[page], re.DOTALL)
]


def shell_lines() -> Iterator[tuple[str, str]]:
    for page, text in PAGES.items():
        for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                if line.strip():
                    yield page, line


def actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                yield from actions(inner)


def parse_command(command: str, *options: str) -> None:
    args = reference.parser_of(STAGES[command]).parse_args(options)
    if "overrides" in args:
        apply_overrides(CONFIGURATIONS.get(command, Run)(), args.overrides)


def parse_torchx(run: str, *words: str) -> None:
    assert run == "run"
    parser = argparse.ArgumentParser(allow_abbrev=False, add_help=False)
    parser.add_argument(
        "-s", choices=("local_cwd", "local_docker", "slurm", "kubernetes")
    )
    parser.add_argument("-cfg")
    parser.add_argument("--workspace")
    parser.add_argument("component")
    for name in inspect.signature(learn.stage).parameters:
        parser.add_argument(f"-{name}" if len(name) == 1 else f"--{name}")
    end = words.index("--")
    file, _, name = parser.parse_args(words[:end]).component.rpartition("learn")
    assert file in ("", "torchx_components/")
    name = name.removeprefix(".py:").removeprefix(".")
    options = words[end + 1 :]
    assert callable(getattr(learn, name))
    if name == "stage":
        parse_command(*options)
    else:
        parse_command(name.replace("_", "-"), *options)


def parse_torchrun(*words: str) -> None:
    where = words.index("-m")
    module = words[where + 1].rpartition(".")
    assert module[0] == "learn_torchrec.apps"
    parse_command(module[2].replace("_", "-"), *words[where + 2 :])


def parse_make(target: str, *variables: str) -> None:
    makefile = (ROOT / "Makefile").read_text()
    assert re.search(rf"^{target}:.* ## ", makefile, re.MULTILINE), target
    assert all(
        re.search(rf"^{v.split('=')[0]} +\?=", makefile, re.M) for v in variables
    )


def parse_python(flag: str, module: str, *options: str) -> None:
    assert flag == "-m"
    assert importlib.util.find_spec(module), module


def parse_docker(build: str, *words: str) -> None:
    assert build == "build"
    assert (ROOT / words[words.index("-f") + 1]).exists()


PROGRAMS = {
    "learn-torchrec": parse_command,
    "torchx": parse_torchx,
    "torchrun": parse_torchrun,
    "make": parse_make,
    "python": parse_python,
    "docker": parse_docker,
    ".": lambda script: None,
}


@pytest.mark.parametrize(("page", "line"), shell_lines())
def test_commands_on_the_pages_can_be_typed(page: str, line: str):
    """They parse: every command, option, setting and value is known."""
    program, *words = shlex.split(line, comments=True)
    PROGRAMS[program](*words)


def test_a_wrong_command_would_be_noticed():
    for line in (
        "learn-torchrec report --rum DIR --out FILE",
        "learn-torchrec train-towers --data x:y --content C --out T --set towers.d=3",
        "torchx run learn.train_towers -j 1x2 -- --data x:y",
        "torchx run learn.train_towers --gpus 1 -- --data x:y --content C --out T",
        "make quickstat",
    ):
        program, *words = shlex.split(line)
        with pytest.raises((SystemExit, UserError, AssertionError)):
            PROGRAMS[program](*words)


@pytest.mark.parametrize(("page", "code"), PYTHON, ids=[page for page, _ in PYTHON])
def test_python_on_the_pages_runs(page, code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    users = ([1, 2], [0, 1, 2], [100, 120], [[1.0, 0.0], [0.0, 1.0]])
    vectors_artefact.write_vectors(
        tmp_path / "runs" / "vectors", users, ([7, 8], [[1.0, 0.0], [0.6, 0.8]])
    )
    if ">>>" not in code:
        exec(code, {})
        return
    earlier = "".join(c for p, c in PYTHON if p == page and ">>>" in c)
    test = doctest.DocTestParser().get_doctest(earlier, {}, page, page, 0)
    assert doctest.DocTestRunner().run(test).failed == 0


@pytest.mark.parametrize("page", PAGES)
def test_options_and_settings_in_the_text_exist(page: str):
    known = {
        name
        for stage in STAGES.values()
        for action in actions(reference.parser_of(stage))
        for name in action.option_strings
    }
    known |= {f"--{name}" for name in inspect.signature(learn.stage).parameters}
    known |= {"--log_dir", "--workspace"}  # torchx's own
    for option in re.findall(r"`(--[\w-]+)", PAGES[page]):
        assert option in known, option
    settings = set(reference.setting_names())
    sections = {name.partition(".")[0] for name in settings}
    for name in re.findall(r"`(?:--set )?([a-z]+(?:\.[a-z_]+)+)[=`]", PAGES[page]):
        if name.partition(".")[0] in sections and not name.endswith(".json"):
            assert name in settings, name


def test_every_setting_is_explained():
    for found in reference.all_sections().values():
        for section in found:
            assert section.kind.__doc__
            for setting in section.settings:
                is_section = hasattr(setting.default, "__dataclass_fields__")
                assert setting.text or is_section, f"{section.name}.{setting.name}"


@pytest.mark.parametrize("command", STAGES)
def test_every_option_is_explained(command: str):
    parser = reference.parser_of(STAGES[command])
    assert parser.description
    for action in actions(parser):
        is_command = isinstance(action, argparse._SubParsersAction)
        help_text = re.sub(r"\(default: .*\)", "", action.help or "").strip()
        assert help_text or is_command, action.option_strings
    page = reference.command_page(STAGES[command])
    for action in actions(parser):
        for name in set(action.option_strings) - {"-h", "--help"}:
            assert f"`{name}`" in page


def test_every_adapter_and_preset_is_on_a_page():
    pages = reference.pages()
    for name in ADAPTERS:
        assert f"`{name}:`" in pages["formats.md"]
    for name in reference.presets.PRESETS:
        assert f"### {name}\n" in pages["settings.md"]


@pytest.mark.slow
def test_the_notebook_runs(tmp_path, monkeypatch):
    """It ends with an assertion on what it measured."""
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    programs = Path(sys.executable).parent
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    notebook = nbformat.read(reference.NOTEBOOK, as_version=4)
    in_folder = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=600, resources=in_folder).execute()


def test_the_notebook_keeps_its_outputs():
    cells = nbformat.read(reference.NOTEBOOK, as_version=4).cells
    run = [cell for cell in cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in run] == list(range(1, len(run) + 1))
    assert "ids + LEARN" in run[-1].outputs[0].text


def test_meanings_are_read_from_docstrings_of_bases_too():
    class Base:
        """A base.

        Attributes:
            first: one line.
            second: two
                lines: the second.
        """

    class Derived(Base):
        """Another.

        Attributes:
            second: replaced.
            third: last.

        Raises:
            error: no field.
        """

    assert reference.meanings(Derived) == {
        "first": "one line.",
        "second": "replaced.",
        "third": "last.",
    }
    assert reference.meanings(Base)["second"] == "two lines: the second."
