"""Between the clients and httpx: what both are told, and what its answers and exceptions mean."""

from __future__ import annotations

from typing import Any, TypeVar

import httpx

import recsys

from .attempts import Budget, Lost, Patience, Reply, Send
from .calls import Call

T = TypeVar("T")
KEEP_IDLE_S = 4.0  # servers commonly close an idle connection after 5: be the first, or a request meets a closed one


class Settings:
    """What either client is told, checked and turned into what httpx wants.

    Args:
        address, key, timeout_s, retries, deadline_s, connections, transport: as `Client` has them.

    Raises:
        ValueError: one of them cannot be; the message never shows the key.
    """

    def __init__(
        self,
        address: str,
        *,
        key: str | None,
        timeout_s: float,
        retries: int,
        deadline_s: float | None,
        connections: int,
        transport: Any,
    ) -> None:
        self.address = _checked(address)
        if key is not None and not (key and key.isascii() and key.isprintable() and " " not in key):
            raise ValueError("the key holds a space or a character that no key has; give it without quotes or line end")
        if connections < 1:
            raise ValueError(f"connections is {connections}; give 1 or more")
        self.patience = Patience(timeout_s, timeout_s * (1 + retries) if deadline_s is None else deadline_s, retries)
        self.budget = Budget()
        headers = {"User-Agent": f"recsys-client/{recsys.__version__}", "Accept": "application/json"}
        if key is not None:
            headers["Authorization"] = f"Bearer {key}"
        self.http: dict[str, Any] = {
            "headers": headers,
            "limits": httpx.Limits(
                max_connections=connections, max_keepalive_connections=connections, keepalive_expiry=KEEP_IDLE_S
            ),
            "transport": transport,
        }

    def request(self, call: Call[T], send: Send) -> dict[str, Any]:
        """The arguments of `httpx.Client.stream`."""
        kind = {} if call.body is None else {"Content-Type": "application/json"}
        return {
            "method": call.method,
            "url": self.address + call.path,
            "content": call.body,
            "headers": {**send.headers, **kind},
            # Whoever waits for one of our own connections is told so, before the try as a whole is late.
            "timeout": httpx.Timeout(send.timeout_s, pool=0.9 * send.timeout_s),
        }


def _checked(address: str) -> str:
    """The address without a slash at its end."""
    try:
        url = httpx.URL(address)
    except (httpx.InvalidURL, TypeError) as error:
        raise ValueError(f"the address is none ({error}); give one such as http://127.0.0.1:8000") from None
    if url.userinfo:
        raise ValueError("the address holds a user or password; give the service's key as `key`")
    if url.scheme not in ("http", "https") or not url.host or url.query or url.fragment:
        raise ValueError(
            f"the address {address!r} is no http:// or https:// one; give one such as http://127.0.0.1:8000"
        )
    return str(url).rstrip("/")


def reply_of(response: httpx.Response, parts: list[bytes]) -> Reply:
    """An answer of httpx as ours."""
    headers = {name.lower(): value for name, value in response.headers.items()}
    return Reply(response.status_code, headers, b"".join(parts))


def late(send: Send) -> Lost:
    """What is said of a try that took too long."""
    return Lost(f"no answer within {send.timeout_s:.3g} s")


def busy() -> Lost:
    """What is said when none of the client's own connections came free."""
    return Lost("all connections were busy; give the client more `connections`", retry=False)


def lost(error: httpx.RequestError, send: Send) -> Lost:
    """What an exception of httpx means."""
    if isinstance(error, httpx.PoolTimeout):
        return busy()
    if isinstance(error, httpx.TimeoutException):
        return late(send)
    said = f"{type(error).__name__} {error}".strip()
    return Lost(said, retry=isinstance(error, (httpx.NetworkError, httpx.RemoteProtocolError, httpx.ProxyError)))
