"""Bodies of requests and answers: what OpenAPI shows."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, TypeAdapter

from learn_torchrec.serving.events import Event
from learn_torchrec.times import YEAR_2200

MOST_CANDIDATES, MOST_EVENTS, MOST_ITEMS, MOST_FOUND = 10_000, 1_000, 100, 1_000
_INT64 = 2**63

Text = Annotated[str, StringConstraints(max_length=10_000, pattern=r"^[^\x00]*$")]
IdText = Annotated[
    str, StringConstraints(min_length=1, max_length=512, pattern=r"^[^\x00]+$")
]
Id = Annotated[int, Field(ge=-_INT64, lt=_INT64, strict=True)] | IdText
Time = Annotated[int, Field(ge=0, le=YEAR_2200, strict=True)]
Scalar = bool | Annotated[int, Field(ge=-_INT64, lt=_INT64)] | float | Text | None
# One value for all candidates, one for each, or a list for each.
Context = dict[
    Annotated[str, StringConstraints(max_length=256)],
    Scalar | list[Scalar] | list[list[Scalar]],
]


class Message(BaseModel):
    """Refuses fields that it does not know: a typo is no silent default."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class EventBody(Message):
    """Something that the user did."""

    item: Id
    time: Time | None = Field(None, description="unix seconds; now, if left out")
    action: IdText = Field(description="such as `buy`, as in the log")

    def event(self, now: int) -> Event:
        """Return it as it is stored."""
        return Event(self.item, now if self.time is None else self.time, self.action)


class UserEventBody(EventBody):
    """Something that a user did."""

    user: Id


class RankBody(Message):
    """A user and the candidates to score."""

    user: Id
    candidates: list[Id] = Field(max_length=MOST_CANDIDATES)
    time: Time | None = Field(None, description="unix seconds; now, if left out")
    context: Context = Field(
        default_factory=dict,
        description="columns of the impression by name: a value for all candidates, or "
        "a list with one for each; `GET /ready` names those that the ranker reads",
    )
    events: list[EventBody] = Field(
        default_factory=list,
        max_length=MOST_EVENTS,
        description="of the user, beside those that the server knows; not stored",
    )
    model: IdText | None = Field(None, description="a bundle's name; the first if left")


class RankAnswer(Message):
    """Scores of the candidates, in their order."""

    version: str
    model: str
    scores: dict[str, list[float]] = Field(description="by task")


class RetrieveBody(Message):
    """A user whose best items are asked for."""

    user: Id
    k: int = Field(10, ge=1, le=MOST_FOUND)
    without_history: bool = Field(True, description="leave out items of the history")
    exclude: list[Id] = Field(default_factory=list, max_length=MOST_CANDIDATES)
    available: list[Id] | None = Field(
        None, max_length=MOST_CANDIDATES, description="the only items to find"
    )
    events: list[EventBody] = Field(default_factory=list, max_length=MOST_EVENTS)


class FoundItem(Message):
    """An item that was found."""

    item: Id
    title: str
    score: float | None = Field(description="similarity; null for a popular item")


class RetrieveAnswer(Message):
    """The best items, best first."""

    version: str
    source: Literal["vector", "popular"] = Field(
        description="`popular` if nothing is known of the user"
    )
    items: list[FoundItem]


class NewItemBody(Message):
    """An item by the columns of the item table, such as `title` and `category`."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False)
    __pydantic_extra__: dict[str, Text | float | list[Text] | None]

    item_id: Id


class ItemsBody(Message):
    """New items, or new texts of known ones."""

    items: list[NewItemBody] = Field(min_length=1, max_length=MOST_ITEMS)


class ItemsAnswer(Message):
    """What became of new items."""

    embedded: int
    new_items: int = Field(description="beside the index, in all")
    seconds: float


class EventsBody(Message):
    """What users did."""

    events: list[UserEventBody] = Field(min_length=1, max_length=MOST_EVENTS)


class EventsAnswer(Message):
    """What became of events."""

    stored: int = Field(description="that were not stored before")


class RecommendBody(Message):
    """A user to whom a person wants to see what is recommended."""

    user: Id
    k: int = Field(10, ge=1, le=50)
    without_history: bool = True
    context: Context = Field(default_factory=dict)


class SeenItem(Message):
    """An event of the history."""

    item: Id
    title: str
    time: int
    action: str


class NearItem(Message):
    """An item of the history that a recommended one is near to."""

    item: Id
    title: str
    similarity: float


class RecommendedItem(Message):
    """A recommended item and why."""

    item: Id
    title: str
    is_new: bool = Field(description="came after the index was built")
    similarity: float | None = Field(description="to the user's vector")
    scores: dict[str, float] = Field(description="by task")
    place: dict[str, int] = Field(description="from 1, with each model")
    near: list[NearItem]


class ModelItems(Message):
    """What a model puts first."""

    model: str
    items: list[RecommendedItem]


class RecommendAnswer(Message):
    """What is known of a user, and what each model recommends."""

    version: str
    user: Id
    cohort: Literal["cold", "long_tail", "others"]
    num_events: int
    source: Literal["vector", "popular"]
    candidates: int
    history: list[SeenItem]
    models: list[ModelItems]


class UsersAnswer(Message):
    """Some users with events."""

    users: list[Id]


class Health(Message):
    """Whether the process lives."""

    status: Literal["ok"]


class Ready(Message):
    """Whether requests are answered, and with what."""

    status: Literal["ready", "loading", "stopping", "no_events"]
    version: str | None = None
    models: list[str] = Field(default_factory=list)
    tasks: list[str] = Field(default_factory=list)
    context: dict[str, str] = Field(
        default_factory=dict, description="columns that the ranker reads, and types"
    )
    items: int | None = None
    new_items: int = 0
    reload_error: bool = Field(False, description="the last reload failed; see the log")


class ReloadAnswer(Message):
    """What a reload did."""

    version: str
    changed: bool


class Problem(Message):
    """Why a request is not answered."""

    detail: str


_JSON = TypeAdapter(dict[str, Any], config=ConfigDict(ser_json_inf_nan="null"))


def dump(answer: dict[str, Any]) -> bytes:
    """Return an answer as JSON; NaN, which is no JSON, as null."""
    return _JSON.dump_json(answer)
