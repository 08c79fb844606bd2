"""Settings of LEARN's part of the ranker."""

from collections.abc import Collection
from dataclasses import field
from typing import Annotated, Literal, TypeAlias

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from learn_torchrec.config import Width, configuration, replace

Space: TypeAlias = Literal["content", "towers"]


@configuration
class StatisticsConfig:
    """How similar a candidate is to the items of its user's history.

    Attributes:
        spaces: whose vectors are compared: the items' frozen "content", the "towers'"
            item vectors, both, or none.
        top: items whose mean similarity is taken, besides the most similar one's.
        temperatures: of the kernels exp((similarity - 1) / temperature), summed over
            the events.
        thresholds: similarities above which events are counted.
        recency_days: an event's weight in the second sum of each kernel falls by a
            factor of e in so many days.
    """

    spaces: tuple[Space, ...] = ("content",)
    top: PositiveInt = 5
    temperatures: tuple[PositiveFloat, ...] = (0.15,)
    thresholds: tuple[float, ...] = (0.3, 0.5, 0.7, 0.9)
    recency_days: PositiveFloat = 30.0


@configuration
class PaperConfig:
    """The paper's form: dense features of the baseline (section 3.4).

    Attributes:
        inputs: both "vectors", the "fusion" embedding of the auxiliary network, or
            "all".
        fusion_hidden_dim: between the auxiliary network's two linear layers.
        fusion_dim: of the fusion embedding.
        stop_gradient: keep the main loss from training the fusion embedding.
    """

    inputs: Literal["all", "vectors", "fusion"] = "all"
    fusion_hidden_dim: Width = 128
    fusion_dim: Width = 64
    stop_gradient: bool = False


@configuration
class LearnConfig:
    """What the ranker makes of LEARN's vectors, if it is given some.

    Attributes:
        form: "residual" adds a part to the baseline's logit that starts at zero;
            "paper" adds dense features and the auxiliary network; "off" ignores the
            vectors.
        history_length: distinct items of the history, the latest, that a candidate
            meets.
        statistics: of the similarities of candidate and history.
        neighbours: nearest texts whose past conversion rates are an input; 0 for none.
        interactions: whether cosines and products of the user's and the item's vectors
            are inputs.
        attention: whether the candidate attends to its user's history (DIN): "content"
            compares learned projections of the content, "content+id" adds embeddings of
            the items' ids, of candidates and histories in one sharded table, and "id"
            compares these alone: the rival that knows no content.
        hidden_layers: of the residual's MLP.
        projected_dim: of vectors before they are multiplied, and of attention; a
            multiple of 4.
        dropout: of the residual's hidden layers; its masks differ between ranks.
        alone: train the baseline by its own loss, so that it is the same as without
            LEARN, and the residual by that of the sum.
        paper: the paper's form.
    """

    form: Literal["residual", "paper", "off"] = "residual"
    history_length: PositiveInt = 256
    statistics: StatisticsConfig = field(default_factory=StatisticsConfig)
    neighbours: NonNegativeInt = 20
    interactions: bool = True
    attention: Literal["off", "content", "content+id", "id"] = "off"
    hidden_layers: tuple[Width, ...] = (64, 32)
    projected_dim: Annotated[Width, Field(multiple_of=4)] = 32
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    alone: bool = False
    paper: PaperConfig = field(default_factory=PaperConfig)

    def that_fits(self, spaces: Collection[str]) -> "LearnConfig":
        """Return the settings without what needs vectors of other spaces."""
        kept = tuple(s for s in self.statistics.spaces if s in spaces)
        has_content = "content" in spaces
        return replace(
            self,
            statistics=replace(self.statistics, spaces=kept),
            neighbours=self.neighbours if has_content else 0,
            attention=self.attention if has_content else "off",
        )

    @property
    def attends_to_ids(self) -> bool:
        """Whether attention reads embeddings of the items' ids."""
        return self.attention in ("content+id", "id")

    @property
    def is_residual(self) -> bool:
        """Whether LEARN adds to the logit."""
        return self.form == "residual"

    def spaces(self, available: Collection[str]) -> tuple[Space, ...]:
        """Return the spaces in which a candidate meets a history; empty for none."""
        wanted = {*self.statistics.spaces}
        if self.interactions or self.attention != "off":
            wanted.add("content")
        wanted &= {*available} if self.is_residual else set()
        spaces: tuple[Space, ...] = ("content", "towers")
        return tuple(space for space in spaces if space in wanted)
