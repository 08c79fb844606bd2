"""Sharded tensors on disk, by `torch.distributed.checkpoint`, without unpickling.

PyTorch keeps the index of such a directory, `.metadata`, as a pickle, and a pickle
can run any code when it is read. Here it is read by an unpickler that knows the
index's own classes alone; the tensors are read with `weights_only`.
"""

import io
import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

from learn_torchrec.errors import UserError
from learn_torchrec.training.distributed import gather_objects

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


class _IndexUnpickler(pickle.Unpickler):
    """Knows the classes of an index, and PyTorch's element types."""

    def find_class(self, module: str, name: str) -> Any:
        known = name in _INDEX_CLASSES.get(module, ())
        if not known and module == "torch":
            known = isinstance(getattr(torch, name, None), torch.dtype)
        if not known:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return super().find_class(module, name)


class _SafeReader(dcp.FileSystemReader):
    """PyTorch's reader, which unpickles nothing but what an index is made of."""

    def read_metadata(self, *_: Any, **__: Any) -> Metadata:
        metadata = read_index(Path(self.path))
        if metadata.storage_meta is not None:
            metadata.storage_meta.load_id = self.load_id
        return metadata


def read_index(directory: Path) -> Metadata:
    """Read what a directory of tensors holds.

    Raises:
        UserError: it is missing, damaged, or asks for more than tensors.
    """
    path = directory / ".metadata"
    try:
        metadata = _IndexUnpickler(io.BytesIO(path.read_bytes())).load()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except Exception as error:  # a damaged pickle raises anything
        raise UserError(f"{path}: refused, not an index of tensors ({error})") from None
    if not isinstance(metadata, Metadata):
        raise UserError(f"{path}: refused, not an index of tensors")
    for name, entry in metadata.state_dict_metadata.items():
        if not isinstance(entry, TensorStorageMetadata):
            raise UserError(f"{path}: refused, {name} is not a tensor")
    for info in metadata.storage_data.values():
        if Path(info.relative_path).name != info.relative_path:
            raise UserError(
                f"{path}: refused, it names a file outside of its directory, "
                f"{info.relative_path!r}"
            )
    return metadata


def save_tensors(state: Mapping[str, Any], directory: Path) -> None:
    """Write nested dictionaries of tensors; every rank takes part.

    Args:
        state: each rank's, with its own shards of the sharded ones.
        directory: new or empty.

    Raises:
        OSError: a rank could not write.
    """
    try:
        dcp.save(dict(state), checkpoint_id=str(directory))
    except CheckpointException as error:
        raise OSError(_reason(error)) from None


def load_tensors(state: Mapping[str, Any], directory: Path) -> None:
    """Fill the tensors of `state` in place; every rank takes part.

    Any number of ranks may have written them, under another plan of sharding.

    Raises:
        UserError: unreadable, or not exactly the tensors of `state`: what would be
            left as it is, or left out, is named.
    """
    stored = set(read_index(directory).state_dict_metadata)
    wanted = set().union(*gather_objects(set(_names(state))))
    for names, problem in (
        (wanted - stored, "is not in it"),
        (stored - wanted, "is in it and has no place in this run"),
    ):
        if names:
            raise UserError(
                f"{directory}: {min(names)} {problem} ({len(names)} in all); it was "
                "saved with other tables, optimizers or replicated tables"
            )
    try:
        dcp.load(
            dict(state),
            storage_reader=_SafeReader(str(directory)),
            # Otherwise a rank without a shard of a table looks for an older format.
            planner=dcp.DefaultLoadPlanner(flatten_sharded_tensors=False),
        )
    except (CheckpointException, OSError) as error:
        raise UserError(f"{directory}: cannot be read ({_reason(error)})") from None


def _names(state: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in state.items():
        if isinstance(value, Mapping):
            yield from _names(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def _reason(error: BaseException) -> str:
    """Say in a line why PyTorch failed: the first rank's own error."""
    if isinstance(error, CheckpointException) and error.failures:
        rank, (failure, _) = min(error.failures.items(), key=lambda item: item[0])
        return f"rank {rank}: {str(failure).strip().splitlines()[0]}"
    return str(error).strip().splitlines()[-1]
