"""What is told of the service to whoever watches it: metrics, log lines and traces, by one call an answer."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, Self

from recsys.answers import Answer

from .answers import Batch
from .logs import LogHandler, LogSink
from .metrics import Metrics
from .tracing import Tracing

if TYPE_CHECKING:
    from recsys.bundle import Bundle

    from .guard import Caller
    from .settings import Settings
    from .swap import Swap


class Observer:
    """Tells metrics, log and traces; each of them may be left out.

    Args:
        metrics: what counts; this process's alone, if left out.
        sink: where lines go.
        tracing: where spans go.
    """

    def __init__(
        self, metrics: Metrics | None = None, sink: LogSink | None = None, tracing: Tracing | None = None
    ) -> None:
        self._metrics = metrics or Metrics()
        self.stored = self._metrics.store  # the online store was asked: which operation, seconds, whether it failed
        self._sink = sink
        self._tracing = tracing
        self._handler: LogHandler | None = None

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """As the settings and the environment of this process say; Python's own log goes the same way from now on.

        Raises:
            RuntimeError: tracing is asked for and its packages are not there.
            ValueError: RECSYS_METRICS_ADDRESS is none.
        """
        metrics = Metrics.from_environment()
        sink = LogSink.from_environment(sample=settings.log.access_sample, on_dropped=metrics.log_dropped)
        made = cls(metrics, sink, Tracing() if settings.tracing else None)
        made._handler = LogHandler(sink)
        for name in ("serve", "recsys"):
            log = logging.getLogger(name)
            log.setLevel(logging.INFO)
            log.propagate = False  # or Ray would print it a second time, where nobody looks
            log.addHandler(made._handler)
        return made

    def asked(self, method: str, headers: Any) -> Any:
        """A request has come; what `answered` is to be given as its span."""
        return None if self._tracing is None else self._tracing.begin(method, headers)

    def answered(
        self, route: str, status: int, said: Any, seconds: float, request_id: str, caller: Caller | None, span: Any
    ) -> None:
        """A request was answered.

        Args:
            route: as documented, never the path.
            status: of the answer.
            said: what the operation gave, if anything.
            seconds: from its head's arrival to the last byte handed on.
            request_id: as its answer says.
            caller: who asked, if that is known.
            span: what `asked` gave.
        """
        strategy: str | None = None
        bundle: str | None = None
        stages: Sequence[tuple[str, float]] = ()
        degraded: Sequence[str] = ()
        metrics, sink = self._metrics, self._sink
        if isinstance(said, Answer):
            strategy, bundle, stages, degraded = said.strategy, said.bundle, said.stages, said.degraded
            metrics.answer(stages, degraded)
        elif isinstance(said, Batch):
            bundle = said.bundle
            for one in said.answers:
                if isinstance(one, Answer):
                    metrics.answer(one.stages, one.degraded)
        elif isinstance(said, dict) and "duplicates" in said:
            metrics.events(said["accepted"], said["duplicates"])
        metrics.request(route, status, strategy, seconds)
        if sink is not None and (sink.sample or status >= 500):  # most services log failures only: spare them the rest
            key_id = caller.key_id or None if caller is not None else None
            sink.access(
                request_id=request_id,
                route=route,
                status=status,
                seconds=seconds,
                strategy=strategy,
                bundle=bundle,
                key_id=key_id,
            )
        if self._tracing is not None and span is not None:
            self._tracing.end(
                span,
                route=route,
                status=status,
                request_id=request_id,
                strategy=strategy,
                bundle=bundle,
                stages=stages,
                degraded=degraded,
            )

    def uses(self, bundle: Bundle) -> None:
        """This process answers from a bundle from now on."""
        self._metrics.bundle(bundle.id, round(datetime.fromisoformat(bundle.manifest.created).timestamp() * 1000))

    def swapped(self, swap: Swap) -> None:
        """Another bundle was tried."""
        self._metrics.swap(
            "swapped" if swap.error is None else "unasked" if swap.bundle is None else "failed", swap.seconds
        )

    def follows(self, items: int, behind_since: int | None) -> None:
        """How many items are live beside the bundle; since when (milliseconds since 1970) none is followed, if so."""
        self._metrics.live(items, 0.0 if behind_since is None else time.time() - behind_since / 1000)

    def keys(self, problem: str | None) -> None:
        """Whether the key file is broken."""
        self._metrics.keys_problem(problem is not None)

    def metrics(self) -> tuple[bytes, str]:
        """What is counted on this node, and its content type."""
        return self._metrics.render(), self._metrics.content_type

    def close(self) -> None:
        """Hands on what waits."""
        if self._handler is not None:
            for name in ("serve", "recsys"):
                log = logging.getLogger(name)
                log.removeHandler(self._handler)
                log.setLevel(logging.NOTSET)
                log.propagate = True
        self._metrics.close()
        if self._sink is not None:
            self._sink.close()
        if self._tracing is not None:
            self._tracing.close()
