"""Initializing a ranker from an earlier one: weights by name, tables by feature.

What has no counterpart stays freshly initialized. Everything loaded, new or dropped is
logged, with the reason.
"""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn
from torchrec.optim.keyed import CombinedOptimizer

from learn_torchrec.errors import UserError
from learn_torchrec.ranker.build import HISTORY_TABLE
from learn_torchrec.ranker.features import FeaturesConfig, IdFeature
from learn_torchrec.ranker.features.base import TABLE_PREFIX
from learn_torchrec.ranker.sparse import FEATURE_PREFIX
from learn_torchrec.training.distributed import is_writer
from learn_torchrec.training.optimizer_state import load_optimizer
from learn_torchrec.training.sharding import table_of
from learn_torchrec.training.tensors import load_renamed_rows, read_index

logger = logging.getLogger(__name__)

_MODEL = "model."  # before the names of stored weights


@dataclass(frozen=True)
class WarmStart:
    """An earlier ranker to start from.

    Attributes:
        directory: of its weights, as `save_ranker` wrote them.
        features: that it was trained with.
        optimizer: directory of its optimizer's state, as `save_optimizer` wrote it;
            None starts a fresh one.
        has_other_items: whether the catalogue of LEARN's vectors is another, so that
            the rows of attention's item vectors are other items.
        renamed: this run's feature to the earlier run's, where they differ; an empty
            name initializes the feature's table freshly.
    """

    directory: Path
    features: FeaturesConfig
    renamed: Mapping[str, str] = field(default_factory=dict)
    optimizer: Path | None = None
    has_other_items: bool = False


@dataclass
class LoadReport:
    """What happened to the weights, by name.

    Attributes:
        matched: loaded completely.
        resized: the common rows were loaded: (rows stored, rows now).
        new: not loaded, with the reason.
        left_out: weights of the earlier run that this run does not use.
        sources: of everything loaded, the name in the earlier run.
    """

    matched: list[str] = field(default_factory=list)
    resized: dict[str, tuple[int, int]] = field(default_factory=dict)
    new: dict[str, str] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    sources: dict[str, str] = field(default_factory=dict)

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
    state, names = model.state_dict(), _Names(features, earlier, stored)
    loaded = LoadReport()
    wanted: list[tuple[str, Tensor]] = []
    for name, value in state.items():
        old_name = names.old(name)
        size, now = getattr(stored.get(old_name), "size", None), value.size()
        feature = _feature_of(name, features)
        may_grow = feature is not None and feature.may_grow
        if size is None:
            loaded.new[name] = "the earlier run has none"
        elif size[1:] != now[1:] or (size != now and not may_grow):
            loaded.new[name] = f"{list(size)} before, {list(now)} now"
        elif earlier.has_other_items and table_of(name) == HISTORY_TABLE:
            loaded.new[name] = "its rows were other items of --vectors"
        elif reason := _changed_mapping(feature, earlier):
            loaded.new[name] = reason
        else:
            wanted.append((old_name, value))
            loaded.sources[name] = old_name.removeprefix(_MODEL)
            if size == now:
                loaded.matched.append(name)
            else:
                loaded.resized[name] = size[0], now[0]
    if not wanted:
        raise UserError(
            f"{earlier.directory}: has no weights that fit this ranker; name another "
            "--warm-start"
        )
    used = {name for name, _ in wanted}
    loaded.left_out = sorted(
        name for name in stored if name not in used and name.startswith(_MODEL)
    )
    load_renamed_rows(wanted, earlier.directory)
    model.load_state_dict(state)
    if is_writer():
        loaded.log()
    return loaded


def warm_start_optimizer(
    optimizer: CombinedOptimizer, earlier: WarmStart, loaded: LoadReport
) -> None:
    """Load the optimizer's state of everything that `warm_start` loaded.

    New weights, and new rows of tables, get a fresh state. Every rank takes part.

    Raises:
        UserError: a state that cannot be read.
    """
    if earlier.optimizer is None:
        if is_writer():
            logger.info("warm start: a fresh optimizer, whose first steps are large")
        return
    fresh = load_optimizer(optimizer, earlier.optimizer, loaded.sources, loaded.resized)
    if is_writer():
        logger.info("warm start: the optimizer goes on where the earlier one stopped")
        for name in fresh:
            logger.info("warm start: the optimizer's state of %s is fresh", name)


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


class _Names:
    """Names of weights in the earlier run."""

    def __init__(
        self, features: FeaturesConfig, earlier: WarmStart, stored: Iterable[str]
    ) -> None:
        # Attention reads its tables from another collection, under other names.
        self._tables = {table_of(name): name for name in stored if table_of(name)}
        before = {feature.name: feature for feature in earlier.features.sparse}
        self._parts: dict[str, str] = {}
        for feature in features.sparse:
            old = earlier.renamed.get(feature.name, feature.name)
            table = before[old].table_name if old in before else TABLE_PREFIX + old
            self._parts[FEATURE_PREFIX + feature.name] = FEATURE_PREFIX + old
            if feature.table is None:
                self._parts[feature.table_name] = table

    def old(self, name: str) -> str:
        """Return the earlier run's name of a weight, which it may not have."""
        parts = [self._parts.get(part, part) for part in name.split(".")]
        old = _MODEL + ".".join(parts)
        return self._tables.get(table_of(old), old)


def _feature_of(name: str, features: FeaturesConfig) -> IdFeature | None:
    """Return the feature that owns the table of a weight; None for other weights."""
    parts, owners = name.split("."), (f for f in features.sparse if f.table is None)
    return next((feature for feature in owners if feature.table_name in parts), None)


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
