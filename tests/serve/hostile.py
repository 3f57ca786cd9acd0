"""A corpus of hostile requests against every route that an OpenAPI document names, and what each answer must keep.

A new route is met the day it is documented.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from tests.serve.asking import Reply

FORGED = '\r\nX-Evil: 1\r\n\r\n{"level":"info","message":"forged"}\x1b[31m\u202e\u2028\x00'
METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT", "PROPFIND", "FOO", "get")
BESIDE = (
    "/",
    "//",
    "/v1",
    "/v1/",
    "/v2/bundle",
    "/docs/../v1/bundle",
    "/%2e%2e/%2e%2e/etc/passwd",
    "/static/..%5c..%5c",
)
MEMBERS = {"type", "title", "status", "detail", "request_id", "errors"}
LONGEST_PROBLEM = 8192  # bytes: what is refused must not be a way to make much of little

IDS = (
    "",
    ".",
    "..",
    "%2e%2e",
    "..%2f..%2f..%2fetc%2fpasswd",
    "a/b//c",
    "%2F",
    "%252F",
    "%00",
    "%FF%FE",
    "%ED%A0%80",
    "%C0%AF",
    "%zz",
    "%",
    "+",
    "null",
    "NaN",
    "-1",
    "9" * 400,
    "x" * 60_000,
    quote("é" * 600),
    quote("👨‍👩‍👧‍👦"),
    quote("\u202egpj.exe"),
    quote(FORGED),
    quote("' OR 1=1; DROP TABLE events; --"),
    quote("<script>alert(1)</script>"),
    quote("{{7*7}}${jndi:ldap://x}"),
    "recommendations",
    "similar",
    "x/recommendations",
)
TEXTS = (
    "9" * 4_000,
    "9" * 5_000,
    "-1",
    "0",
    "1e309",
    "1_0",
    "0x10",
    "٣",
    "NaN",
    "inf",
    "true",
    "null",
    "[1]",
    "",
    "%00",
    "1%00",
    "%ff",
    "%zz",
    "%ED%A0%80",
    quote(FORGED),
    "x" * 100_000,
)
VALUES: tuple[Any, ...] = (
    None,
    True,
    0,
    -1,
    10**6,
    2**31,
    2**63 - 1,
    2**64 - 1,
    1.5,
    -0.0,
    1e-320,
    1.7e308,
    "",
    " ",
    "\x00",
    "1",
    "x" * 1500,
    "é" * 513,
    "👨‍👩‍👧‍👦",
    "\u202e",
    FORGED,
    "2026-13-45T99:99:99Z",
    "9999-12-31T23:59:59-14:00",
    "../../etc/passwd",
    [],
    [None],
    [[]],
    [[[[[[[[[[]]]]]]]]]],
    ["i 1", "i 1"],
    [1] * 700,
    {},
    {"": ""},
    {FORGED: FORGED},
    {"__proto__": {"x": 1}, "constructor": 1},
    {"not": {"not": {"not": {"not": {"not": {"not": {"equals": 1}}}}}}},
    {f"a{n}": n for n in range(100)},
    {"x" * 1500: 1},
)
BODIES: tuple[bytes, ...] = (
    b"",
    b" ",
    b"\x00",
    b"\xff\xfe{\x00}\x00",
    b"\xef\xbb\xbf{}",
    b"{",
    b"{}{}",
    b'{"k": 1,}',
    b'{"k": 1, "k": 2}',
    b'{"k": NaN}',
    b'{"k": Infinity}',
    b'{"k": -Infinity}',
    b'{"k": 1e999}',
    b'{"k": -1e999}',
    b'{"k": ' + b"9" * 1_900 + b"}",
    b'{"k": 0.' + b"0" * 1_900 + b"1}",
    b"'{}'",
    b"null",
    b"true",
    b"0",
    b'""',
    b"[]",
    b"[{}]",
    b"[" * 1_999,
    b"[" * 999 + b"]" * 999,
    b'{"a":' * 300 + b"1" + b"}" * 300,
    b'{"filter":' + b'{"not":' * 200 + b"1" + b"}" * 201,
    b'{"user_id": "\xff"}',
    b'{"user_id": "\\ud800"}',
    b'{"user_id": "\\u0000"}',
    b'{"user_id": "' + b"\xc3\xa9" * 900 + b'"}',
    b'{"' + b"k" * 1_900 + b'": 1}',
    json.dumps({FORGED: FORGED}).encode(),
    b"k=1&user_id=2",
    b"<?xml version='1.0'?><!DOCTYPE a [<!ENTITY b SYSTEM 'file:///etc/passwd'>]><a>&b;</a>",
    b"--x\r\nContent-Disposition: form-data; name=k\r\n\r\n1\r\n--x--",
    b"\x1f\x8b\x08\x00\x00\x00\x00\x00",
)
HEADERS: tuple[dict[str, str], ...] = (
    {"Content-Type": "text/plain"},
    {"Content-Type": "multipart/form-data; boundary=x"},
    {"Content-Type": "application/json; charset=utf-16"},
    {"Content-Type": "x" * 5_000},
    {"Content-Type": "\xff/\xfe;;;="},
    {"Content-Encoding": "gzip"},
    {"Content-Length": "-1"},
    {"Content-Length": "1e3"},
    {"Content-Length": "9" * 5_000},
    {"Content-Length": "\xb2"},  # a digit to str.isdigit, and none to int
    {"Transfer-Encoding": "chunked, identity"},
    {"Accept": "text/html, */*;q=0"},
    {"Accept-Encoding": "\xff"},
    {"Authorization": "Bearer"},
    {"Authorization": "Bearer " + "x" * 5_000},
    {"Authorization": "\xff\xfe"},
    {"Cookie": "=;" * 2_000},
    {"Host": "evil.example\t:99999"},
    {"Host": ""},
    {"X-Request-ID": "x" * 5_000},
    {"X-Request-ID": "a\tb"},
    {"X-Request-ID": "\xe9"},
    {"X-Request-ID": ""},
    {"X-Forwarded-For": "' OR 1=1"},
    {"X-HTTP-Method-Override": "DELETE"},
    {"Traceparent": "00-" + "0" * 32 + "-" + "0" * 16 + "-zz"},
    {"Traceparent": "\xff" * 300},
    {"Tracestate": "=,=" * 900},
    {"Baggage": "a=" + "b" * 9_000},
    {"If-None-Match": "*"},
    {"Range": "bytes=0-0,-1,9-1"},
    {"Expect": "200-maybe"},
    {"Upgrade": "h2c", "Connection": "upgrade"},
)


@dataclass(frozen=True)
class Hostile:
    """One request and what is hostile in it."""

    what: str
    method: str
    target: str
    body: bytes | list[bytes] = b""
    headers: Mapping[str, str] = field(default_factory=dict)


def paths(document: Any) -> Iterator[Hostile]:
    """Every id that is none, in every place of an address that takes one; and addresses that nothing is at."""
    for method, path, operation in operations(document):
        body = json.dumps(least(document, body_schema(document, operation))).encode()
        for value in IDS if "{" in path else ():
            yield Hostile(f"id {value[:30]}", method, filled(path, value), body)
    for target in BESIDE:
        yield Hostile("an address beside", "GET", target)
    yield Hostile("a forged address", "GET", f"/{quote(FORGED)}")
    yield Hostile("a long address", "GET", "/" + "x" * 60_000)


def methods(document: Any) -> Iterator[Hostile]:
    """Every method, against every path."""
    for path in (*document["paths"], "/docs", "/openapi.json"):
        for method in METHODS:
            yield Hostile(f"method {method}", method, filled(path), b"{}")


def queries(document: Any) -> Iterator[Hostile]:
    """Every text that is no value, as every parameter there is; and parameters that there are not."""
    for method, path, operation in operations(document):
        body = json.dumps(least(document, body_schema(document, operation))).encode()
        names = [each["name"] for each in operation.get("parameters", ()) if each["in"] == "query"]
        asked = [f"{name}={text}" for name in [*names, "k"] for text in TEXTS]
        asked += [f"{quote(FORGED)}=1", "k=1&k=2&k=x", "k[]=1", "k=1;k=2", "&&&===", "=1", "%00=1", "\x7f", "k"]
        asked += ["&".join(f"a{n}=1" for n in range(999))]
        for query in asked:
            yield Hostile(f"query {query[:30]}", method, f"{filled(path)}?{query}", body)


def bodies(document: Any) -> Iterator[Hostile]:
    """What is no JSON, no object, or wrong in one place of a request that is else right, for every body there is."""
    for method, path, operation in operations(document):
        for raw in BODIES:
            yield Hostile(f"body {raw[:30]!r}", method, filled(path), raw, {"Content-Type": "application/json"})
        schema = body_schema(document, operation)
        if schema is not None:
            for where, said in spoiled(document, schema):
                raw = json.dumps(said).encode()
                yield Hostile(f"body {where}", method, filled(path), raw, {"Content-Type": "application/json"})


def headers(document: Any) -> Iterator[Hostile]:
    """Headers that say what is not so, or say it badly."""
    for method, path, operation in operations(document):
        body = json.dumps(least(document, body_schema(document, operation))).encode()
        for said in HEADERS:
            yield Hostile(f"headers {str(said)[:40]}", method, filled(path), body, said)


def large(document: Any, size: int = 10_000_000) -> Iterator[Hostile]:
    """Bodies of 10 MB, in pieces, announced and not, of JSON and of nothing."""
    for method, path, _ in operations(document):
        for piece in (b" " * 65_536, b"[" * 65_536, b'{"k":1},' * 8_192):
            body = [piece] * (size // len(piece))
            for said in ({}, {"Content-Length": str(size)}, {"Content-Length": "2"}):
                yield Hostile(f"10 MB of {piece[:2]!r}, {said}", method, filled(path), body, said)


def operations(document: Any) -> Iterator[tuple[str, str, Any]]:
    """Method, path and declaration of every operation."""
    for path, item in document["paths"].items():
        for method, operation in item.items():
            yield method.upper(), path, operation


def filled(path: str, value: str = "i%201") -> str:
    """A path with a value in each of its places."""
    while "{" in path:
        start, end = path.index("{"), path.index("}")
        path = f"{path[:start]}{value}{path[end + 1 :]}"
    return path


def body_schema(document: Any, operation: Any) -> Any:
    """The schema of an operation's JSON body; None if it has none."""
    content = operation.get("requestBody", {}).get("content", {})
    return content["application/json"]["schema"] if "application/json" in content else None


def least(document: Any, schema: Any) -> Any:
    """The least that a schema asks for."""
    schema = _resolved(document, schema)
    for name in ("const", "default"):
        if name in schema:
            return schema[name]
    if "enum" in schema:
        return schema["enum"][0]
    kind = schema.get("type")
    if kind == "object" or "properties" in schema:
        properties = schema.get("properties", {})
        return {name: least(document, properties.get(name, {})) for name in schema.get("required", ())}
    if kind == "array":
        return [least(document, schema.get("items", {}))] * schema.get("minItems", 0)
    return {"string": "i 1", "integer": 1, "number": 1, "boolean": True, "null": None}.get(kind, "i 1")


def spoiled(document: Any, schema: Any, depth: int = 4) -> Iterator[tuple[str, Any]]:
    """What a schema asks for, with one place of it replaced by something hostile; where, and the whole."""
    schema = _resolved(document, schema)
    for number, value in enumerate(VALUES):
        yield f"value {number}", value
    if depth == 0:
        return
    for each in (s for name in ("anyOf", "oneOf") for s in schema.get(name, ()) if s.get("type") not in SIMPLE):
        yield from spoiled(document, each, depth - 1)
    for name, inner in schema.get("properties", {}).items():
        for where, value in spoiled(document, inner, depth - 1):
            yield f"{name}/{where}", {**least(document, schema), name: value}
    if "items" in schema:
        for where, value in spoiled(document, schema["items"], depth - 1):
            yield f"0/{where}", [value]


SIMPLE = ("string", "integer", "number", "boolean", "null")


def _resolved(document: Any, schema: Any) -> Any:
    if schema is None:
        return {}
    while "$ref" in schema:
        found = document
        for part in schema["$ref"].removeprefix("#/").split("/"):
            found = found[part]
        schema = found
    return schema


def faults(reply: Reply) -> list[str]:
    """What an answer breaks of what every answer must keep; none if it keeps it all."""
    found = []
    if reply.status >= 500:
        found.append(f"status {reply.status}")
    for name, value in reply.sent_headers:
        if not all(0x20 <= byte < 0x7F for byte in name + value):
            found.append(f"header {name!r} holds {value!r}")
    if [name for name, _ in reply.sent_headers].count(b"x-request-id") != 1:
        found.append("not one X-Request-ID")
    kind = reply.headers.get("content-type", "")
    if reply.status >= 400:
        found += _problem_faults(reply) if kind == "application/problem+json" else [f"an error of type {kind!r}"]
    elif kind == "application/json":
        json.loads(reply.body, parse_constant=lambda name: found.append(f"{name} in the answer"))
    return found


def _problem_faults(reply: Reply) -> list[str]:
    said = json.loads(reply.body)
    found = []
    if not {"type", "title", "status", "detail", "request_id"} <= set(said) <= MEMBERS:
        found.append(f"members {sorted(said)}")
    if said.get("status") != reply.status or not said.get("detail") or not said.get("title"):
        found.append("status, title or detail is not told")
    if said.get("request_id") != reply.headers.get("x-request-id"):
        found.append("another request id than the header's")
    texts = [said.get("detail", ""), said.get("title", "")]
    for error in said.get("errors", ()):
        if set(error) != {"at", "change"}:
            found.append(f"a fault of {sorted(error)}")
        texts += error.values()
    found += [f"not fit for a log: {text[:80]!r}" for text in texts if not text.isprintable()]
    if len(reply.body) > LONGEST_PROBLEM:
        found.append(f"a problem of {len(reply.body)} bytes")
    return found
