"""What `--help` says of every option, and what a shell completes."""

import argparse
import contextlib
import importlib
import io
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from learn_torchrec.apps import completion
from learn_torchrec.apps.stages import STAGES
from learn_torchrec.config import apply_overrides
from learn_torchrec.presets import Run


def parser_of(command: str) -> argparse.ArgumentParser:
    app = importlib.import_module(f"learn_torchrec.apps.{STAGES[command].app}")
    return app.build_parser()


def with_subparsers(
    parser: argparse.ArgumentParser,
) -> Iterator[argparse.ArgumentParser]:
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for each in action.choices.values():
                yield from with_subparsers(each)


@pytest.mark.parametrize("command", STAGES)
def test_every_option_says_what_it_takes_and_its_default(command: str) -> None:
    for parser in with_subparsers(parser_of(command)):
        formatter = parser._get_formatter()
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                continue
            option = (parser.prog, action.option_strings)
            assert action.help, option
            if action.nargs != 0:
                assert action.metavar or action.choices, option
            said = formatter._get_help_string(action) or ""
            has = action.default not in (None, False, "", [], argparse.SUPPRESS)
            assert said.count("(default: ") in ((1,) if has else (0, 1)), option


@pytest.mark.parametrize("command", STAGES)
def test_the_example_is_accepted(command: str) -> None:
    parser, example = parser_of(command), STAGES[command].example
    if example:
        assert f"learn-torchrec {command} {example}\n" in parser.format_help()
    options = parser.parse_args(shlex.split(example.partition(" > ")[0]))
    apply_overrides(Run(), getattr(options, "overrides", []))


# --- completion -------------------------------------------------------------------

# What bash does when the user presses Tab.
COMPLETE = """
source "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=()
$(complete -p learn-torchrec | sed 's/.* -F \\([^ ]*\\).*/\\1/')
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("completion") / "learn-torchrec.bash"
    with contextlib.redirect_stdout(io.StringIO()) as stream:
        completion.main(["bash"])
    path.write_text(stream.getvalue())
    subprocess.run(["bash", "-n", str(path)], check=True)
    return path


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("tra", {"train-towers", "train-ranker"}),
        ("train-towers --con", {"--config", "--content"}),
        ("train-towers --preset pa", {"paper-v1", "paper-v2"}),
        ("train-towers --set split.act", {"split.actions"}),
        ("predict --set a.b=1 ranker.training.ep", {"ranker.training.epochs"}),
        ("data mark", {"market"}),
        ("data market --impr", {"--impressions"}),
        ("train-towers --content ru", {"runs"}),
        ("evaluate-auc --out ru", {"runs", "run.json"}),
        ("completion ", set(completion.SHELLS)),
    ],
)
def test_bash_completes(typed: str, expected: set[str], script, tmp_path) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "run.json").touch()
    words = ["learn-torchrec", *typed.split(" ")]
    done = subprocess.run(
        ["bash", "-c", COMPLETE, "bash", str(script), *words],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert set(done.stdout.split()) == expected


@pytest.mark.parametrize("shell", completion.SHELLS)
def test_every_shell_has_a_script(shell: str, capsys) -> None:
    completion.main([shell])
    text = capsys.readouterr().out
    assert all(command in text for command in STAGES)
