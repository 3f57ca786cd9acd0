"""The FastAPI application: the documentation of every route, and the routes that are no operations."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import FastAPI, Path, Query, Request, Response
from fastapi.openapi.utils import get_openapi
from starlette.exceptions import HTTPException
from starlette.responses import PlainTextResponse
from starlette.routing import Route

import recsys

from .answers import (
    JSON_TYPE,
    Accepted,
    AnswerBody,
    AttributesBody,
    BatchAnswerBody,
    BundleBody,
    ItemsBody,
    ItemState,
    MapBody,
    Problem,
    State,
    WhyNotAnswer,
    encode,
)
from .observer import Observer
from .page import File, files
from .printable import printable
from .problems import PROBLEM_TYPE, Refusal, refusal_of
from .schemas import MAX_ID_LENGTH, bounded
from .service import Service

DESCRIPTION = """Recommendations from a sealed bundle of embeddings. Every answer names the bundle that gave it;
every error is an RFC 9457 problem that says what to change. An id that holds a `/` is written with `%2F`."""


def documented(service: Service, observer: Observer, *, page: bool = True) -> FastAPI:
    """The application that serves documentation, health, bundle and page, and declares the hot routes beside them."""
    models = bounded(service.limits)
    api = FastAPI(
        title="recsys",
        version=recsys.__version__,
        description=DESCRIPTION,
        redoc_url=None,
        swagger_ui_oauth2_redirect_url=None,
        redirect_slashes=False,
    )
    user_id = Annotated[str, Path(max_length=MAX_ID_LENGTH, description="the user's id")]
    item_id = Annotated[str, Path(max_length=MAX_ID_LENGTH, description="the item's id")]
    posted = (400, 408, 413, 422, 503)
    api.get("/v1/users/{user_id:path}/recommendations", **_answers(AnswerBody, 404, 422, 503))(
        _endpoint(service.for_user, user_id=user_id, query=Annotated[models.user, Query()])
    )
    api.post("/v1/recommendations", **_answers(AnswerBody, *posted))(_endpoint(service.for_request, body=models.body))
    api.post("/v1/recommendations:batch", **_answers(BatchAnswerBody, *posted))(
        _endpoint(service.for_batch, body=models.batch)
    )
    api.get("/v1/items/{item_id:path}/similar", **_answers(AnswerBody, 404, 422, 503))(
        _endpoint(service.similar_to, item_id=item_id, query=Annotated[models.similar, Query()])
    )
    api.post("/v1/similar", **_answers(AnswerBody, 404, *posted))(
        _endpoint(service.similar_to_these, body=models.similar_body)
    )
    api.post("/v1/why-not", **_answers(WhyNotAnswer, *posted))(_endpoint(service.why_not, body=models.why_not))
    api.get("/v1/items", **_answers(ItemsBody, 422, 503))(
        _endpoint(service.search_items, query=Annotated[models.items, Query()])
    )
    api.post("/v1/items:lookup", **_answers(ItemsBody, *posted))(_endpoint(service.look_up, body=models.look_up))
    api.get("/v1/attributes", **_answers(AttributesBody, 422, 503))(
        _endpoint(service.attributes, query=Annotated[models.attributes, Query()])
    )
    api.get("/v1/map", **_answers(MapBody, 404, 422, 503))(
        _endpoint(service.item_map, query=Annotated[models.map, Query()])
    )
    api.post("/v1/events", **_answers(Accepted, *posted, 404))(_endpoint(service.take_events, body=models.events))
    api.put("/v1/items/{item_id:path}", **_answers(ItemState, 404, *posted))(
        _endpoint(service.put_item, item_id=item_id, body=models.item)
    )
    api.delete("/v1/items/{item_id:path}", **_answers(ItemState, 404, 422, 503))(
        _endpoint(service.delete_item, item_id=item_id)
    )
    api.get("/v1/bundle", **_answers(BundleBody, 503))(_endpoint(service.about_bundle))
    api.get("/healthz", **_answers(State))(_endpoint(service.up))
    api.get("/readyz", **_answers(State, 503))(_endpoint(service.ready))

    @api.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> Response:
        """What is counted, as Prometheus reads it."""
        text, kind = await asyncio.to_thread(observer.metrics)  # it reads files
        return Response(text, media_type=kind)

    if page:
        for address, file in files().items():
            api.add_route(address, _given(file), methods=["GET"], include_in_schema=False)
    api.add_exception_handler(HTTPException, _on_http)
    api.openapi = lambda: _openapi(api)  # type: ignore[method-assign]
    return api


def _endpoint(operation: Callable[..., Awaitable[Any]], **parameters: Any) -> Callable[..., Awaitable[Response]]:
    """A FastAPI endpoint around an operation; its parameters' types hold this service's limits."""

    async def endpoint(request: Request, **given: Any) -> Response:
        try:
            said = await operation(**given)
        except Exception as error:
            return _problem(request, refusal_of(error, request.scope["request_id"]))
        return Response(encode(said), media_type=JSON_TYPE)

    named = {"request": Request, **parameters}
    endpoint.__name__ = operation.__name__
    endpoint.__doc__ = operation.__doc__
    endpoint.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=said) for name, said in named.items()]
    )
    return endpoint


def _given(file: File) -> Callable[[Request], Awaitable[Response]]:
    async def given(request: Request) -> Response:
        return file.answer(request)

    return given


def _answers(model: Any, *problems: int) -> dict[str, Any]:
    problem = {"schema": {"$ref": "#/components/schemas/Problem"}}
    return {
        "response_model": model,
        "responses": {
            status: {"description": HTTPStatus(status).phrase, "content": {PROBLEM_TYPE: problem}}
            for status in sorted({401, 403, 429, *problems})
        },
    }


async def _on_http(request: Request, error: Exception) -> Response:
    said = error if isinstance(error, HTTPException) else HTTPException(500)
    headers = dict(said.headers or {})
    if said.status_code == 405:
        headers["Allow"] = ", ".join(_methods_at(request))
    detail = {
        404: f"there is no {printable(request.scope['path'])}; /docs lists what there is",
        405: f"{request.method} is not allowed here; use {headers.get('Allow', 'another method')}",
    }.get(said.status_code, str(said.detail))
    return _problem(request, Refusal(said.status_code, detail, headers=headers))


def _methods_at(request: Request) -> list[str]:
    """Every method that an address takes: Starlette names those of one route only, and each method here has its own."""
    routes = [route for route in request.app.routes if isinstance(route, Route)]
    (path, *_) = (route.path for route in routes if route.path_regex.match(request.scope["path"]))
    return sorted(method for route in routes if route.path == path for method in route.methods or ())


def _problem(request: Request, refusal: Refusal) -> Response:
    document = refusal.document(request.scope["request_id"])
    return Response(document, refusal.status, refusal.headers, PROBLEM_TYPE)


def _openapi(api: FastAPI) -> dict[str, Any]:
    if api.openapi_schema is None:
        said = get_openapi(title=api.title, version=api.version, description=api.description, routes=api.routes)
        problem = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
        schemas = said["components"]["schemas"]
        schemas.update(problem.pop("$defs"))
        schemas["Problem"] = problem
        said["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        said["security"] = [{"key": []}, {}]  # the second where no keys are asked for
        api.openapi_schema = said
    return api.openapi_schema
