"""Errors as the caller sees them: RFC 9457 documents that name the value and say what to change."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterable
from http import HTTPStatus

import orjson
from pydantic import ValidationError

from .printable import printable

PROBLEM_TYPE = "application/problem+json"
MAX_REQUEST_ID = 128
SHOWN = 10  # faults listed in one document: more helps nobody and makes a large answer of a small request

log = logging.getLogger(__name__)


class Refusal(Exception):
    """A request that is refused, with the status and the words that say what to change.

    Args:
        status: the HTTP status.
        detail: what to change.
        errors: each fault as {"at", "change"}, where a request has several.
        headers: response headers that belong to this status, such as Allow or Retry-After.
    """

    def __init__(
        self,
        status: int,
        detail: str,
        *,
        errors: list[dict[str, str]] | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.errors = errors
        self.headers = headers or {}

    def values(self) -> dict[str, object]:
        """The problem as values for JSON."""
        said: dict[str, object] = {
            "type": "about:blank",
            "title": HTTPStatus(self.status).phrase,
            "status": self.status,
            "detail": self.detail,
        }
        if self.errors:
            said["errors"] = self.errors
        return said

    def document(self, request_id: str) -> bytes:
        """The body of the answer."""
        return orjson.dumps(self.values() | {"request_id": request_id})


def refusal_of(error: Exception, request_id: str) -> Refusal:
    """What the caller is told about an exception; the inside of an unforeseen one goes to the log only."""
    if isinstance(error, Refusal):
        return error
    if isinstance(error, ValidationError):
        return invalid(error)
    log.error("request %s failed", request_id, exc_info=error)
    return Refusal(500, f"the service failed on this request; its log names the cause under request id {request_id}")


def invalid(error: ValidationError) -> Refusal:
    """A 422 that lists where a request breaks the contract, with the value and what is expected."""
    faults = []
    for fault in error.errors(include_url=False)[:SHOWN]:
        at = "/".join(printable(str(part), 80) for part in fault["loc"] if not str(part).startswith("function-"))
        change = fault["msg"].removeprefix("Value error, ")
        if fault["type"] != "missing" and at:
            change = f"{change}, got {_shown(fault['input'])}"
        faults.append({"at": at, "change": change})
    first = faults[0]
    more = error.error_count() - 1
    detail = f"{first['at']}: {first['change']}" if first["at"] else first["change"]
    return Refusal(422, f"{detail} (and {more} more)" if more else detail, errors=faults)


def _shown(value: object) -> str:
    if isinstance(value, (list, dict)):
        return f"{'a list' if isinstance(value, list) else 'an object'} of {len(value)}"
    text = repr(value[:60]) if isinstance(value, str) else repr(value)[:60]
    return f"{text}…" if isinstance(value, str) and len(value) > 60 else text


def request_id_of(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """The caller's X-Request-ID where it is short and printable, else a new one."""
    for name, value in headers:
        if name == b"x-request-id" and 0 < len(value) <= MAX_REQUEST_ID and value.isascii():
            text = value.decode("ascii")
            if text.isprintable():
                return text
    return f"{random.getrandbits(128):032x}"  # a name, not a secret; a tenth of a UUID's cost
