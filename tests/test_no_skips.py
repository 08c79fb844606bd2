import os
import subprocess
import sys
from pathlib import Path

TESTS = {
    "mark": "@pytest.mark.skipif(True, reason='no Java')\ndef test(): pass",
    "call": "def test(): pytest.skip('no browser')",
    "module": "pytest.skip('no package', allow_module_level=True)",
    "none": "def test(): pass",
}


def run(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no_skips", *options],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parent)},
        capture_output=True,
        text=True,
    )


def test_a_skip_fails_where_it_is_forbidden(tmp_path: Path) -> None:
    for name, body in TESTS.items():
        (tmp_path / f"test_{name}.py").write_text(f"import pytest\n{body}\n")

    assert run(tmp_path).returncode == 0
    assert run(tmp_path, "--no-skips", "test_none.py").returncode == 0
    forbidden = run(tmp_path, "--no-skips", "-n1")
    assert forbidden.returncode == 1, forbidden.stdout + forbidden.stderr
    for reason in ("no Java", "no browser", "no package"):
        assert reason in forbidden.stdout
