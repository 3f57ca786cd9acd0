"""The online store of several machines: Redis, one primary that writes all it accepts to its append-only file.

Keys, all within one hash slot (`{name}` is a hash tag), since scripts use several of them at once:

recsys:{name}:store            hash     format, id of this store
recsys:{name}:events           stream   every event in the order of acceptance, entries 1-0, 2-0, …
recsys:{name}:event_ids        set      so that each is accepted once
recsys:{name}:user:<id>        sorted   a user's events by timestamp, then by the order of acceptance
recsys:{name}:items            hash     item id -> whether it is available, and when that was said
recsys:{name}:item_features    hash     item id -> JSON
recsys:{name}:items_changed    sorted   item ids by the number of their last change

A script runs alone, and reaches the append-only file whole or not at all: nothing is accepted by half.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import redis
import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import ConstantBackoff
from redis.retry import Retry as SyncRetry

from recsys.online.store import (
    FORMAT_VERSION,
    Accepted,
    LiveItem,
    OnlineStoreAway,
    OnlineStoreError,
    Row,
    StoredEvent,
    features_json,
    refuse_unkeepable,
)

_log = logging.getLogger(__name__)
_ANSWER_S = 1.0  # to connect, and to answer
_ALL_S = 2.0  # a whole call, retries and the wait for a free connection included
_REST_S = 1.0  # how long nobody waits for a Redis that kept silent, but for one call that tries
_CONNECTIONS = 4
_COMMANDS = 256  # sent at a time
_ROWS = 10_000
_ITEMS = 1_000
_NUMBER = 16  # digits that a number is written with before a user's event, so that text sorts as numbers do

_READY = f"""
local format = redis.call('HGET', KEYS[1], 'format')
if format and format ~= '{FORMAT_VERSION}' then
  return redis.error_reply('FORMAT ' .. format)
end
redis.call('HSETNX', KEYS[1], 'format', '{FORMAT_VERSION}')
redis.call('HSETNX', KEYS[1], 'store', ARGV[1])
"""
# Its id is noted last: were anything to fail before, the event would be taken again rather than for a duplicate.
_ADD_EVENTS = f"""
{_READY}
local newest = redis.call('XREVRANGE', KEYS[2], '+', '-', 'COUNT', 1)
local number = newest[1] and tonumber(string.match(newest[1][1], '^%d+')) or 0
local new = {{}}
for i = 2, #ARGV, 5 do
  local id, user, key, timestamp, said = ARGV[i], ARGV[i + 1], KEYS[tonumber(ARGV[i + 2])], ARGV[i + 3], ARGV[i + 4]
  if redis.call('SISMEMBER', KEYS[3], id) == 1 then
    new[#new + 1] = 0
  else
    number = number + 1
    redis.call('XADD', KEYS[2], string.format('%.0f-0', number), 'user', user, 'event', said)
    redis.call('ZADD', key, timestamp, string.format('%0{_NUMBER}.0f', number) .. said)
    redis.call('SADD', KEYS[3], id)
    new[#new + 1] = 1
  end
end
return new
"""
_PUT_ITEM = f"""
{_READY}
local last = redis.call('ZREVRANGE', KEYS[4], 0, 0, 'WITHSCORES')
if ARGV[4] ~= '' then redis.call('HSET', KEYS[3], ARGV[2], ARGV[4]) end
redis.call('HSET', KEYS[2], ARGV[2], ARGV[3])
redis.call('ZADD', KEYS[4], (tonumber(last[2]) or 0) + 1, ARGV[2])
"""
# All items, where the store is not the one that the caller knew: it began anew.
_ITEMS_CHANGED = f"""
local store = redis.call('HGET', KEYS[1], 'store') or ''
local after = tonumber(ARGV[1])
local newest = tonumber(redis.call('ZREVRANGE', KEYS[4], 0, 0, 'WITHSCORES')[2]) or 0
if (ARGV[2] ~= '' and ARGV[2] ~= store) or newest < after then after = 0 end
local beyond = string.format('(%.0f', after)
local found = redis.call('ZRANGEBYSCORE', KEYS[4], beyond, '+inf', 'WITHSCORES', 'LIMIT', 0, {_ITEMS})
local items = {{}}
for i = 1, #found, 2 do
  local id = found[i]
  items[#items + 1] = {{id, redis.call('HGET', KEYS[2], id), redis.call('HGET', KEYS[3], id)}}
  after = tonumber(found[i + 1])
end
return {{store, string.format('%.0f', after), items}}
"""


class RedisStore:
    """Events and live items in Redis; see OnlineStore.

    A Redis that is away is an OnlineStoreError within two seconds, at once while it goes on; when it is back the next
    call finds it. An answer that was lost on the way may make events that were new be called known: they are kept.

    Args:
        address: `redis://[user:password@]host[:port][/database][?name=…]`, or `rediss://` for TLS.

    Raises:
        OnlineStoreError: the address cannot be used. Redis itself is first asked by the methods.
    """

    def __init__(self, address: str) -> None:
        place = _Place.of(address)
        self.address = place.shown
        self._key = place.key
        options = {
            "socket_timeout": _ANSWER_S,
            "socket_connect_timeout": _ANSWER_S,
            "retry": Retry(ConstantBackoff(0.05), 1, (redis.ConnectionError,)),
            "decode_responses": True,
            "protocol": 2,
        }
        try:
            pool = redis.asyncio.ConnectionPool.from_url(place.url, **options)
            pool.connection_class(**pool.connection_kwargs)  # or options that it does not know show at the first call
        except (TypeError, ValueError) as error:
            raise _failed(self.address, error) from None
        self._redis: Any = redis.asyncio.Redis.from_pool(pool)
        self._waiting: list[_Asked] = []
        self._sending: set[asyncio.Task[None]] = set()
        self._silent, self._try_at = False, 0.0
        self._id = uuid.uuid4().hex  # of the store, if this is the first to write to it
        self._known = ""  # the store whose items were told last
        self._warned = False

    async def add_events(self, events: Sequence[StoredEvent]) -> list[bool]:
        refuse_unkeepable(events)
        if not events:
            return []
        users = list(dict.fromkeys(event.user_id for event in events))
        keys = [self._key("store"), self._key("events"), self._key("event_ids"), *map(self._user, users)]
        place = {user: number for number, user in enumerate(users, start=4)}
        said: list[str | int] = [self._id]
        for event in events:
            text = json.dumps([event.event_id, event.item_id, event.timestamp, event.event], separators=(",", ":"))
            said += [event.event_id, event.user_id, place[event.user_id], event.timestamp, text]
        return [bool(new) for new in await self._script(_ADD_EVENTS, keys, said)]

    async def events_of(self, user_id: str, limit: int) -> list[StoredEvent]:
        if limit < 1:
            return []
        found = await self._asked("ZREVRANGE", self._user(user_id), 0, limit - 1)
        events = []
        for text in reversed(found):
            event_id, item_id, timestamp, event = json.loads(text[_NUMBER:])
            events.append(StoredEvent(event_id, user_id, item_id, timestamp, event))
        return events

    async def put_item(self, item: LiveItem) -> None:
        said = [self._id, item.item_id, f"{int(item.available)} {item.changed}", features_json(item) or ""]
        await self._script(_PUT_ITEM, self._items, said)

    async def items_changed(self, after: int) -> tuple[list[LiveItem], int]:
        items: dict[str, LiveItem] = {}
        found = None
        # Redis does nothing else during a script, so many items are told in parts.
        while found is None or len(found) == _ITEMS:
            self._known, newest, found = await self._script(_ITEMS_CHANGED, self._items, [after, self._known])
            after = int(newest)
            for item_id, said, features in found:
                available, changed = said.split(" ")
                items.pop(item_id, None)  # it was changed between two parts
                told = None if features is None else json.loads(features)
                items[item_id] = LiveItem(item_id, told, available == "1", int(changed))
        return list(items.values()), after

    async def check(self) -> None:
        # A write without effect: a replica, and a Redis that is full or cannot save, refuse it as they would any other.
        await self._script(_READY, [self._key("store")], [self._id])
        try:
            told: dict[str, str] = {}
            for name in ("appendonly", "appendfsync", "maxmemory-policy"):
                told |= await self._asked("CONFIG GET", name)
        except _Forbidden as error:
            if not self._warned:
                self._warned = True
                _log.warning(
                    "%s, so nobody checks how it is set: see that its append-only file is on with appendfsync always, "
                    "and that maxmemory-policy is noeviction, or accepted events may be lost",
                    error,
                )
            return
        refuse_forgetful(self.address, told)

    async def close(self) -> None:
        await asyncio.gather(*self._sending)
        await self._redis.aclose(close_connection_pool=True)

    @property
    def _items(self) -> list[str]:
        return [self._key(name) for name in ("store", "items", "item_features", "items_changed")]

    def _user(self, user_id: str) -> str:
        return self._key(f"user:{user_id}")

    async def _script(self, script: str, keys: Sequence[str], said: Sequence[str | int]) -> Any:
        # By its text: its digest would save little, and fail once after every restart.
        return await self._asked("EVAL", script, len(keys), *keys, *said)

    async def _asked(self, *command: str | int) -> Any:
        """What Redis answers, in bounded time. One that kept silent is tried by one call at a time."""
        if self._silent:
            if time.monotonic() < self._try_at:
                raise _silence(self.address)
            self._try_at = time.monotonic() + _REST_S
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Asked(command, answer))
        if len(self._sending) < _CONNECTIONS:
            sending = asyncio.create_task(self._send())
            self._sending.add(sending)
            sending.add_done_callback(self._sending.discard)
        result = await answer
        if isinstance(result, redis.RedisError | OSError):
            raise _failed(self.address, result) from None
        if isinstance(result, Exception):
            raise result
        return result

    async def _send(self) -> None:
        """Sends all that waits, many commands at a time: one by one each would cost several times as much."""
        while self._waiting:
            sent, self._waiting = self._waiting[:_COMMANDS], self._waiting[_COMMANDS:]
            results = await self._answers([asked.command for asked in sent])
            if self._silent:  # nor would the others be answered
                left, self._waiting = self._waiting, []
                sent, results = sent + left, results + [_silence(self.address)] * len(left)
            for asked, result in zip(sent, results, strict=True):
                if not asked.answer.done():  # else whoever asked has gone
                    asked.answer.set_result(result)

    async def _answers(self, commands: list[tuple[str | int, ...]]) -> list[Any]:
        """What Redis answers to each command: a value, or an error."""
        try:
            async with asyncio.timeout(_ALL_S), self._redis.pipeline(transaction=False) as pipeline:
                for command in commands:
                    pipeline.execute_command(*command)
                results: list[Any] = await pipeline.execute(raise_on_error=False)
        except Exception as error:
            if isinstance(error, redis.TimeoutError | TimeoutError):
                self._silent, self._try_at = True, time.monotonic() + _REST_S
            return [error] * len(commands)
        self._silent = False
        return results


def refuse_forgetful(address: str, told: dict[str, str]) -> None:
    """Refuses a Redis that would lose what it accepted when it is killed, or to make room.

    With `appendfsync everysec` it answers before it writes where the disk is slow: a kill then loses up to two seconds.

    Args:
        address: named in the message.
        told: what `CONFIG GET` says of appendonly, appendfsync and maxmemory-policy.

    Raises:
        OnlineStoreError: it would; the message says what to set.
    """
    wrong = [
        f"{name} is {told.get(name)!r}: CONFIG SET {name} {right}, and {name} {right} in its redis.conf"
        for name, right in (("appendonly", "yes"), ("appendfsync", "always"))
        if told.get(name) != right
    ]
    # Other policies but noeviction evict keys that expire, which none of ours does.
    if str(told.get("maxmemory-policy")).startswith("allkeys"):
        wrong.append("maxmemory-policy evicts any key: CONFIG SET maxmemory-policy noeviction, and in its redis.conf")
    if wrong:
        raise OnlineStoreError(f"{address} would lose accepted events; {'; '.join(wrong)}")


@contextmanager
def accepted(address: str) -> Iterator[Accepted]:
    """The events accepted at an address; see `open_accepted`."""
    place = _Place.of(address)
    try:
        # A job has time, but not a night.
        patience = {"socket_timeout": 60.0, "socket_connect_timeout": 5.0, "retry": SyncRetry(ConstantBackoff(0.5), 2)}
        client: Any = redis.Redis.from_url(place.url, decode_responses=True, protocol=2, **patience)
    except (TypeError, ValueError) as error:
        raise _failed(place.shown, error) from None
    try:
        with client:
            format_version, store = client.hmget(place.key("store"), "format", "store")
            if format_version not in (None, str(FORMAT_VERSION)):
                raise redis.ResponseError(f"FORMAT {format_version}")
            last = client.xrevrange(place.key("events"), count=1)

            def rows(after: int, upto: int) -> Iterator[list[Row]]:
                while after < upto:
                    found = client.xrange(place.key("events"), f"{after + 1}-0", f"{upto}-0", count=_ROWS)
                    if not found:
                        return
                    yield [_row(number, said) for number, said in found]
                    after = _number(found[-1][0])

            yield Accepted(place.shown, store, _number(last[0][0]) if last else 0, rows)
    except redis.RedisError as error:
        raise _failed(place.shown, error) from None


@dataclass(frozen=True)
class _Asked:
    """A command, and who waits for what Redis says: a value, or an error."""

    command: tuple[str | int, ...]
    answer: asyncio.Future[Any]


@dataclass(frozen=True)
class _Place:
    """An address taken apart: for the client, for people, and what the names of its keys begin with."""

    url: str
    shown: str
    prefix: str

    @classmethod
    def of(cls, address: str) -> _Place:
        parts = urlsplit(address)
        options = dict(parse_qsl(parts.query))
        name = options.pop("name", "online")
        if not re.fullmatch(r"[\w.-]+", name, re.ASCII):
            raise OnlineStoreError(f"{name!r} cannot be a store's name; use letters, digits, dots and hyphens")
        _, _, host = parts.netloc.rpartition("@")
        return cls(
            urlunsplit(parts._replace(query=urlencode(options))),
            urlunsplit(parts._replace(netloc=host, query="" if name == "online" else f"name={name}")),
            f"recsys:{{{name}}}:",
        )

    def key(self, name: str) -> str:
        return self.prefix + name


def _number(entry: str) -> int:
    return int(entry.partition("-")[0])


def _row(entry: str, said: dict[str, str]) -> Row:
    event_id, item_id, timestamp, event = json.loads(said["event"])
    return _number(entry), event_id, said["user"], item_id, timestamp, event


class _Forbidden(OnlineStoreError):
    """A managed Redis does not let its configuration be read."""


def _silence(address: str) -> OnlineStoreError:
    return OnlineStoreAway(f"{address} has kept silent; it is tried again every {_REST_S:g} s")


def _failed(address: str, error: Exception) -> OnlineStoreError:
    said = str(error) or type(error).__name__
    match error:
        case redis.AuthenticationError():
            return OnlineStoreError(f"{address} lets nobody in with this user and password ({said}); correct them")
        case redis.ReadOnlyError():
            return OnlineStoreError(f"{address} is a replica, which keeps nothing; give the address of its primary")
        case redis.exceptions.AskError() | redis.exceptions.ClusterDownError():
            return OnlineStoreError(f"{address} is a Redis Cluster; give the store a Redis of its own")
        case redis.OutOfMemoryError():
            return OnlineStoreError(f"{address} is full ({said}); raise its maxmemory")
        case redis.exceptions.NoPermissionError():
            return _Forbidden(f"{address} refuses: {said}")
        case redis.ResponseError() if said.startswith("FORMAT "):
            return OnlineStoreError(
                f"{address} has format {said.split()[1]}, this version reads {FORMAT_VERSION}; "
                "run the version that wrote it, or give the store another name by ?name=…"
            )
        case redis.ResponseError() if "unknown command" in said.lower():
            return _Forbidden(f"{address} refuses: {said}")
        case redis.ResponseError():
            return OnlineStoreError(f"{address} refuses: {said}")
        case TypeError() | ValueError():
            return OnlineStoreError(f"{address} cannot be used: {said}")
    return OnlineStoreAway(f"{address} does not answer ({said}); see whether Redis runs and can be reached from here")
