"""What the wheel holds, and that nobody else's `apps` is in its way."""

import email
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
METADATA = ("setup.py", "pyproject.toml", "README.md", "LICENSE")
SOURCES = ("learn_torchrec", "apps", "torchx_components")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel of a copy: setuptools leaves its `build` folder behind."""
    copy = tmp_path_factory.mktemp("copy")
    caches = shutil.ignore_patterns("__pycache__")
    for name in SOURCES:
        shutil.copytree(ROOT / name, copy / name, ignore=caches)
    for name in METADATA:
        shutil.copy(ROOT / name, copy)
    out = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps"]
    options = ["--no-build-isolation", "--no-index", "--wheel-dir", str(out)]
    subprocess.run([*pip, *options, str(copy)], check=True)
    (path,) = out.glob("*.whl")
    return path


def test_the_wheel_holds_every_package_under_one_name(wheel):
    with zipfile.ZipFile(wheel) as archive:
        files = {name for name in archive.namelist() if ".dist-info/" not in name}
        info = next(n for n in archive.namelist() if n.endswith("/METADATA"))
        metadata = email.message_from_bytes(archive.read(info))
    inside = ROOT / "learn_torchrec"
    expected = {
        str(path.relative_to(ROOT)) for path in inside.rglob("*.py") if path.is_file()
    } | {
        f"learn_torchrec/{path.relative_to(ROOT)}"
        for name in ("apps", "torchx_components")
        for path in (ROOT / name).rglob("*.py")
        if "benchmarks" not in path.parts
    }
    assert {name for name in files if name.endswith(".py")} == expected
    others = {name for name in files if not name.endswith(".py")}
    assert others == {
        "learn_torchrec/py.typed",
        "learn_torchrec/evaluation/report/page.html.j2",
        *(
            f"learn_torchrec/serving/http/page/{name}"
            for name in ("icon.svg", "page.css", "page.html", "page.js")
        ),
    }
    assert metadata["Name"] == "learn-torchrec"
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata.get_all("License-File") == ["LICENSE"]


def test_a_folder_named_apps_does_not_matter(wheel, tmp_path):
    """The installed command, started where another package has that name."""
    installed = tmp_path / "installed"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(installed)
    hostile = tmp_path / "elsewhere"
    (hostile / "apps").mkdir(parents=True)
    (hostile / "apps" / "__init__.py").write_text("raise SystemExit('not ours')")
    # The packages of this environment without its editable install of the checkout.
    import torch

    packages = Path(torch.__file__).parents[1]
    site = f"import sys; sys.path[1:1] = [{str(installed)!r}, {str(packages)!r}]; "
    command = "from learn_torchrec.apps.main import main; main()"

    def run(*options: str, code: str = command) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-S", "-c", site + code, *options],
            cwd=hostile,
            capture_output=True,
            text=True,
        )

    where = run(code="import learn_torchrec.apps.main as m; print(m.__file__)")
    assert where.stdout.strip().startswith(str(installed)), where.stderr
    assert run("--version").stdout == "learn-torchrec 0.1.0\n"
    assert run("--help").stdout.startswith("usage: learn-torchrec <command>")
    stage = run("report", "--help")
    assert stage.returncode == 0, stage.stderr
    assert stage.stdout.startswith("usage: learn-torchrec report ")


def test_images_are_built_from_what_installing_needs():
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    kept = {line[1:] for line in lines if line.startswith("!")}
    assert kept == {"Makefile", "requirements", *METADATA, *SOURCES}
    assert "*" in lines
