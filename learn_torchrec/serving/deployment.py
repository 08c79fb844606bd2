"""What a server answers with: rankers, an index, towers; they change together."""

import functools
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa

from learn_torchrec.arrays import Float32Array, Int64Array
from learn_torchrec.artifact import MANIFEST, verify
from learn_torchrec.content.store import KIND as KIND_CONTENT
from learn_torchrec.errors import UserError
from learn_torchrec.ids import UNKNOWN, IdIndex, is_text
from learn_torchrec.ranker.learn.vectors import KIND as KIND_VECTORS
from learn_torchrec.ranker.learn.vectors import LearnVectors
from learn_torchrec.serving.availability import read_available
from learn_torchrec.serving.check import check_bundle
from learn_torchrec.serving.events import Id
from learn_torchrec.serving.index import KIND as KIND_INDEX
from learn_torchrec.serving.index import ItemIndex, refuse_other_vectors
from learn_torchrec.serving.request import RankRequest
from learn_torchrec.serving.runner import Runner
from learn_torchrec.serving.served import KIND as KIND_BUNDLE
from learn_torchrec.serving.towers import ServedTowers
from learn_torchrec.spaces import refuse_other_space, space_of
from learn_torchrec.towers.artifact import KIND_TOWERS
from learn_torchrec.vector_table import VectorTable

MAIN = "main"


class Ranker(Protocol):
    """What ranks: `runner.Runner`, or something in its place."""

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the scores."""

    @property
    def required_context(self) -> Mapping[str, str]:
        """Columns that a request brings, and their types."""

    @property
    def as_of(self) -> int:
        """Unix seconds; it knows all that happened strictly before."""

    @property
    def id_types(self) -> tuple[pa.DataType, pa.DataType]:
        """The types of users' and items' ids."""

    def reads_of_new(self, space: Mapping[str, str]) -> frozenset[str]:
        """Return what it reads of an item that came later; see `Runner`."""

    def rank(self, requests: Sequence[RankRequest]) -> list[Float32Array]:
        """Return scores [N, tasks] for each request."""


@dataclass(frozen=True, kw_only=True)
class Places:
    """Where the artefacts of a deployment are; a link may lead to them.

    Attributes:
        bundles: of the rankers by name, the first answers where none is named.
        index: of the items.
        towers: for users' vectors from recent events, and new items.
        content: the content store of the towers.
        vectors: users' exported vectors, where there are no towers.
        available: a file of the items that may be recommended.
    """

    bundles: Mapping[str, Path]
    index: Path | None = None
    towers: Path | None = None
    content: Path | None = None
    vectors: Path | None = None
    available: Path | None = None

    def __post_init__(self) -> None:
        if not self.bundles and self.index is None:
            raise UserError("nothing to serve; give --bundle, --index or both")
        if (self.towers is None) != (self.content is None):
            raise UserError("--towers and --content: give both or neither")
        if self.index is not None and self.towers is None and self.vectors is None:
            raise UserError(
                "--index: needs users' vectors; give --towers and --content, or "
                "--vectors"
            )

    def version(self) -> str:
        """Return a name of what the places hold now.

        Raises:
            UserError: one holds nothing.
        """
        digest = hashlib.sha256()
        for place in self._all():
            path = place if place == self.available else place / MANIFEST
            try:
                digest.update(path.read_bytes())
            except OSError as error:
                raise UserError(
                    f"{path}: cannot be read ({error.strerror}); name an artefact's "
                    "directory"
                ) from None
        return digest.hexdigest()[:12]

    def verify(self) -> None:
        """Check the files of all places but the bundles.

        Raises:
            UserError: names the first that is missing or damaged.
        """
        for place, kind in (
            (self.index, KIND_INDEX),
            (self.vectors, KIND_VECTORS),
            (self.towers, KIND_TOWERS),
            (self.content, KIND_CONTENT),
        ):
            if place is not None:
                verify(place.resolve(), kind)

    def _all(self) -> Iterable[Path]:
        places = (self.index, self.towers, self.content, self.vectors, self.available)
        yield from self.bundles.values()
        yield from (place for place in places if place is not None)


@dataclass(frozen=True, kw_only=True)
class Deployment:
    """A version of everything; safe for several threads.

    Attributes:
        version: of what was loaded, see `Places.version`.
        rankers: by name, the first answers where none is named; may be empty.
        index: of the items, only of those available; None without.
        towers: None without.
        users: exported vectors; None without.
    """

    version: str
    rankers: Mapping[str, Ranker]
    index: ItemIndex | None = None
    towers: ServedTowers | None = None
    users: VectorTable | None = None

    @property
    def as_of(self) -> int | None:
        """The moment up to which the ranker knows everything, unix seconds."""
        return next((ranker.as_of for ranker in self.rankers.values()), None)

    @property
    def user_type(self) -> pa.DataType | None:
        """The type of the users' ids, if anything says it."""
        for ranker in self.rankers.values():
            return ranker.id_types[0]
        return None if self.users is None else self.users.index.type

    @property
    def item_type(self) -> pa.DataType | None:
        """The type of the items' ids."""
        for ranker in self.rankers.values():
            return ranker.id_types[1]
        return None if self.index is None else self.index.items.index.type

    @functools.cached_property
    def reads_of_new(self) -> Mapping[str, frozenset[str]]:
        """What each ranker reads of an item that the towers encode."""
        if self.towers is None:
            return dict.fromkeys(self.rankers, frozenset())
        space = self.towers.space
        return {name: one.reads_of_new(space) for name, one in self.rankers.items()}

    def rows_of(self, items: Sequence[Id]) -> Int64Array:
        """Return the rows of items in the index, UNKNOWN where it has none."""
        if self.index is None:
            return np.full(len(items), UNKNOWN)
        return rows_of(self.index.items.index, items)

    def title(self, item: Id, row: int) -> str:
        """Return an item's title, empty if it has none or is not in the index."""
        if row == UNKNOWN or self.index is None or self.index.titles is None:
            return ""
        return self.index.titles[int(row)].as_py() or ""


def load(
    places: Places, load_ranker: Callable[[Path], Ranker] | None = None
) -> Deployment:
    """Load what lies at the places.

    The version is read first: what is replaced during the loading is seen as a change.

    Raises:
        UserError: an artefact is missing, damaged or does not fit the others.
    """
    version = places.version()
    places.verify()
    index = users = towers = None
    if places.index is not None:
        index = ItemIndex.open(places.index.resolve())
        if places.available is not None:
            allowed = read_available(places.available, index.items.index)
            index = index.restricted(allowed)
    if places.vectors is not None:
        vectors = LearnVectors.open(places.vectors.resolve())
        users = vectors.users
        if index is not None:
            refuse_other_vectors(index, vectors, f"--vectors {places.vectors}")
    if places.towers is not None and places.content is not None:
        towers = ServedTowers.open(places.towers.resolve(), places.content.resolve())
    if index is not None and towers is not None:
        refuse_other_space(
            space_of(index.manifest),
            towers.space,
            f"--towers {places.towers}: their vectors, and those of {places.index},",
            "build the index of vectors that these towers exported",
        )
    for option, dim in (
        ("--towers", None if towers is None else towers.dim),
        ("--vectors", None if users is None else users.vectors.shape[1]),
    ):
        if index is not None and dim not in (None, index.dim):
            raise UserError(
                f"{option}: vectors of {dim} columns, but the index has {index.dim}; "
                "build the index of these vectors"
            )
    load_ranker = load_ranker or _load_runner
    rankers = {
        name: load_ranker(place.resolve()) for name, place in places.bundles.items()
    }
    return Deployment(
        version=version, rankers=rankers, index=index, towers=towers, users=users
    )


def _load_runner(path: Path) -> Ranker:
    """Verify and load a bundle; score its fixed rows as its certificate says."""
    verify(path, KIND_BUNDLE)
    runner = Runner.load(path)
    check_bundle(path, runner)
    return runner


def as_id(value: Id, kind: pa.DataType | None, name: str) -> Id:
    """Return an id in the type of the data: a number may come as a text.

    Raises:
        UserError: it cannot be one.
    """
    if kind is None:
        return value
    if is_text(kind):
        return str(value)
    try:
        return int(pa.scalar(int(value), pa.int64()).as_py())
    except (ValueError, OverflowError):
        raise UserError(f"{name}: {value!r} is no int64, as the ids here are") from None


def rows_of(index: IdIndex, ids: Sequence[Id]) -> Int64Array:
    """Return the rows of ids, UNKNOWN for unknown ones, also of another type."""
    wanted = str if is_text(index.type) else int
    fitting = [one if isinstance(one, wanted) else None for one in ids]
    return index.rows_of(pa.array(fitting, index.type))
