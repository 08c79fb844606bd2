"""Initializing a ranker from an earlier one: weights by name, tables by feature.

What has no counterpart stays freshly initialized. Everything loaded, new or dropped is
logged, with the reason.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from learn_torchrec.errors import UserError
from learn_torchrec.ranker.features import FeaturesConfig, IdFeature
from learn_torchrec.ranker.features.base import TABLE_PREFIX
from learn_torchrec.training.distributed import is_writer
from learn_torchrec.training.tensors import load_common_rows, read_index

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class WarmStart:
    """An earlier ranker to start from.

    Attributes:
        directory: of its weights, as `save_ranker` wrote them.
        features: that it was trained with.
        renamed: this run's feature to the earlier run's, where they differ; an empty
            name initializes the feature's table freshly.
    """

    directory: Path
    features: FeaturesConfig
    renamed: Mapping[str, str] = field(default_factory=dict)


@dataclass
class LoadReport:
    """What happened to the weights, by name.

    Attributes:
        matched: loaded completely.
        resized: the common rows were loaded: (rows stored, rows now).
        new: not loaded, with the reason.
        left_out: weights of the earlier run that this run does not use.
    """

    matched: list[str] = field(default_factory=list)
    resized: dict[str, tuple[int, int]] = field(default_factory=dict)
    new: dict[str, str] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)

    def log(self) -> None:
        """Log a summary, and a line for each tensor that is not simply loaded."""
        logger.info(
            "warm start: %d tensors loaded, %d resized, %d new, %d dropped",
            *(len(self.matched), len(self.resized), len(self.new), len(self.left_out)),
        )
        for name, (before, now) in self.resized.items():
            logger.info("warm start: %s had %d rows, has %d", name, before, now)
        for name, reason in self.new.items():
            logger.info("warm start: %s is new (%s)", name, reason)
        for name in self.left_out:
            logger.info("warm start: %s of the earlier run is dropped", name)


@torch.no_grad()
def warm_start(
    model: nn.Module, features: FeaturesConfig, earlier: WarmStart
) -> LoadReport:
    """Load the weights of an earlier ranker into a sharded, initialized one.

    Every rank takes part; `features` are this run's.

    Raises:
        UserError: a renamed feature that either run does not have, weights that cannot
            be read, or none that fit.
    """
    _check_names(features, earlier)
    stored = read_index(earlier.directory).state_dict_metadata
    state = model.state_dict()
    loaded, wanted = LoadReport(), {}
    for name, value in state.items():
        old_name = f"model.{_old_name(name, earlier.renamed)}"
        size, now = getattr(stored.get(old_name), "size", None), value.size()
        feature = _feature_of(name, features)
        may_grow = feature is not None and feature.may_grow
        if size is None:
            loaded.new[name] = "the earlier run has none"
        elif size[1:] != now[1:] or (size != now and not may_grow):
            loaded.new[name] = f"{list(size)} before, {list(now)} now"
        elif reason := _changed_mapping(feature, earlier):
            loaded.new[name] = reason
        else:
            wanted[old_name] = value
            if size == now:
                loaded.matched.append(name)
            else:
                loaded.resized[name] = size[0], now[0]
    if not wanted:
        raise UserError(
            f"{earlier.directory}: has no weights that fit this ranker; name another "
            "--warm-start"
        )
    loaded.left_out = sorted(
        name for name in stored if name not in wanted and name.startswith("model.")
    )
    load_common_rows(wanted, earlier.directory)
    model.load_state_dict(state)
    if is_writer():
        loaded.log()
    return loaded


def _check_names(features: FeaturesConfig, earlier: WarmStart) -> None:
    for new, old in earlier.renamed.items():
        for name, known, run in (
            (new, features.sparse, "this run"),
            (old, earlier.features.sparse, "the earlier run"),
        ):
            names = [feature.name for feature in known]
            if name and name not in names:
                raise UserError(
                    f"--warm-start-map {new}={old}: {run} has no ID feature {name!r}; "
                    f"it has {', '.join(names)}"
                )


def _old_name(name: str, renamed: Mapping[str, str]) -> str:
    tables = {TABLE_PREFIX + new: TABLE_PREFIX + old for new, old in renamed.items()}
    parts = [tables.get(part, renamed.get(part, part)) for part in name.split(".")]
    return ".".join(parts)


def _feature_of(name: str, features: FeaturesConfig) -> IdFeature | None:
    parts = name.split(".")
    found = (f for f in features.sparse if TABLE_PREFIX + f.name in parts)
    return next(found, None)


def _changed_mapping(feature: IdFeature | None, earlier: WarmStart) -> str | None:
    """Return why a table's rows now stand for other ids; None if they do not."""
    if feature is None:
        return None
    old = earlier.renamed.get(feature.name, feature.name)
    for other in earlier.features.sparse:
        if other.name == old and other.row_mapping != feature.row_mapping:
            before, now = other.row_mapping, feature.row_mapping
            return f"its ids were mapped to rows by {before}, now by {now}"
    return None
