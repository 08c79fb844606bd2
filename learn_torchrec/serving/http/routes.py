"""The endpoints: from JSON to questions and back."""

import asyncio
import time
from collections.abc import Awaitable, Sequence
from typing import Annotated, Any, TypeVar

from fastapi import FastAPI, HTTPException, Query, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from learn_torchrec.errors import UserError
from learn_torchrec.serving import recommend
from learn_torchrec.serving.deployment import Deployment, as_id
from learn_torchrec.serving.events import Event, Id
from learn_torchrec.serving.http import messages as m
from learn_torchrec.serving.http.live import RANK, RETRIEVE, Live, Serving
from learn_torchrec.serving.service import RankQuestion, RetrieveQuestion, Service

_PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"model": m.Problem, "description": text}
    for status, text in (
        (400, "a body that is no JSON"),
        (401, "no token, or a wrong one"),
        (408, "the body did not arrive in time"),
        (413, "the body or a list is too large"),
        (421, "another host name than this server's"),
        (422, "a value that cannot be used"),
        (503, "too many requests, or not ready"),
        (504, "no answer in time"),
    )
}
_RELOAD: dict[int | str, dict[str, Any]] = {
    403: {"model": m.Problem, "description": "the server has no token"}
}
_NO_INDEX: dict[int | str, dict[str, Any]] = {
    404: {"model": m.Problem, "description": "the server has no such part"}
}

T = TypeVar("T")


def add_routes(app: FastAPI) -> None:
    """Add the endpoints to an application."""
    add = app.add_api_route
    post: dict[str, Any] = {"methods": ["POST"], "responses": _PROBLEMS}
    found: dict[str, Any] = {"methods": ["POST"], "responses": _PROBLEMS | _NO_INDEX}
    add("/rank", rank, response_model=m.RankAnswer, **found)
    add("/retrieve", retrieve, response_model=m.RetrieveAnswer, **found)
    add("/recommend", recommendations, response_model=m.RecommendAnswer, **found)
    add("/items", add_items, response_model=m.ItemsAnswer, **found)
    add("/events", add_events, response_model=m.EventsAnswer, **post)
    reload_answers = _PROBLEMS | _RELOAD
    add(
        "/admin/reload",
        reload,
        methods=["POST"],
        response_model=m.ReloadAnswer,
        responses=reload_answers,
    )
    get: dict[str, Any] = {"methods": ["GET"], "responses": _PROBLEMS}
    add("/users", users, response_model=m.UsersAnswer, **get)
    add("/health", health, response_model=m.Health, **get)
    add("/ready", ready, response_model=m.Ready, **get)
    add("/metrics", metrics, response_class=Response, **get)


async def rank(body: m.RankBody, request: Request) -> Response:
    """Score candidates for a user."""
    limit = request.app.state.settings.candidates
    if len(body.candidates) > limit:
        raise HTTPException(413, f"candidates: {len(body.candidates)}, at most {limit}")
    async with _serving(request).used() as serving:
        deployment = serving.service.deployment
        model = _model(deployment, body.model)
        now = request.app.state.now()
        question = RankQuestion(
            user=as_id(body.user, deployment.user_type, "user"),
            items=_item_ids(deployment, body.candidates, "candidates"),
            time=now if body.time is None else body.time,
            context=body.context,
            events=_events(deployment, body.events, now),
            model=model,
        )
        scores = await _in_time(request, serving.ranking.ask(question))
        tasks = deployment.rankers[model].tasks
    columns = {task: scores[:, n].tolist() for n, task in enumerate(tasks)}
    return _answer(
        200, {"version": deployment.version, "model": model, "scores": columns}
    )


async def retrieve(body: m.RetrieveBody, request: Request) -> Response:
    """Find a user's best items among all."""
    async with _serving(request).used() as serving:
        deployment = serving.service.deployment
        _refuse_no_index(deployment)
        available = body.available
        if available is not None:
            available = _item_ids(deployment, available, "available")
        question = RetrieveQuestion(
            user=as_id(body.user, deployment.user_type, "user"),
            k=body.k,
            without_history=body.without_history,
            excluded=_item_ids(deployment, body.exclude, "exclude"),
            available=available,
            events=_events(deployment, body.events, request.app.state.now()),
        )
        found = await _in_time(request, serving.retrieving.ask(question))
    items = [each._asdict() for each in found.items]
    return _answer(
        200, {"version": deployment.version, "source": found.source, "items": items}
    )


async def recommendations(body: m.RecommendBody, request: Request) -> Response:
    """Retrieve candidates, rank them with every model, and say why, for people."""
    async with _serving(request).used() as serving:
        service = serving.service
        deployment = service.deployment
        _refuse_no_index(deployment)
        user = as_id(body.user, deployment.user_type, "user")
        pool = max(recommend.POOL, body.k)
        search = RetrieveQuestion(user, pool, without_history=body.without_history)
        found = await _in_time(request, serving.retrieving.ask(search))
        scores = {}
        for name, ranker in deployment.rankers.items():
            question = RankQuestion(
                user=user,
                items=[each.item for each in found.items],
                time=request.app.state.now(),
                context=body.context,
                model=name,
            )
            ranked = await _in_time(request, serving.ranking.ask(question))
            scores[name] = {task: ranked[:, n] for n, task in enumerate(ranker.tasks)}
        history = await asyncio.to_thread(service.history, user)
        best = recommend.explain(service, history, found, scores, body.k)
    models = [
        {"model": name, "items": [each._asdict() for each in items]}
        for name, items in best.items()
    ]
    answer = {
        "version": deployment.version,
        "user": user,
        "cohort": recommend.cohort_of(len(history)),
        "num_events": len(history),
        "source": found.source,
        "candidates": len(found.items),
        "history": recommend.latest(service, history),
        "models": models,
    }
    return _answer(200, answer)


async def add_items(body: m.ItemsBody, request: Request) -> Response:
    """Embed new items from their texts; they can be retrieved and ranked at once."""
    start = time.perf_counter()
    async with _serving(request).used() as serving:
        deployment = serving.service.deployment
        if deployment.towers is None:
            raise HTTPException(404, "this server has no towers to embed items")
        items = {}
        for each in body.items:
            item = as_id(each.item_id, deployment.item_type, "item_id")
            items[item] = each.model_dump(exclude={"item_id"})
        limit = request.app.state.settings.embed_seconds
        adding = asyncio.to_thread(serving.service.add_items, items)
        count = await asyncio.wait_for(adding, limit)
    request.app.state.metrics.new_items.set(count)
    seconds = round(time.perf_counter() - start, 4)
    return _answer(
        200, {"embedded": len(items), "new_items": count, "seconds": seconds}
    )


async def add_events(body: m.EventsBody, request: Request) -> Response:
    """Store what users did; an event that is sent twice counts once."""
    deployment = _serving(request).service.deployment
    now = request.app.state.now()
    events = [
        (as_id(each.user, deployment.user_type, "user"), event)
        for each, event in zip(
            body.events, _events(deployment, body.events, now), strict=True
        )
    ]
    store = _live(request).store
    try:
        stored = await asyncio.to_thread(store.append, events)
    except UserError as error:
        raise HTTPException(503, "the store of events does not answer") from error
    return _answer(200, {"stored": stored})


async def reload(request: Request) -> Response:
    """Load the artefacts again, if they are others than those in use."""
    if request.app.state.settings.limits.token is None:
        raise HTTPException(403, "start the server with a token to reload by request")
    live = _live(request)
    try:
        changed = await live.reload()
    except UserError as error:
        raise HTTPException(503, "not reloaded; see the server's log") from error
    version = _serving(request).service.deployment.version
    return _answer(200, {"version": version, "changed": changed})


async def users(
    request: Request,
    start: Annotated[str, Query(max_length=512)] = "",
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
) -> Response:
    """Name some users with events, whose id begins with `start`."""
    try:
        found = await asyncio.to_thread(_live(request).store.users, start, limit)
    except UserError as error:
        raise HTTPException(503, "the store of events does not answer") from error
    return _answer(200, {"users": found})


async def health() -> Response:
    """Say that the process lives."""
    return _answer(200, {"status": "ok"})


async def ready(request: Request) -> Response:
    """Say whether requests are answered, and with what."""
    live = _live(request)
    if live.current is None or live.stopping:
        status = "stopping" if live.stopping else "loading"
        return _answer(503, {"status": status})
    service = live.current.service
    try:
        await asyncio.to_thread(live.store.check)
    except UserError:
        return _answer(503, {"status": "no_events"})
    return _answer(200, _described(service) | {"reload_error": live.failed})


async def metrics(request: Request) -> Response:
    """Return counters for Prometheus."""
    known = request.app.state.metrics
    live = _live(request)
    if live.current is not None:
        known.queued.labels(RANK).set(live.current.ranking.queued)
        known.queued.labels(RETRIEVE).set(live.current.retrieving.queued)
        known.new_items.set(len(live.current.service.new.ids))
    text = generate_latest(known.registry)
    return Response(text, media_type=CONTENT_TYPE_LATEST)


def _described(service: Service) -> dict[str, Any]:
    deployment = service.deployment
    first = next(iter(deployment.rankers.values()), None)
    return {
        "status": "ready",
        "version": deployment.version,
        "models": list(deployment.rankers),
        "tasks": [] if first is None else list(first.tasks),
        "context": {} if first is None else dict(first.required_context),
        "items": None if deployment.index is None else deployment.index.num_allowed,
        "new_items": len(service.new.ids),
    }


def _live(request: Request) -> Live:
    live: Live = request.app.state.live
    return live


def _serving(request: Request) -> Serving:
    serving = _live(request).current
    if serving is None:
        raise HTTPException(503, "the server is loading; try again")
    return serving


async def _in_time(request: Request, answer: Awaitable[T]) -> T:
    return await asyncio.wait_for(answer, request.app.state.settings.seconds)


def _model(deployment: Deployment, name: str | None) -> str:
    if not deployment.rankers:
        raise HTTPException(404, "this server has no ranker")
    if name is not None and name not in deployment.rankers:
        known = ", ".join(deployment.rankers)
        raise HTTPException(422, f"model: unknown; this server has {known}")
    return name or next(iter(deployment.rankers))


def _refuse_no_index(deployment: Deployment) -> None:
    if deployment.index is None:
        raise HTTPException(404, "this server has no index")


def _item_ids(deployment: Deployment, items: Sequence[Id], name: str) -> list[Id]:
    kind = deployment.item_type
    return [as_id(item, kind, name) for item in items]


def _events(
    deployment: Deployment, events: Sequence[m.EventBody], now: int
) -> list[Event]:
    kind = deployment.item_type
    return [
        each.event(now)._replace(item_id=as_id(each.item, kind, "item"))
        for each in events
    ]


def _answer(status: int, fields: dict[str, Any]) -> Response:
    return Response(m.dump(fields), status, media_type="application/json")
