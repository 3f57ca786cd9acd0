"""The ASGI application: three hot routes answered directly, everything else, and all documentation, by FastAPI.

FastAPI's own way from socket to function costs several times what a recommendation does, so the three routes that carry
the load are parsed here, by the same models and methods that FastAPI documents; a test runs both and compares.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, MutableMapping
from typing import Any
from urllib.parse import parse_qsl

import orjson
from starlette.types import Receive, Scope, Send

from recsys.recommender import Answer

from .api import documented
from .problems import PROBLEM_TYPE, Refusal, refusal_of, request_id_of
from .schemas import JSON_TYPE, bounded, encode
from .service import Service

USERS, ITEMS, RECOMMENDATIONS, SIMILAR = "/v1/users/", "/v1/items/", "/recommendations", "/similar"
MAX_PARAMETERS = 16


class Application:
    """The service over HTTP.

    Args:
        service: what answers.
        sends_request_id: whether to put X-Request-ID on answers; off where the server around us does.
    """

    def __init__(self, service: Service, *, sends_request_id: bool = True) -> None:
        self._service = service
        self._api = documented(service)
        self._models = bounded(service.limits)
        self._sends_request_id = sends_request_id

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request."""
        if scope["type"] != "http":
            await self._api(scope, receive, send)
            return
        request_id = request_id_of(scope["headers"])
        scope["request_id"] = request_id
        answering = self._hot(scope, receive)
        if answering is None:
            await self._api(scope, receive, self._with_request_id(send, request_id))
            return
        headers = []
        try:
            status, kind, body = 200, JSON_TYPE, encode(await answering)
        except Exception as error:
            refusal = refusal_of(error, request_id)
            status, kind, body = refusal.status, PROBLEM_TYPE, refusal.document(request_id)
            headers = [(name.lower().encode(), value.encode()) for name, value in refusal.headers.items()]
        headers += [(b"content-type", kind.encode()), (b"content-length", b"%d" % len(body))]
        if self._sends_request_id:
            headers.append((b"x-request-id", request_id.encode()))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    def _hot(self, scope: Scope, receive: Receive) -> Awaitable[Answer] | None:
        path, method = scope["path"], scope["method"]
        if method == "GET":
            if path.startswith(USERS) and path.endswith(RECOMMENDATIONS):
                return self._for_user(path[len(USERS) : -len(RECOMMENDATIONS)], scope["query_string"])
            if path.startswith(ITEMS) and path.endswith(SIMILAR):
                return self._similar_to(path[len(ITEMS) : -len(SIMILAR)], scope["query_string"])
        elif method == "POST" and path == "/v1/recommendations":
            return self._for_body(scope, receive)
        return None

    async def _for_user(self, user_id: str, query: bytes) -> Answer:
        return await self._service.for_user(
            _named("user", user_id), self._models.user.model_validate(_parameters(query))
        )

    async def _similar_to(self, item_id: str, query: bytes) -> Answer:
        asked = self._models.similar.model_validate(_parameters(query))
        return await self._service.similar_to(_named("item", item_id), asked)

    async def _for_body(self, scope: Scope, receive: Receive) -> Answer:
        if scope["query_string"]:
            raise Refusal(422, "POST takes everything in its body; put the parameters there")
        said = parse_body(await read_body(scope, receive, self._service))
        return await self._service.for_request(self._models.body.model_validate(said))

    def _with_request_id(self, send: Send, request_id: str) -> Send:
        if not self._sends_request_id:
            return send

        async def sending(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"x-request-id", request_id.encode())]
            await send(message)

        return sending


async def read_body(scope: Scope, receive: Receive, service: Service) -> bytes:
    """The body of a request, refused while it is read: at the first byte too many, or when it comes too slowly."""
    most = service.limits.max_body_bytes
    too_large = Refusal(
        413, f"the body is larger than {most:,} bytes; send a shorter history", headers={"Connection": "close"}
    )
    for name, value in scope["headers"]:
        if name == b"content-length" and value.isdigit() and int(value[:20]) > most:
            raise too_large
    parts, size = [], 0
    try:
        async with asyncio.timeout(service.timeout_s):
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
            408,
            f"the body did not arrive within {service.timeout_s:g} s; send it faster",
            headers={"Connection": "close"},
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
    return value
