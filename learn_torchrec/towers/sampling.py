"""Two-stage sampling of a user's events (paper: section 3.3; PAL's training pairs).

Stage 1 samples the model's input: at most H history and T target events, uniformly,
kept in order. Stage 2 samples the pairs of the loss: N_h history positions, weighted
towards recent ones, and N_t target positions.

A user's sample depends only on (seed, epoch, user), whatever the number of ranks and
the other users of the batch.
"""

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from pydantic import Field, PositiveInt

from learn_torchrec.arrays import Float64Array, Int64Array, IntArray
from learn_torchrec.config import configuration, require


@configuration
class SamplingConfig:
    """How a user's events become history, targets and pairs.

    Attributes:
        history_length: H, maximum number of history events.
        target_length: T, maximum number of target events.
        num_history_samples: N_h, anchors per user.
        num_target_samples: N_t, positives per user.
        min_history: minimum number of events before the cut.
        cut: where history ends and targets begin: at a `random` event, a new one in
            every epoch, or at the `split` time (the paper), which only
            split.holdout=time has; users with events on only one side of it are cut
            at random.
        weighting: of the history positions, `recent` (paper v2) or `uniform` (v1).
        alpha: weight parameter of the oldest position, see `recency_weights`.
        beta: weight parameter of the newest position.
    """

    history_length: PositiveInt = 80
    target_length: PositiveInt = 40
    num_history_samples: PositiveInt = 10
    num_target_samples: PositiveInt = 10
    min_history: PositiveInt = 3
    cut: Literal["random", "split"] = "random"
    weighting: Literal["recent", "uniform"] = "recent"
    alpha: Annotated[float, Field(gt=1)] = 10.0
    beta: float = 10_000.0

    def __post_init__(self) -> None:
        require(
            self.alpha <= self.beta,
            f"beta: {self.beta:g} is less than alpha, {self.alpha:g}; raise it",
        )


@dataclass(frozen=True, kw_only=True)
class UserSample:
    """One user's sample.

    Attributes:
        history: int64 [<= H], indices of the user's events, ascending.
        target: int64 [<= T], likewise.
        anchors: int64 [<= N_h], positions in `history`.
        positives: int64 [<= N_t], positions in `target`.
    """

    history: Int64Array
    target: Int64Array
    anchors: Int64Array
    positives: Int64Array


def recency_weights(count: int, alpha: float, beta: float) -> Float64Array:
    """Return the paper's sampling probabilities of `count` positions, oldest first.

    Position i of N weighs log(alpha + i (beta - alpha) / (N - 1)); the newest is
    log(beta) / log(alpha) times as likely as the oldest (4 : 1 by default).
    """
    if count == 1:
        return np.ones(1)
    ramp = alpha + np.arange(count) * (beta - alpha) / (count - 1)
    weights = np.log(ramp) / math.log(beta)
    return weights / weights.sum()


def sample_user(
    num_events: int,
    config: SamplingConfig,
    seed: int,
    epoch: int,
    user: int,
    cut: int = 0,
) -> UserSample:
    """Split a user's events into history and targets, and sample both sides.

    The user has more than min_history events. `cut` is the length of the history, 0
    for a random one.
    """
    random = np.random.default_rng([seed, epoch, user])
    events = np.arange(num_events)
    if not cut:
        cut = int(random.integers(config.min_history, num_events))
    history = _subsample(events[:cut], config.history_length, random)
    target = _subsample(events[cut:], config.target_length, random)
    weights = (
        recency_weights(len(history), config.alpha, config.beta)
        if config.weighting == "recent"
        else None
    )
    return UserSample(
        history=history,
        target=target,
        anchors=_sample_positions(
            len(history), config.num_history_samples, random, weights
        ),
        positives=_sample_positions(
            len(target), config.num_target_samples, random, None
        ),
    )


def next_item_sample(
    times: IntArray,
    history_length: int,
    seed: int,
    epoch: int,
    user: int,
    baskets: float = 0.0,
) -> UserSample:
    """Make each event an anchor whose positive is the next event.

    At most `history_length` consecutive pairs: of a user with more, every epoch draws
    where they begin.

    Args:
        times: of the user's events, ascending, at least 2.
        history_length: most pairs.
        seed: with the next two what the draw depends on.
        epoch: of the training.
        user: its index.
        baskets: probability with which an event's anchor is the last event of an
            earlier moment instead, for all events of the user in an epoch; events of
            the first moment are then no positives, unless there is no other.
    """
    first, num_events = 0, len(times)
    random = np.random.default_rng([seed, epoch, user])
    if num_events > history_length + 1:
        first = int(random.integers(num_events - history_length))
    events = np.arange(first, min(num_events, first + history_length + 1))
    anchors = positives = np.arange(len(events) - 1)
    if random.random() < baskets:
        moments = np.asarray(times[events[0] : events[-1] + 1])
        before = np.searchsorted(moments, moments[1:]) - 1
        if (before >= 0).any():
            anchors, positives = before[before >= 0], positives[before >= 0]
    return UserSample(
        history=events[:-1], target=events[1:], anchors=anchors, positives=positives
    )


def _subsample(
    events: Int64Array, length: int, random: np.random.Generator
) -> Int64Array:
    if len(events) <= length:
        return events
    return events[np.sort(random.choice(len(events), length, replace=False))]


def _sample_positions(
    count: int,
    size: int,
    random: np.random.Generator,
    weights: Float64Array | None,
) -> Int64Array:
    if count <= size:
        return np.arange(count)
    return np.sort(random.choice(count, size, replace=False, p=weights))
