"""The ASGI application: every operation answered directly, documentation and the rest by FastAPI.

FastAPI's own way from socket to function costs several times what a recommendation does, so operations are parsed here,
by the same models and methods that FastAPI documents; a test runs both and compares.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, MutableMapping
from functools import lru_cache
from typing import Any, TypeVar
from urllib.parse import parse_qsl

import orjson
from starlette.types import Receive, Scope, Send

from .answers import JSON_TYPE, Batch, encode
from .api import documented
from .guard import Caller, Guard
from .observer import Observer
from .page import files
from .problems import PROBLEM_TYPE, Refusal, refusal_of, request_id_of
from .schemas import MAX_ID_LENGTH, Closed, Limits, RequestModels
from .service import Service

USERS, ITEMS, RECOMMENDATIONS, SIMILAR = "/v1/users/", "/v1/items/", "/recommendations", "/similar"
MAX_PARAMETERS = 16
_Asked = TypeVar("_Asked", bound=Closed)
Operation = Callable[[RequestModels, Limits], Awaitable[Any]]


class Application:
    """The service over HTTP.

    Args:
        service: what answers.
        guard: who may ask what; everybody everything, if left out.
        observer: told of every answer.
        page: whether the page to try it is at `/`.
        sends_request_id: whether to put X-Request-ID on answers; off where the server around us does.
    """

    def __init__(
        self,
        service: Service,
        *,
        guard: Guard | None = None,
        observer: Observer | None = None,
        page: bool = True,
        sends_request_id: bool = True,
    ) -> None:
        self._service = service
        self._guard = guard or Guard(None, service.limits)
        self._observer = observer or Observer()
        self._api = documented(service, self._observer, page=page)
        self._sends_request_id = sends_request_id
        self._posts: dict[str, tuple[str, Callable[[Any], Awaitable[Any]]]] = {
            "/v1/recommendations": ("body", service.for_request),
            "/v1/recommendations:batch": ("batch", service.for_batch),
            "/v1/similar": ("similar_body", service.similar_to_these),
            "/v1/why-not": ("why_not", service.why_not),
            "/v1/items:lookup": ("look_up", service.look_up),
            "/v1/events": ("events", service.take_events),
        }
        self._gets: dict[str, tuple[str, Callable[[Any], Awaitable[Any]]]] = {
            "/v1/items": ("items", service.search_items),
            "/v1/attributes": ("attributes", service.attributes),
            "/v1/map": ("map", service.item_map),
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request."""
        if scope["type"] != "http":
            await self._api(scope, receive, send)
            return
        began = time.perf_counter()
        request_id = request_id_of(scope["headers"])
        scope["request_id"] = request_id
        method, path = scope["method"], scope["path"]
        route, operation = self._operation(method, path, scope, receive)
        span = self._observer.asked(method, scope["headers"])
        caller: Caller | None = None
        said: Any = None
        headers: list[tuple[bytes, bytes]] = []
        try:
            caller = self._guard.allow(method, path, scope["headers"])
            if operation is None:
                status = await self._by_api(scope, receive, send, request_id)
                self._observer.answered(route, status, None, time.perf_counter() - began, request_id, caller, span)
                return
            said = await operation(caller.limits.models, caller.limits)
            if isinstance(said, Batch):
                self._guard.charge(caller, len(said.answers) - 1)
            status, kind, body = 200, JSON_TYPE, encode(said)
        except Exception as error:
            refusal = refusal_of(error, request_id)
            status, kind, body = refusal.status, PROBLEM_TYPE, refusal.document(request_id)
            headers = [(name.lower().encode(), value.encode()) for name, value in refusal.headers.items()]
        headers += [(b"content-type", kind.encode()), (b"content-length", b"%d" % len(body))]
        if self._sends_request_id:
            headers.append((b"x-request-id", request_id.encode()))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})
        self._observer.answered(route, status, said, time.perf_counter() - began, request_id, caller, span)

    def _operation(self, method: str, path: str, scope: Scope, receive: Receive) -> tuple[str, Operation | None]:
        """The route as documented, and what it does; None where FastAPI does it."""
        service = self._service
        if method == "GET":
            if path.startswith(USERS) and path.endswith(RECOMMENDATIONS):
                user_id = path[len(USERS) : -len(RECOMMENDATIONS)]
                return "/v1/users/{user_id}/recommendations", lambda models, _: service.for_user(
                    _named("user", user_id), _asked(models.user, scope["query_string"])
                )
            if path.startswith(ITEMS) and path.endswith(SIMILAR):
                item_id = path[len(ITEMS) : -len(SIMILAR)]
                return "/v1/items/{item_id}/similar", lambda models, _: service.similar_to(
                    _named("item", item_id), _asked(models.similar, scope["query_string"])
                )
            if path in self._gets:
                named, look = self._gets[path]
                return path, lambda models, _: look(_asked(getattr(models, named), scope["query_string"]))
        elif method == "POST" and path in self._posts:
            name, work = self._posts[path]

            async def posted(models: RequestModels, limits: Limits) -> Any:
                said = await _json_of(scope, receive, limits, service.timeout_s)
                return await work(getattr(models, name).model_validate(said))

            return path, posted
        elif method in ("PUT", "DELETE") and path.startswith(ITEMS) and path.endswith(SIMILAR):

            async def refused(*_: Any) -> Any:  # else an item of that name would come of it
                raise Refusal(405, f"{method} is not allowed here; use GET", headers={"Allow": "GET"})

            return "/v1/items/{item_id}/similar", refused
        elif method == "PUT" and path.startswith(ITEMS):

            async def put(models: RequestModels, limits: Limits) -> Any:
                said = await _json_of(scope, receive, limits, service.timeout_s)
                return await service.put_item(_named("item", path[len(ITEMS) :]), models.item.model_validate(said))

            return "/v1/items/{item_id}", put
        elif method == "DELETE" and path.startswith(ITEMS):
            return "/v1/items/{item_id}", lambda *_: service.delete_item(_named("item", path[len(ITEMS) :]))
        return ("page" if path in files() else "other"), None

    async def _by_api(self, scope: Scope, receive: Receive, send: Send, request_id: str) -> int:
        status = 500

        async def sending(message: MutableMapping[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if self._sends_request_id:
                    message["headers"] = [*message["headers"], (b"x-request-id", request_id.encode())]
            await send(message)

        await self._api(scope, receive, sending)
        return status


async def _json_of(scope: Scope, receive: Receive, limits: Limits, timeout_s: float) -> dict[str, Any]:
    if scope["query_string"]:
        raise Refusal(422, f"{scope['method']} takes everything in its body; put the parameters there")
    return parse_body(await read_body(scope, receive, limits, timeout_s))


async def read_body(scope: Scope, receive: Receive, limits: Limits, timeout_s: float) -> bytes:
    """The body of a request, refused while it is read: at the first byte too many, or when it comes too slowly."""
    most = limits.max_body_bytes
    too_large = Refusal(
        413, f"the body is larger than {most:,} bytes; send less at a time", headers={"Connection": "close"}
    )
    for name, value in scope["headers"]:
        if name == b"content-length" and value.isdigit() and int(value[:20]) > most:
            raise too_large
    parts, size = [], 0
    try:
        async with asyncio.timeout(timeout_s):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise Refusal(400, "the connection closed before the body ended; send it whole")
                size += len(message.get("body", b""))
                if size > most:
                    raise too_large
                parts.append(message.get("body", b""))
                if not message.get("more_body", False):
                    return b"".join(parts)
    except TimeoutError:
        raise Refusal(
            408, f"the body did not arrive within {timeout_s:g} s; send it faster", headers={"Connection": "close"}
        ) from None


def parse_body(body: bytes) -> dict[str, Any]:
    """A JSON object, strictly: NaN, Infinity, broken UTF-8 and anything after the end are refused."""
    try:
        said = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise Refusal(400, f'the body is not JSON ({error}); send an object such as {{"user_id": "1"}}') from None
    if not isinstance(said, dict):
        raise Refusal(422, f'the body must be a JSON object, such as {{"user_id": "1"}}, not {type(said).__name__}')
    return said


@lru_cache(maxsize=256)  # the same few come again and again, and what they become cannot be written to
def _asked(model: type[_Asked], query: bytes) -> _Asked:
    return model.model_validate(_parameters(query))


def _parameters(query: bytes) -> dict[str, str]:
    if not query:
        return {}
    try:
        return dict(parse_qsl(query.decode("latin-1"), keep_blank_values=True, max_num_fields=MAX_PARAMETERS))
    except ValueError:
        raise Refusal(
            422, f"the address has more than {MAX_PARAMETERS} parameters; send those documented only"
        ) from None


def _named(what: str, value: str) -> str:
    if not value:
        raise Refusal(404, f"the address names no {what}; put its id there, with a / in it written %2F")
    if len(value) > MAX_ID_LENGTH:
        raise Refusal(422, f"the address names a {what} by {len(value):,} characters; ids have at most {MAX_ID_LENGTH}")
    return value
