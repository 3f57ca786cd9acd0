"""The page at `/`: a few files, read once when the process starts, so that nothing a caller sends becomes a path."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response

FOLDER, INDEX = Path(__file__).parent / "ui", "index.html"
BELOW = "/ui/"
# With the system's own table a text/plain script would depend on what is installed there.
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
# The page can load from, and ask, the address that it came from, and nothing else; no text becomes markup or code.
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    # Kept, and asked after each time: no browser mixes files of two versions.
    "Cache-Control": "no-cache",
}


@dataclass(frozen=True, slots=True)
class File:
    """One file of the page: its bytes, media type, and a tag that changes with the bytes."""

    body: bytes
    kind: str
    tag: str

    def answer(self, request: Request) -> Response:
        """The file, or that the caller's own copy is still good."""
        headers = HEADERS | {"ETag": self.tag}
        known = request.headers.get("if-none-match", "")
        if known == "*" or self.tag in (one.strip().removeprefix("W/") for one in known.split(",")):
            return Response(status_code=304, headers=headers)
        return Response(self.body, headers=headers, media_type=self.kind)


@cache
def files() -> dict[str, File]:
    """The files of the page by their address."""
    found = {}
    for path in sorted(FOLDER.iterdir()):
        if path.suffix in _TYPES:
            body = path.read_bytes()
            address = "/" if path.name == INDEX else BELOW + path.name
            found[address] = File(body, _TYPES[path.suffix], f'"{sha256(body).hexdigest()[:32]}"')
    return found


def addresses() -> frozenset[str]:
    """Where the page lies."""
    return frozenset(files())
