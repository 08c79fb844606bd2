"""The preset `default`: a run whose settings are derived from the data.

Every rule here is a starting point that trains on data nobody has tuned for; each
setting comes with its reason and can be overridden by name.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt

from learn_torchrec import config
from learn_torchrec.arrays import Int64Array, IntArray
from learn_torchrec.datasets.adapters.base import Dataset
from learn_torchrec.datasets.split import SplitConfig, validation_from
from learn_torchrec.derived.draft import DROPOUT, Choice, Draft, LogCounts, replaced
from learn_torchrec.derived.split import derive_split
from learn_torchrec.presets import Run, small_encoder
from learn_torchrec.ranker.features.choices import DerivedFeatures
from learn_torchrec.ranker.features.derive import derive_features
from learn_torchrec.ranker.tasks import label_columns
from learn_torchrec.schema import IMPRESSIONS_FILE, ITEM_ID, ITEM_TEXT_FIELDS, PRICE
from learn_torchrec.towers.encoders.architecture import EncoderShape
from learn_torchrec.towers.export import AS_OF_IMPRESSIONS
from learn_torchrec.towers.sampling import SamplingConfig

FEATURES = "ranker.features"

_SAMPLED_USERS = 100_000  # of a large log, to count repeated items
_MEDIUM_LOG, _LARGE_LOG = 10_000_000, 100_000_000  # events
_MOST_CANDIDATES, _MANY_ITEMS = 8_192, 1_000_000  # items
# Settings of the pairs that only dense all-action draws.
_PAIRS = tuple(
    f"towers.sampling.{one.name}"
    for one in dataclasses.fields(SamplingConfig)
    if one.name != "history_length"
)
# Training users below whom towers are a residual on the content. Measured: from 34 to
# 339 customers of a shop it finds more; from 416 raters of films fewer rare ones.
_FEW_USERS = 400
_REPEAT_LENGTH = 400  # latest events at least that tell what is taken again
_SHARED_MOMENTS = 0.6  # of the events, with the one before: a shop's baskets
_BASKETS = 0.5  # users whose baskets are predicted from those before
_MANY_VALIDATED = 1_000  # users whose recall tells epochs apart
_MOST_SNAPSHOTS = 5_000_000  # user vectors, one for each event
_VALIDATED_ROWS = 10_000  # training rows of which a tenth tells passes apart
_VALIDATION = 0.1  # share of the training rows
_SMALL_TRAINING = 1_000_000  # training rows
_STREAMED_ROWS = 20_000_000  # impressions that are not held in memory


@dataclass(frozen=True)
class Derived:
    """A run derived from data.

    Attributes:
        run: all settings.
        choices: those that were derived, in the order of the stages.
        features: of the ranker; None without impressions, or without a moment that
            separates the ranker's rows from the test.
    """

    run: Run
    choices: tuple[Choice, ...]
    features: DerivedFeatures | None = None


def derive(
    dataset: Dataset,
    overrides: Sequence[str] = (),
    split: SplitConfig | None = None,
    sections: Sequence[str] = (),
    ranks: int = 1,
    for_ranker: bool = True,
) -> Derived:
    """Derive a run's settings from its data; the same on every rank and in every run.

    Args:
        dataset: with at least items.
        overrides: `section.field=value` assignments of the user; what is derived after
            a setting respects it.
        split: to use instead of a derived one.
        sections: to derive; the others keep their defaults. All by default.
        ranks: that share a batch.
        for_ranker: whether a ranker is to read the towers' vectors, as it can where the
            data have impressions; otherwise the split serves retrieval alone.

    Raises:
        UserError: data that a section is derived from are missing or wrong, or an
            override is invalid.
    """
    draft = Draft(dataset, overrides, ranks)
    wanted = set(sections or ("content", "split", "towers", "ranker"))
    if "content" in wanted:
        _content(draft)
    if split is not None:
        draft.put("split", split, "that of the vectors")
    elif wanted - {"content", "prepare", "cohorts"}:
        derive_split(draft, for_ranker and dataset.has_impressions)
    draft.respect("split")
    if wanted & {"towers", "retrieval", "export"}:
        _towers(draft)
        _habits(draft)
        _cut_offs(draft)
        _export(draft)
    is_ranked = for_ranker and dataset.has_impressions
    is_ranked &= draft.run.split.holdout != "leave_one_out"
    if "ranker" not in wanted or not is_ranked:
        run = config.apply_overrides(draft.run, overrides)
        return Derived(run, draft.final_choices())
    features = _ranker(draft)
    shown = ",".join(features.config.columns)
    draft.put(FEATURES, features.config, "by the columns", shown)
    run = config.apply_overrides(draft.run, overrides)
    features = features.with_settings(run.ranker.features)
    run = replaced(run, FEATURES.split("."), features.config)
    return Derived(run, draft.final_choices(), features)


def _content(draft: Draft) -> None:
    """Choose the text: the paper's fields, else whatever text the items have."""
    draft.respect("content")
    items = draft.dataset.items
    fields = [name for name in ITEM_TEXT_FIELDS if name in items.column_names]
    others = [
        field.name
        for field in items.schema
        if field.name not in (ITEM_ID, *ITEM_TEXT_FIELDS)
        and (pt.is_string(field.type) or pt.is_large_string(field.type))
        and not _holds_addresses(items[field.name])
    ]
    if draft.run.content.prompt.template or not fields + others:
        return
    if set(fields) - {PRICE} or not others:
        reason = f"of {', '.join(fields)}"
        if others:
            reason += f"; a template may also name {', '.join(others)}"
        shown = "the paper's prompt"
        draft.put("content.prompt.template", None, reason, shown)
        return
    template = " ".join(f"{{{name}}}." for name in others)
    reason = f"the items have none of {', '.join(ITEM_TEXT_FIELDS)}, but a price"
    reason = reason if fields else reason.removesuffix(", but a price")
    draft.put("content.prompt.template", template, reason)


def _holds_addresses(texts: pa.ChunkedArray) -> bool:
    """Whether a column's first texts are mostly addresses of pages or pictures."""
    first = texts.slice(0, 100).drop_null()
    is_address = pc.starts_with(first, "http")
    return 2 * (pc.sum(is_address).as_py() or 0) > len(first)


def _towers(draft: Draft) -> None:
    """Choose shape and length of the training by the number of users and events."""
    log = LogCounts.of(draft)
    users = int((log.known >= draft.run.split.min_events).sum())
    draft.respect("towers")
    share = draft.run.towers.training.user_share
    users = max(1, int(users * (1 - draft.run.split.validation_users) * share))
    # More users in a batch are more negatives, too.
    size = min(users / 4, max(64, users / 64))
    batch = _batch(size, min(4, users), 1024, draft.ranks)
    draft.put("towers.training.batch_size", batch, f"{users:,} training users")
    draft.put("towers.model.encoder", *_encoder(log.events))
    draft.put("towers.loss.temperature", 0.1, "less noise than the paper's 0.05")
    draft.respect("towers")
    learn = _next_item if _can_predict_next(draft) else _dense_all_action
    learn(draft, users, max(1, users // batch))
    draft.respect("towers")
    if users < _FEW_USERS and draft.run.towers.model.reads_standardized_content:
        reason = f"{users:,} users teach little of rare items: start at the content"
        draft.put("towers.model.residual", True, reason)
    if log.events < _LARGE_LOG:
        reason = f"{log.events:,} events teach small towers"
        draft.put("towers.optimizer.learning_rate", 1e-3, reason)
        draft.put("towers.optimizer.weight_decay", 0.1, reason)


def _can_predict_next(draft: Draft) -> bool:
    """Whether every event can be compared with a large part of the catalogue.

    And whether the user asks for nothing that only the paper's objective has.
    """
    towers = draft.run.towers
    if draft.is_set("towers.loss.objective"):
        return towers.loss.objective == "next_item"
    is_paper = towers.loss.sampling_correction or any(map(draft.is_set, _PAIRS))
    if draft.is_set("towers.model.item_tower"):
        is_paper |= towers.model.item_tower in ("causal", "content")
    return len(draft.dataset.item_ids) <= _MANY_ITEMS and not is_paper


def _next_item(draft: Draft, users: int, steps: int) -> None:
    """Predict each event from those before it, by content and by what was taken."""
    items = len(draft.dataset.item_ids)
    reason = f"{items:,} items can be compared at once"
    if items > _MOST_CANDIDATES:
        draft.put("towers.loss.candidates", _MOST_CANDIDATES, f"of {items:,} items")
        reason = f"{items:,} items are few enough to sample from"
    draft.put("towers.loss.objective", "next_item", reason)
    draft.put("towers.loss.logit_adjustment", 0.4, "popular items leave room for rare")
    reason = "an item that nobody has taken may be new"
    draft.put("towers.loss.unseen_weight", 0.3, reason)
    reason = "items are known by their events, new ones by their content"
    draft.put("towers.model.inputs", "content+id", reason)
    draft.put("towers.model.id_shrinkage", 5.0, reason)
    reason = "an item needs no context"
    draft.put("towers.model.item_tower", "projection", reason)
    # An epoch learns from every event of a part of each user's history.
    epochs = int(np.clip(1_000 // steps, 10, 30))
    _epochs(draft, epochs, max(3, epochs // 5), users)


def _dense_all_action(draft: Draft, users: int, steps: int) -> None:
    """Compare drawn events with drawn targets, as the paper does."""
    draft.put("towers.model.item_tower", "self", "learns to encode an item alone")
    reason = "frequent items are drawn often as negatives"
    draft.put("towers.loss.sampling_correction", True, reason)
    epochs = int(np.clip(3_000 // steps, 10, 60))  # a few thousand steps
    _epochs(draft, epochs, max(5, epochs // 3), users)


def _epochs(draft: Draft, most: int, patience: int, users: int) -> None:
    reason = f"{users:,} training users"
    draft.put("towers.training.epochs", most, reason)
    draft.put("towers.training.patience", patience, reason)
    if users * draft.run.split.validation_users < _MANY_VALIDATED:
        draft.put("towers.training.smoothing", 3, "few users validate")


def _encoder(events: int) -> tuple[EncoderShape, str, str]:
    """Return the shape for a log of so many events, the reason and a description."""
    if events < _MEDIUM_LOG:
        shape = small_encoder(DROPOUT)
    elif events < _LARGE_LOG:
        shape = EncoderShape(
            width=256, num_layers=4, num_heads=8, feed_forward_dim=1024
        )
    else:
        shape = EncoderShape()  # the paper's
    shown = f"{shape.num_layers} layers of width {shape.width}"
    return shape, f"{events:,} events", shown


def _habits(draft: Draft) -> None:
    """Learn repeats where people come back to an item, and baskets where they shop.

    Histories are filtered only where nobody comes back.
    """
    sequences = draft.sequences
    users = len(sequences)
    if users > _SAMPLED_USERS:
        step = -(-users // _SAMPLED_USERS)
        sequences = sequences.select_users(np.arange(users) % step == 0)
    sequences = sequences.packed()
    owners = np.repeat(np.arange(len(sequences)), sequences.lengths)
    pairs = len(np.unique(np.stack([owners, sequences.items]), axis=1).T)
    share = 1 - pairs / max(1, len(owners))
    reason = f"{share:.1%} of the events repeat an earlier item of their user"
    draft.put("towers.model.repeat", share >= 0.05, reason)
    draft.put("retrieval.filter_history", share < 0.01, reason)
    if share >= 0.05:
        most = int(np.quantile(sequences.lengths, 0.95))
        length = int(np.clip(most, _REPEAT_LENGTH, 10 * _REPEAT_LENGTH))
        reason = f"95 % of the users have {most:,} events or fewer"
        draft.put("towers.model.repeat_length", length, reason)
        # Only here: of films, which nobody takes twice, it would lose the rare ones.
        reason = "validation says how much popular items rise"
        draft.put("towers.model.popularity", True, reason)
    if draft.run.towers.loss.objective == "next_item":
        _baskets(draft, owners, sequences.times)


def _baskets(draft: Draft, owners: Int64Array, times: IntArray) -> None:
    """Learn what comes in the next basket where events come in baskets."""
    follows = owners[1:] == owners[:-1]
    together = follows & (times[1:] == times[:-1])
    share = float(together.sum() / max(1, follows.sum()))
    reason = f"{share:.0%} of the events share the moment of the one before"
    baskets = _BASKETS if share >= _SHARED_MOMENTS else 0.0
    draft.put("towers.loss.baskets", baskets, reason)


def _cut_offs(draft: Draft) -> None:
    """Choose ranks of the metrics that a small catalogue does not reach by chance."""
    items = len(draft.dataset.item_ids)
    if items < 1_000:
        ks = (10, 50) if items >= 200 else (5, 10)
        draft.put("retrieval.ks", ks, f"{items} items")


def _export(draft: Draft) -> None:
    events = draft.sequences.num_events
    if events > _MOST_SNAPSHOTS:
        kept = AS_OF_IMPRESSIONS if draft.dataset.has_impressions else "last"
        reason = f"a vector after each of {events:,} events would fill the disk"
        draft.put("export.snapshots", kept, reason)


def _ranker(draft: Draft) -> DerivedFeatures:
    """Choose shape and length by the number of rows, features by the columns."""
    draft.respect("ranker")
    dataset, times = draft.dataset, draft.times()
    rows = dataset.impressions_between(times.towers_until, times.test_from).num_rows
    reason = f"{rows:,} training rows"
    _length(draft, rows, reason)
    # Hundreds of steps an epoch of a small log, two thousand of a large one.
    size = max(rows / 2000, min(rows / 50, 512))
    batch = _batch(size, min(16, rows), 8192, draft.ranks)
    draft.put("ranker.training.batch_size", batch, reason)
    if rows < _SMALL_TRAINING:
        draft.put("ranker.model.embedding_dim", 16, reason)
        draft.put("ranker.tables.learning_rate", 0.003, reason)
        draft.put("ranker.optimizer.weight_decay", 0.01, reason)
    if rows > _STREAMED_ROWS and dataset.parquet(IMPRESSIONS_FILE) is not None:
        draft.put("ranker.training.stream.enabled", True, reason)
    tasks, actions = draft.run.ranker.tasks, draft.run.split.actions
    return derive_features(dataset, times, tasks, actions)


def _length(draft: Draft, rows: int, reason: str) -> None:
    """Let the latest rows of a small log say how long to train; a large one is enough.

    A ranker of a large log learns from each row once.
    """
    if rows >= _SMALL_TRAINING:
        draft.put("ranker.training.epochs", 1, reason)
        return
    if rows >= _VALIDATED_ROWS and _can_validate(draft):
        why = f"{reason}: the latest say when to stop, then all are learned from"
        draft.put("ranker.validation.share", _VALIDATION, why)
        why = "steadier than UAUC, to which users with few rows add noise"
        draft.put("ranker.validation.metric", "auc", why)
        draft.respect("ranker")
    validates = draft.run.ranker.validation.share > 0
    draft.put(
        "ranker.training.epochs",
        10 if validates else 3,
        "at most; validation stops it earlier" if validates else reason,
    )


def _can_validate(draft: Draft) -> bool:
    """Whether both labels are among the latest training rows and among the others."""
    dataset, times = draft.dataset, draft.times()
    cut = validation_from(dataset.impression_moments, times, _VALIDATION)
    known = dataset.schema(IMPRESSIONS_FILE).names
    labels = [one for one in label_columns(draft.run.ranker.tasks) if one in known]
    for first, end in ((times.towers_until, cut), (cut, times.test_from)):
        rows = dataset.impressions_between(first, end, labels=labels)
        pieces = chain.from_iterable(map(rows.pieces, range(len(rows))))
        table = pa.concat_tables([rows.empty(), *pieces])
        if any(len(table[name].unique()) < 2 for name in labels):
            return False
    return True


def _batch(number: float, least: int, most: int, ranks: int) -> int:
    """Return the largest power of two up to a number, within bounds.

    If `ranks` do not divide it, the largest number below that they divide.
    """
    size = int(np.clip(2 ** int(np.log2(max(number, 1))), least, most))
    return max(size - size % ranks, ranks)
