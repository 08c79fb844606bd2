"""Codes of content vectors: frozen content as IDs, in an artefact.

As in QARM (arXiv 2411.11739), items get codes by residual k-means (see `codebook`). The
centroids are fitted once, without labels: an item that is added later gets its codes
from the same codebook, and no other item's codes move.

An artefact of the kind "codes" holds `codebook.npy`, `mean.npy` and `projection.npy`
(see `Codebook`), the ids and their index (see `IdIndex`), and `codes.npy`. Its
manifest's facts say how many items share their codes.

Letters: N items, L levels, K codes of a level, n rows.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from learn_torchrec.array_files import map_array, read_array
from learn_torchrec.arrays import AnyArray, Float64Array, Int16Array, Int64Array
from learn_torchrec.artifact import Manifest, read_manifest, reading
from learn_torchrec.content.codebook import Codebook
from learn_torchrec.content.store import ContentStore
from learn_torchrec.content.vector_cache import ENCODER_FACT
from learn_torchrec.errors import UserError
from learn_torchrec.ids import INDEX_FILES, UNKNOWN, IdIndex, refuse_other_type
from learn_torchrec.schema import ITEM_ID

KIND = "codes"
CODEBOOK_FILE, CODES_FILE = "codebook.npy", "codes.npy"
_MEAN_FILE, _PROJECTION_FILE = "mean.npy", "projection.npy"
_AGAIN = "encode the codes again"


def joined(codes: AnyArray, size: int) -> Int64Array:
    """Return one id for the codes [n, m] of each row, in 0 ... K^m - 1, int64 [n]."""
    places = size ** np.arange(codes.shape[1])[::-1]
    ids: Int64Array = codes.astype(np.int64) @ places
    return ids


def describe_codes(codes: Int16Array, left: Float64Array, size: int) -> dict[str, Any]:
    """Return the facts of a manifest: collisions, and the use of each level.

    Args:
        codes: int16 [N, L].
        left: float64 [L + 1], see `Codebook.encode`; the variance explained is that of
            the content's components.
        size: K.
    """
    items, levels = codes.shape
    _, groups = np.unique(joined(codes, size), return_counts=True)
    shares = [
        np.bincount(codes[:, level], minlength=size) / items for level in range(levels)
    ]
    return {
        "items": items,
        "levels": levels,
        "codes_per_level": size,
        "distinct": len(groups),
        "sharing": float(groups[groups > 1].sum() / items),
        "largest_group": int(groups.max()),
        "used": [int(np.count_nonzero(share)) for share in shares],
        "entropy_bits": [
            float(-(s := share[share > 0]) @ np.log2(s)) for share in shares
        ],
        "variance_explained": [float(1 - x / max(left[0], 1e-300)) for x in left[1:]],
    }


def codes_table(facts: Mapping[str, Any]) -> str:
    """Return the facts as text, a line for each level and one for all."""
    size, lines = facts["codes_per_level"], ["level  codes used  entropy  variance"]
    names = ("used", "entropy_bits", "variance_explained")
    for level, used, entropy, explained in zip(
        range(1, facts["levels"] + 1), *(facts[name] for name in names), strict=True
    ):
        share = f"{used:,}/{size:,}"
        lines.append(f"{level:5}  {share:>10}  {entropy:7.2f}  {explained:8.1%}")
    lines.append(
        f"{facts['items']:,} items have {facts['distinct']:,} distinct codes: "
        f"{facts['sharing']:.1%} of the items share theirs, the largest group has "
        f"{facts['largest_group']:,}"
    )
    if "new" in facts:
        lines.append(
            f"{facts['new']:,} items are new; {facts['changed']:,} others have other "
            "content and other codes"
        )
    return "\n".join(lines)


def content_space(store: ContentStore) -> dict[str, Any]:
    """Return what must be equal for vectors of two stores to be comparable."""
    content = store.manifest.config.get("content", {})
    return {
        "encoder": store.manifest.facts.get(ENCODER_FACT),
        "prompt": content.get("prompt"),
        "dim": store.dim,
    }


def refuse_other_space(store: ContentStore, manifest: Manifest, source: Path) -> None:
    """Refuse a codebook that was fitted to other content vectors than a store's.

    Args:
        store: to encode.
        manifest: of the codes whose codebook is to be used.
        source: their directory.

    Raises:
        UserError: names what differs.
    """
    fitted = manifest.facts["space"]
    for name, value in content_space(store).items():
        if fitted[name] != value:
            raise UserError(
                f"--codebook {source}: was fitted to content with another {name} than "
                f"that of {store.directory}; encode the content with the settings of "
                "then, or leave out --codebook"
            )


def open_codebook(directory: Path) -> Codebook:
    """Read the codebook behind codes.

    Raises:
        UserError: no codes, or damaged ones.
    """
    manifest = read_manifest(directory, KIND)
    names = (CODEBOOK_FILE, _MEAN_FILE, _PROJECTION_FILE)
    with reading(directory, manifest, names, _AGAIN):
        return Codebook(*(read_array(directory / name) for name in names))


def codebook_fingerprint(directory: Path) -> str:
    """Return what identifies the codebook behind codes, whatever items they are of.

    Raises:
        UserError: no codes.
    """
    fingerprint: str = read_manifest(directory, KIND).files[CODEBOOK_FILE]["sha256"]
    return fingerprint


def write_codes(
    working_dir: Path, codebook: Codebook, index: IdIndex, codes: Int16Array
) -> None:
    """Write an artefact's files; `codes` are int16 [N, L] in the order of the index."""
    np.save(working_dir / CODEBOOK_FILE, codebook.centroids)
    np.save(working_dir / _MEAN_FILE, codebook.mean)
    np.save(working_dir / _PROJECTION_FILE, codebook.projection)
    np.save(working_dir / CODES_FILE, codes)
    index.write(working_dir)


@dataclass(frozen=True, eq=False)
class ContentCodes:
    """The codes of a catalogue, memory-mapped.

    Attributes:
        directory: of the artefact.
        manifest: of the artefact.
        index: ids to rows.
        codes: int16 [N, L].
    """

    directory: Path
    manifest: Manifest
    index: IdIndex
    codes: Int16Array

    @classmethod
    def open(cls, directory: Path) -> "ContentCodes":
        """Map the codes of an artefact.

        Raises:
            UserError: no codes, or damaged ones.
        """
        manifest = read_manifest(directory, KIND)
        names = (CODES_FILE, *INDEX_FILES)
        with reading(directory, manifest, names, _AGAIN):
            index = IdIndex.open(directory)
            codes = map_array(directory / CODES_FILE, np.int16, 2)
        if len(index) != len(codes):
            raise UserError(
                f"{directory}: {len(index)} ids, but {len(codes)} codes; {_AGAIN}"
            )
        return cls(directory, manifest, index, codes)

    @property
    def levels(self) -> int:
        """L."""
        return int(self.codes.shape[1])

    @property
    def size(self) -> int:
        """K."""
        return int(self.manifest.facts["codes_per_level"])

    def changes(self, index: IdIndex, codes: Int16Array) -> dict[str, int]:
        """Return how many items of later codes are new, and how many have others.

        Args:
            index: of the later codes.
            codes: int16 [n, L], made with the same codebook.

        Raises:
            UserError: ids of another type.
        """
        refuse_other_type(index.ids, self.index.type, ITEM_ID, str(self.directory))
        rows = self.index.rows_of(index.ids)
        known = rows != UNKNOWN
        changed = (self.codes[rows[known]] != codes[known]).any(axis=1)
        return {"new": int((~known).sum()), "changed": int(changed.sum())}

    def __reduce__(self) -> tuple[Callable[[Path], "ContentCodes"], tuple[Path]]:
        return ContentCodes.open, (self.directory,)
