"""Settings of a refresh."""

from typing import Annotated

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from learn_torchrec.config import configuration


@configuration
class RefreshConfig:
    """What a run learns from the days since the last one, and when it is served.

    The ranker learns from the impressions since those that it learned from last, the
    towers from the users with events since the last run, both from the weights and the
    optimizer's state of that run, at a constant rate.

    Attributes:
        test_hours: the newest hours, held out to compare the run with the served one;
            the next run learns from them.
        replay_hours: hours before the new impressions that the ranker learns from
            again. The towers then know nothing of them.
        replay_users: share of the users without new events that the towers learn from
            again.
        towers_epochs: passes of the towers.
        ranker_epochs: passes of the ranker.
        learning_rate: factor to all learning rates of the first run.
        gate: conditions that a run must meet to be served, as `evaluate-auc --gate`
            takes them; differences to the served run.
        keep: runs that are kept, the served one among them.
    """

    test_hours: PositiveFloat = 3.0
    replay_hours: NonNegativeFloat = 0.0
    replay_users: Annotated[float, Field(ge=0, le=1)] = 0.1
    towers_epochs: PositiveInt = 1
    ranker_epochs: PositiveInt = 1
    learning_rate: PositiveFloat = 0.5
    gate: tuple[str, ...] = ("uauc>=-0.01",)
    keep: Annotated[int, Field(ge=2)] = 5
