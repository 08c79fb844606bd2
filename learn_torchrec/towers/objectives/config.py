"""Settings of the objectives."""

from typing import Literal

from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat

from learn_torchrec.config import configuration, require

LEAST_TEMPERATURE = 0.01  # a learned one is kept from collapsing below


@configuration
class LossConfig:
    """Settings of the contrastive loss.

    Attributes:
        objective: `dense_all_action` (the paper's: every anchor against each sampled
            target), or `next_item` (the authors' fine-tuning on short sequences:
            every event against the one after it, all of the catalogue as candidates).
        candidates: of `next_item`, how many items drawn from the catalogue stand for
            it in a step; 0 for all of them.
        logit_adjustment: of `next_item`, how much of an item's log share of the
            training events is added to its logit in training and left out afterwards:
            what popularity explains is not learned again by the vectors, so that rare
            items rank higher. Not in the paper; 0 is off, 1 takes popularity out.
        temperature: divides the cosine; the authors' public code uses 1/20.
        learn_temperature: start from it and learn it, as CLIP does; it stays at 0.01
            or above.
        sampling_correction: subtract log q of an item, its share of the training
            events, from its logit, so that frequent items are not pushed down for
            being drawn often as negatives. Not in the paper; off is the paper.
    """

    objective: Literal["dense_all_action", "next_item"] = "dense_all_action"
    candidates: NonNegativeInt = 0
    logit_adjustment: NonNegativeFloat = 0.0
    temperature: PositiveFloat = 0.05
    learn_temperature: bool = False
    sampling_correction: bool = False

    def __post_init__(self) -> None:
        require(
            not self.learn_temperature or self.temperature >= LEAST_TEMPERATURE,
            f"temperature: at least {LEAST_TEMPERATURE} where it is learned; raise it "
            "or set towers.loss.learn_temperature=false",
        )
        require(
            self.objective == "dense_all_action" or not self.sampling_correction,
            "sampling_correction: next_item draws its candidates evenly "
            "and has nothing to correct; set it to false",
        )
