"""What stands around Ray's own HTTP handling in each replica, so that Ray's answers keep our contract too."""

from __future__ import annotations

from typing import Any

from starlette.middleware import Middleware
from starlette.types import Receive, Scope, Send

from .problems import PROBLEM_TYPE, Refusal, request_id_of

# Ray watches each request's connection with two tasks, to cancel the work when the caller hangs up. Ours lasts
# milliseconds, and without them a replica answers a tenth more requests.
UNWATCHED = (b"x-request-disconnect-disabled", b"?1")
# Requests could set these themselves, and so cut or lift the service's own limit.
OWN = (b"x-request-id", b"x-request-timeout-seconds", UNWATCHED[0])
CHANGES = {
    503: "the service has more requests than it can hold; try again in a second",
    500: "the service failed on this request; its log says why",
}


class Ingress:
    """Gives each request one clean id, and turns Ray's plain-text errors into problems.

    Args:
        app: Ray's handling of a request, with our application inside.
    """

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = request_id_of(scope["headers"])
        scope["headers"] = [header for header in scope["headers"] if header[0] not in OWN]
        scope["headers"] += [(b"x-request-id", request_id.encode()), UNWATCHED]
        answered = False
        replaced = False

        async def sending(message: Any) -> None:
            nonlocal answered, replaced
            if message["type"] == "http.response.start":
                answered = True
                if message["status"] >= 400 and not _is_problem(message["headers"]):
                    replaced = True
                    await _send_problem(message["status"], request_id, send)
            if not replaced:
                await send(message)

        await self._app(scope, receive, sending)
        if not answered:
            await _send_problem(500, request_id, send)


def middlewares() -> list[Middleware]:
    """What Ray puts around its HTTP server; its environment names this function."""
    return [Middleware(Ingress)]


def _is_problem(headers: Any) -> bool:
    return any(name == b"content-type" and value == PROBLEM_TYPE.encode() for name, value in headers)


async def _send_problem(status: int, request_id: str, send: Send) -> None:
    refusal = Refusal(status, CHANGES.get(status, "see /docs for what can be asked"))
    body = refusal.document(request_id)
    headers = [
        (b"content-type", PROBLEM_TYPE.encode()),
        (b"content-length", b"%d" % len(body)),
        (b"x-request-id", request_id.encode()),
    ]
    if status == 503:
        headers.append((b"retry-after", b"1"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
