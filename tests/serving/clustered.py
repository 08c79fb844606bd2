"""Vectors artefacts of items in clusters, for the tests of the index."""

from pathlib import Path

import numpy as np
import vectors_artefact

DIM = 16


def unit_vectors(count: int, seed: int) -> np.ndarray:
    """Return float16 [count, DIM] unit vectors around 20 common centres."""
    centres = np.random.default_rng(99).normal(size=(20, DIM))
    random = np.random.default_rng(seed)
    near = centres[random.integers(0, 20, count)]
    vectors = near + 0.7 * random.normal(size=(count, DIM))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)


def write_vectors(
    directory: Path, item_ids, items: np.ndarray, users: np.ndarray
) -> Path:
    """Write a vectors artefact; user n has the id f"u{n}" if item ids are texts."""
    count = len(users)
    user_ids = list(range(count))
    if isinstance(item_ids[0], str):
        user_ids = [f"u{n}" for n in user_ids]
    sides = (user_ids, range(count + 1), [50] * count, users), (item_ids, items)
    vectors_artefact.write_vectors(directory, *sides)
    return directory


def best(items: np.ndarray, user: np.ndarray, k: int, allowed=None) -> list[int]:
    """Return the rows of the best items by plain sorting."""
    scores = items.astype(np.float32) @ user.astype(np.float32)
    rows = np.argsort(-scores, kind="stable")
    return [int(row) for row in rows if allowed is None or allowed[row]][:k]
