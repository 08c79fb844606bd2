"""Vector spaces: which vectors one model may read, and which may be compared.

An artefact of vectors, and a model that reads some, says in its manifest, under the
fact `space`, what decides the meaning of a vector's dimensions:

- `encoder` (model and settings, pooling among them), `revision`, `dtype`, `prompt`: the
  content;
- `towers`: the first training of the towers, which warm starts go on from, and
  `standardization`: of the content they read;
- `reduction`: the linear map of the content that the ranker reads.

`id` is the digest of all of them. Beside the vectors lie those of a few fixed texts, by
which one sees what the words do not say: another processor's rounding, a model that
changed under its name. What an artefact does not say (vectors of other programs) is not
checked.

Letters: K canary texts, C dims.
"""

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from learn_torchrec.array_files import read_array
from learn_torchrec.arrays import AnyArray
from learn_torchrec.artifact import Manifest
from learn_torchrec.errors import UserError, first_line

SPACE = "space"
CANARIES_FILE = "canaries.npy"
CANARY_TEXTS = (
    "A red mug with a handle.",
    "Wireless over-ear headphones, 30 hours of battery, noise cancelling.",
    "Toy Story (1995). Animation, Children's, Comedy.",
    "organic whole milk 1 l",
)
LEAST_COSINE = 0.99  # between kinds of processors vectors differ in the third digit
_ID = "id"
_MEANINGS = {
    "encoder": "another encoder, or other settings of it",
    "revision": "another revision of the model",
    "dtype": "another precision of the model",
    "prompt": "another prompt",
    "towers": "other towers",
    "standardization": "otherwise standardized content",
    "reduction": "otherwise reduced content",
}


def digest_of(*values: object) -> str:
    """Return a short digest of arrays and JSON-able values."""
    digest = hashlib.sha256()
    for value in values:
        if isinstance(value, np.ndarray):
            digest.update(np.ascontiguousarray(value).tobytes())
        else:
            digest.update(json.dumps(value, sort_keys=True, default=str).encode())
    return digest.hexdigest()[:16]


def space(
    earlier: Mapping[str, str] | None = None, **parts: str | None
) -> dict[str, str]:
    """Return a space: parts added to another one's, with its id.

    Without any part it is empty: a space of which nothing is known.
    """
    known = {name: value for name, value in (earlier or {}).items() if name != _ID}
    known |= {name: value for name, value in parts.items() if value is not None}
    return known | {_ID: digest_of(known)} if known else {}


def space_of(manifest: Manifest) -> dict[str, str]:
    """Return the space that a manifest states; empty if it states none."""
    stated = manifest.facts.get(SPACE)
    return dict(stated) if isinstance(stated, dict) else {}


def difference(one: Mapping[str, str], other: Mapping[str, str]) -> str | None:
    """Return in words the first part in which two spaces differ; None if in none.

    What only one of them states is no difference.
    """
    for name, meaning in _MEANINGS.items():
        if name in one and name in other and one[name] != other[name]:
            return meaning
    return None


def refuse_other_space(
    one: Mapping[str, str], other: Mapping[str, str], what: str, fix: str
) -> None:
    """Refuse vectors of another space.

    Args:
        one: the space that is needed.
        other: the space that is given.
        what: the vectors that are given, and what does not fit them; the message goes
            on with "are of another space".
        fix: for the message.

    Raises:
        UserError: the spaces differ; names the part.
    """
    if differs := difference(one, other):
        raise UserError(f"{what} are of another space ({differs}); {fix}")


def cosines(one: AnyArray, other: AnyArray) -> AnyArray:
    """Return the cosines of two arrays of vectors row by row, float64 [n]."""
    one, other = one.astype(np.float64), other.astype(np.float64)
    norms = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    return (one * other).sum(axis=1) / np.maximum(norms, 1e-12)


def read_canaries(directory: Path, dim: int | None = None) -> AnyArray | None:
    """Return the canaries' vectors beside an artefact's, floating [K, C], if any.

    `dim` is C, of the artefact's vectors; None for any.

    Raises:
        UserError: damaged.
    """
    path = directory / CANARIES_FILE
    if not path.exists():
        return None
    try:
        vectors = read_array(path)
        if vectors.ndim != 2 or vectors.dtype.kind != "f":
            raise ValueError(f"{vectors.dtype} of shape {vectors.shape}")
        if vectors.shape != (len(CANARY_TEXTS), dim or vectors.shape[1]):
            raise ValueError(f"shape {vectors.shape}, not of {dim} columns")
        if not np.isfinite(vectors).all():
            raise ValueError("not finite")
        return vectors
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path}: damaged ({first_line(error)}); make the artefact again"
        ) from None


def copy_canaries(source: Path, target: Path) -> None:
    """Copy the canaries of one artefact into another in the making, if it has some."""
    if (source / CANARIES_FILE).is_file():
        shutil.copyfile(source / CANARIES_FILE, target / CANARIES_FILE)
