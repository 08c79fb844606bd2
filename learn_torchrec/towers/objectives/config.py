"""Settings of the objectives."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat

from learn_torchrec.config import configuration, require

MIN_TEMPERATURE = 0.01  # lower bound of a learned temperature


@configuration
class LossConfig:
    """Settings of the contrastive loss.

    Attributes:
        objective: `dense_all_action` (the paper's: every anchor against each sampled
            target), or `next_item` (the authors' fine-tuning on short sequences:
            every event against the next one, among the full catalogue).
        candidates: of `next_item`, the number of sampled catalogue items per step; 0
            for the full catalogue.
        logit_adjustment: of `next_item`, the weight of an item's log share of the
            training events, added to its logit in training only: vectors then need
            not learn popularity, and rare items rank higher. Not in the paper; 0 is
            off, 1 removes popularity.
        unseen_weight: of `next_item`, what a candidate without a training event counts
            as a negative. It may not have existed yet: at 1, towers learn that nobody
            takes new items, whatever their content.
        baskets: of `next_item`, the probability with which a user's events of one
            moment, as a shop's receipts have them, are predicted from those before it
            alone, drawn for each epoch. At 0 towers learn what completes a basket, at
            1 only what comes in the next. Not in the paper.
        temperature: divides the cosine; the authors' public code uses 1/20.
        learn_temperature: learn it from this initial value, as CLIP does, with a lower
            bound of 0.01.
        sampling_correction: subtract log q of an item, its share of the training
            events, from its logit, so that frequent items are not penalized for being
            drawn often as negatives. Not in the paper.
    """

    objective: Literal["dense_all_action", "next_item"] = "dense_all_action"
    candidates: NonNegativeInt = 0
    logit_adjustment: NonNegativeFloat = 0.0
    unseen_weight: Annotated[float, Field(gt=0, le=1)] = 1.0
    baskets: Annotated[float, Field(ge=0, le=1)] = 0.0
    temperature: PositiveFloat = 0.05
    learn_temperature: bool = False
    sampling_correction: bool = False

    def __post_init__(self) -> None:
        require(
            not self.learn_temperature or self.temperature >= MIN_TEMPERATURE,
            f"temperature: must be at least {MIN_TEMPERATURE} to be learned; raise it "
            "or set towers.loss.learn_temperature=false",
        )
        require(
            self.objective == "dense_all_action" or not self.sampling_correction,
            "sampling_correction: next_item samples its candidates uniformly and has "
            "nothing to correct; set it to false",
        )
