"""Sharded tensors on disk by `torch.distributed.checkpoint`, without unpickling code.

PyTorch stores the index of such a directory, `.metadata`, as a pickle, which can run
any code when it is read. This module's unpickler accepts only the index's own classes;
the tensors are read with `weights_only`.
"""

import io
import pickle
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadPlan, ReadItem
from torch.distributed.checkpoint.planner_helpers import (
    _create_read_items,
    create_read_items_for_chunk_list,
)

from learn_torchrec.errors import UserError, first_line
from learn_torchrec.training.distributed import gather_objects

_FORGED = (ValueError, TypeError, AttributeError, LookupError)
_INDEX_CLASSES = {
    "pathlib": {"PosixPath", "PurePosixPath"},
    "torch": {"Size"},
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.distributed.checkpoint.metadata": {
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    },
    "torch.serialization": {"_get_layout"},
}


class _IndexUnpickler(pickle._Unpickler):  # the one whose steps can be refused
    """Accepts the classes of an index, PyTorch's dtypes, and the classes' own fields.

    Pickle's BUILD otherwise sets any attribute of any object, of a class too.
    """

    stack: list[Any]
    dispatch: ClassVar[dict[int, Any]] = dict(pickle._Unpickler.dispatch)

    def load_build(self) -> None:
        instance, state = self.stack[-2:]
        is_ours = is_dataclass(instance) and not isinstance(instance, type)
        if not (is_ours and hasattr(instance, "__setstate__")):
            known = {one.name for one in fields(instance)} if is_ours else set()
            if not (isinstance(state, dict) and state.keys() <= known):
                raise pickle.UnpicklingError("it sets attributes of other objects")
        super().load_build()  # type: ignore[misc]

    dispatch[pickle.BUILD[0]] = load_build

    def find_class(self, module: str, name: str) -> Any:
        known = name in _INDEX_CLASSES.get(module, ())
        if not known and module == "torch":
            known = isinstance(getattr(torch, name, None), torch.dtype)
        if not known:
            raise pickle.UnpicklingError(f"it refers to {module}.{name}")
        return super().find_class(module, name)


class _SafeReader(dcp.FileSystemReader):
    """PyTorch's reader with the restricted unpickler."""

    def read_metadata(self, *_: Any, **__: Any) -> Metadata:
        metadata = read_index(Path(self.path))
        if metadata.storage_meta is not None:
            metadata.storage_meta.load_id = self.load_id
        return metadata


def read_index(directory: Path) -> Metadata:
    """Read the index of a directory of tensors.

    Raises:
        UserError: it is missing, damaged, or refers to anything but tensors.
    """
    path = directory / ".metadata"

    def refused(reason: str) -> UserError:
        return UserError(f"{path}: refused, {reason}; restore it, or train again")

    if path.exists() and not path.is_file():
        raise refused("it is not a plain file")
    try:
        metadata = _IndexUnpickler(io.BytesIO(path.read_bytes())).load()
    except OSError as error:
        raise refused(f"it cannot be read ({error.strerror})") from None
    except Exception as error:  # a damaged pickle raises anything
        raise refused(f"not an index of tensors ({error})") from None
    if not isinstance(metadata, Metadata):
        raise refused("not an index of tensors")
    try:
        _check_index(metadata)
    except _FORGED as error:
        raise refused(first_line(error)) from None
    return metadata


def _check_index(metadata: Metadata) -> None:
    """Raise one of `_FORGED` if an index is not one of plain tensors in plain files."""
    for name, entry in metadata.state_dict_metadata.items():
        if not isinstance(entry, TensorStorageMetadata):
            raise ValueError(f"{name} is not a tensor")
        sizes = [entry.size]
        for chunk in entry.chunks:
            sizes += [chunk.offsets, chunk.sizes]
        if not all(isinstance(x, torch.Size) and min(x, default=0) >= 0 for x in sizes):
            raise ValueError(f"{name} has no size")
        if not isinstance(entry.properties.dtype, torch.dtype):
            raise ValueError(f"{name} has no type")
    for info in metadata.storage_data.values():
        if Path(info.relative_path).name != info.relative_path:
            raise ValueError(f"it names a file elsewhere, {info.relative_path!r}")
        if min(info.offset, info.length) < 0:
            raise ValueError(f"{info.relative_path} has no such place")


def save_tensors(
    state: Mapping[str, Any], directory: Path, group: dist.ProcessGroup | None = None
) -> None:
    """Write nested dictionaries of tensors to a new directory; every rank takes part.

    Raises:
        OSError: a rank could not write.
    """
    try:
        dcp.save(dict(state), checkpoint_id=str(directory), process_group=group)
    except CheckpointException as error:
        raise OSError(_reason(error)) from None


def load_tensors(
    state: Mapping[str, Any], directory: Path, left_out: Collection[str] = ()
) -> None:
    """Fill the tensors of `state` in place, all but those `left_out`.

    Every rank takes part. They may have been written by any number of ranks, under
    another sharding plan.

    Raises:
        UserError: unreadable, or the stored names and those of `state` differ; names
            a missing or an extra tensor.
    """
    stored = set(read_index(directory).state_dict_metadata)
    tensors = dict(_named(state))
    wanted = set().union(*gather_objects(set(tensors)))
    for names, problem in (
        (wanted - stored, "is missing"),
        (stored - wanted, "is unknown to this run"),
    ):
        if names:
            raise UserError(
                f"{directory}: {min(names)} {problem} ({len(names)} in all); use the "
                "tables, optimizers and sharding that it was saved with"
            )
    for name in left_out:
        del tensors[name]
    # With flattening, a rank without a shard of a table expects an older format.
    _load(tensors, directory, dcp.DefaultLoadPlanner(flatten_sharded_tensors=False))


def load_range(values: Tensor, name: str, first: int, directory: Path) -> None:
    """Fill `values` [n] with those of a stored tensor from `first` on, on this rank.

    Raises:
        UserError: unreadable.
    """
    _load({name: values}, directory, _Range(first), on_all_ranks=False)


def load_common_rows(state: Mapping[str, Any], directory: Path) -> None:
    """Fill the rows of each tensor of `state` that the stored one also has.

    Other rows keep their values; additional stored rows are ignored. Every rank takes
    part.

    Raises:
        UserError: unreadable.
    """
    _load(state, directory, _CommonRows(flatten_sharded_tensors=False))


def load_renamed_rows(wanted: Iterable[tuple[str, Any]], directory: Path) -> None:
    """Fill tensors as `load_common_rows` does, by the name of the stored one.

    A stored tensor may fill several.
    """
    by_name: dict[str, list[Any]] = {}
    for name, value in wanted:
        by_name.setdefault(name, []).append(value)
    for nth in range(max(map(len, by_name.values()), default=0)):
        part = {name: values[nth] for name, values in by_name.items() if values[nth:]}
        load_common_rows(part, directory)


class _CommonRows(dcp.DefaultLoadPlanner):
    """Reads the rows that exist on both sides; PyTorch's planner needs equal sizes."""

    def create_local_plan(self) -> LoadPlan:
        items: list[ReadItem] = []
        for name, value in self.state_dict.items():
            if self.metadata is not None:
                stored = self.metadata.state_dict_metadata[name]
                items += _create_read_items(name, stored, value)
        return LoadPlan(items)


class _Range(dcp.DefaultLoadPlanner):
    """Reads a range of the only tensor, which starts at `first` of the stored one."""

    def __init__(self, first: int) -> None:
        super().__init__()
        self._first = torch.Size([first])

    def create_local_plan(self) -> LoadPlan:
        assert self.metadata is not None
        ((name, values),) = self.state_dict.items()
        stored = self.metadata.state_dict_metadata[name]
        assert isinstance(stored, TensorStorageMetadata)
        chunk = ChunkStorageMetadata(offsets=self._first, sizes=values.size())
        return LoadPlan(create_read_items_for_chunk_list(name, stored, [chunk]))

    def lookup_tensor(self, index: MetadataIndex) -> Tensor:
        values: Tensor = self.state_dict[index.fqn]
        return values


def _load(
    state: Mapping[str, Any],
    directory: Path,
    planner: dcp.DefaultLoadPlanner,
    on_all_ranks: bool = True,
) -> None:
    try:
        dcp.load(
            dict(state),
            storage_reader=_SafeReader(str(directory)),
            planner=planner,
            no_dist=not on_all_ranks,
        )
    except (CheckpointException, OSError) as error:
        problem = f"cannot be read ({_reason(error)}); restore it, or train again"
        raise UserError(f"{directory}: {problem}") from None


def _named(state: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield what nested dictionaries hold, by the names in an index."""
    for name, value in state.items():
        if isinstance(value, Mapping):
            yield from _named(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _reason(error: BaseException) -> str:
    """Return the first rank's own error, on one line."""
    if isinstance(error, CheckpointException) and error.failures:
        rank, (failure, _) = min(error.failures.items(), key=lambda item: item[0])
        return f"rank {rank}: {first_line(failure)}"
    return str(error).strip().splitlines()[-1]
