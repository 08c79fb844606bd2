"""Imports point one way: apps -> stages -> training -> vocabulary."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LIBRARY = ROOT / "learn_torchrec"

VOCABULARY = {
    *("array_files", "arrays", "artifact", "config", "credentials", "digests"),
    *("errors", "host_memory", "ids", "jagged", "locks", "manifest_form", "matrix"),
    *("movable",),
    *("outputs", "page_checksums", "placement", "progress", "provenance", "publish"),
    *("refusals", "schema", "spaces", "text", "times", "vector_table"),
}
MODEL_STAGE = VOCABULARY | {
    *("training", "datasets", "evaluation", "content.store", "content.reduction"),
}
# What each folder or file may import from the library, besides itself. A dotted
# name allows that module only.
ALLOWED = {
    "credentials": set(),
    "digests": set(),
    "errors": {"credentials", "text"},
    "text": set(),
    "schema": set(),
    "array_files": {"arrays"},
    "arrays": VOCABULARY,
    "artifact": VOCABULARY,
    "config": VOCABULARY,
    "host_memory": set(),
    "ids": VOCABULARY,
    "jagged": VOCABULARY,
    "locks": {"errors", "refusals"},
    "manifest_form": {"errors"},
    "page_checksums": set(),
    "matrix": VOCABULARY,
    "movable": set(),
    "placement": set(),
    "outputs": VOCABULARY,
    "progress": {"text"},
    "refusals": {"errors"},
    "spaces": VOCABULARY,
    "times": VOCABULARY,
    "vector_table": VOCABULARY,
    "provenance": VOCABULARY,
    "publish": VOCABULARY,
    "training": VOCABULARY,
    "datasets": VOCABULARY | {"content.store"},
    "content": VOCABULARY,
    "evaluation": VOCABULARY
    | {"content.store", "datasets.adapters.csv_files", "datasets.loading"},
    "towers": MODEL_STAGE | {"content.backbone"},
    "ranker": MODEL_STAGE | {"content.codes"},
    "serving": MODEL_STAGE | {"content", "towers", "ranker"},
    "refresh": VOCABULARY,
    "presets": MODEL_STAGE | {"content", "towers", "ranker", "refresh", "serving"},
    "derived": MODEL_STAGE | {"presets", "ranker", "towers"},
    # The package's own face: the public names.
    "__init__": MODEL_STAGE | {"content", "towers", "ranker", "serving"},
}
WITHOUT_TORCHREC = VOCABULARY | {"content", "datasets", "evaluation"}


def imports_of(path: Path) -> Iterator[str]:
    """Yield the dotted name of every import of a file, those in functions too.

    Within `apps/`, which has one name in a checkout and another where it is installed,
    imports are relative, elsewhere never.
    """
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if path.is_relative_to(ROOT / "apps"):
                yield from (
                    f"{node.module}.{a.name}" for a in node.names if not node.level
                )
                continue
            assert node.level == 0, f"{path}: write imports in full"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def owner(path: Path) -> str:
    """Return the folder of the library, or its top-level file, that holds `path`."""
    return path.relative_to(LIBRARY).parts[0].removesuffix(".py")


def is_within(name: str, allowed: set[str]) -> bool:
    return any(name == place or name.startswith(f"{place}.") for place in allowed)


def violations(path: Path, owned_by: str) -> list[str]:
    own = f"{LIBRARY.name}."
    names = [
        name.removeprefix(own)
        for name in imports_of(path)
        if name.startswith(own) or name == LIBRARY.name
    ]
    return [
        name for name in names if not is_within(name, ALLOWED[owned_by] | {owned_by})
    ]


# Folders beside the library that are installed inside it; it does not know them.
INSTALLED_INSIDE = {"learn_torchrec.apps", "learn_torchrec.torchx_components"}
LIBRARY_FILES = sorted(LIBRARY.rglob("*.py"))
OTHER_FILES = sorted(
    path
    for name in ("apps", "torchx_components")
    for path in (ROOT / name).rglob("*.py")
)


@pytest.mark.parametrize(
    "path", LIBRARY_FILES, ids=lambda path: str(path.relative_to(LIBRARY))
)
def test_library_imports_point_one_way(path: Path) -> None:
    assert owner(path) in ALLOWED, f"say in ALLOWED what {owner(path)} may import"
    assert violations(path, owner(path)) == []
    roots = {name.partition(".")[0] for name in imports_of(path)}
    assert not roots & {"apps", "torchx_components"}
    assert not any(is_within(n, INSTALLED_INSIDE) for n in imports_of(path))
    if owner(path) in WITHOUT_TORCHREC:
        assert not roots & {"torchrec", "fbgemm_gpu"}


def test_a_wrong_direction_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "loop.py"
    path.write_text(
        "from learn_torchrec.errors import UserError\n"
        "from learn_torchrec import towers\n"
        "def later():\n    import learn_torchrec.content.encoder\n"
    )

    assert violations(path, "training") == ["towers", "content.encoder"]
    assert violations(path, "ranker") == ["towers", "content.encoder"]
    assert violations(path, "presets") == []


@pytest.mark.parametrize(
    "path", OTHER_FILES, ids=lambda path: str(path.relative_to(ROOT))
)
def test_apps_import_each_other_by_place(path: Path) -> None:
    names = list(imports_of(path))
    assert not {name.partition(".")[0] for name in names} & {
        "apps",
        "torchx_components",
    }
    assert not any(is_within(name, INSTALLED_INSIDE) for name in names)


def test_torchx_components_need_only_torchx() -> None:
    roots = {
        name.partition(".")[0]
        for name in imports_of(ROOT / "torchx_components" / "learn.py")
    }

    assert roots - sys.stdlib_module_names == {"torchx"}


def test_every_package_imported_is_in_the_requirements() -> None:
    lines = [
        line.partition("#")[0].partition("=")[0].strip()
        for name in ("common.txt", "no-deps.txt", "cpu.txt", "dev.txt")
        for line in (ROOT / "requirements" / name).read_text().splitlines()
    ]
    required = {line.replace("-", "_") for line in lines if line and line[0] != "-"}
    # What is asked for by an option only is an extra, imported where it is used.
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for packages in extras["optional-dependencies"].values():
        required |= {re.split("[<>=]", package)[0] for package in packages}
    required |= {"fbgemm_gpu", "learn_torchrec"}
    required |= {"faiss", "sklearn"}  # the modules of faiss-cpu and scikit-learn

    for path in (*LIBRARY_FILES, *OTHER_FILES):
        roots = {name.partition(".")[0] for name in imports_of(path)}
        assert roots - sys.stdlib_module_names <= required, path
