"""The public names: what is imported, what type checkers see."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import learn_torchrec

ROOT = Path(__file__).parents[1]


def test_type_checkers_and_the_interpreter_see_the_same_names():
    tree = ast.parse(Path(learn_torchrec.__file__).read_text())
    seen = {
        alias.asname: f"{node.module}.{alias.name}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module.startswith("learn_torchrec")
        for alias in node.names
    }
    assert seen == {
        name: f"learn_torchrec.{place}.{name}"
        for name, place in learn_torchrec._PUBLIC.items()
    }


@pytest.mark.parametrize("name", learn_torchrec.__all__)
def test_every_name_is_there(name):
    assert getattr(learn_torchrec, name).__name__ == name
    assert name in dir(learn_torchrec)


def test_other_names_are_not():
    with pytest.raises(AttributeError, match="no attribute 'Learn'"):
        learn_torchrec.Learn  # noqa: B018


def test_importing_the_package_imports_nothing_heavy():
    code = (
        "import sys, learn_torchrec; "
        "print([name for name in ('torch', 'pyarrow', 'numpy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "[]\n"


def test_a_users_file_has_real_types(tmp_path):
    """Of every public name, and of what calling it gives."""
    path = tmp_path / "user.py"
    path.write_text(
        f"from learn_torchrec import {', '.join(learn_torchrec.__all__)}\n"
        + "".join(f"reveal_type({name})\n" for name in learn_torchrec.__all__)
        + "reveal_type(evaluate_auc([1], [1], [0.5])['auc'])\n"
        "reveal_type(ContentEncoder(EncoderConfig(model='m')).dim)\n"
        "reveal_type(LearnFeatures(vector_dim=4).out_features)\n"
    )
    # The cache of `make types` is used where there is one.
    done = subprocess.run(
        [sys.executable, "-m", "mypy", str(path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    revealed = [
        line.split("Revealed type is ")[1].strip('"')
        for line in done.stdout.splitlines()
        if "Revealed type is " in line
    ]
    assert len(revealed) == len(learn_torchrec.__all__) + 3, done.stdout
    assert "Any" not in revealed
    assert revealed[-3:] == ["float", "int", "int"]
