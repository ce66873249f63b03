"""One OpenTelemetry trace for each recording that a run commits, sent to a collector.

In: when the parts of each commit were extracted, transcribed and committed. Out: spans, by OTLP
over HTTP, from a thread of the driver's process. They name recordings by ID: no address and no text
is in them. A collector that is down costs its spans and a line of the log, nothing else.

Source: OpenTelemetry, "Trace API" and "OTLP/HTTP request" (`/v1/traces`), and its semantic
conventions (`error.type`).
"""

import hashlib
import importlib
import logging
import math
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

import pyarrow as pa

from corpus_asr.errors import ConfigError, install_words
from corpus_asr.logs import event
from corpus_asr.stages.parts import FAILED
from corpus_asr.storage.stores.uri import redact_uri, without_secrets

TRACED = (
    "recording_id", "part", "last_part", "channel", "status", "error_stage", "error_kind",
    "attempts", "duration_s", "decode_s", "extracted_at_s", "transcribe_s", "transcribed_at_s",
)  # fmt: skip
"""Columns of RESULTS that spans are made of; with these, what a commit knows of itself."""
COMMITTED = ("commit_at_s", "committed_at_s")
# Of the queue, some 25 MB: what comes while a collector is slow beyond that is lost.
_QUEUE_SPANS = 16_384
# A run that ends waits so long for what is not sent yet, and a request for its answer.
_CLOSE_S = 5.0
_BATCH_SPANS = 512
# A part that is committed a second time, as Ray repeats a task, comes soon after the first.
_MOST_ENDED = 100_000
_LOG = logging.getLogger(__name__)


def traces_address(address: str) -> str:
    """Return where a collector takes traces."""
    return f"{address.rstrip('/').removesuffix('/v1/traces')}/v1/traces"


def check_traces(address: str | None) -> None:
    """See that traces can be sent, before anything is prepared.

    Raises:
        ConfigError: a package is missing.
    """
    if address is not None:
        _exporter(address)


def _exporter(address: str) -> Any:
    try:
        otlp = importlib.import_module("opentelemetry.exporter.otlp.proto.http.trace_exporter")
    except ImportError as error:
        raise ConfigError(
            f"sending traces to {redact_uri(address)}: OpenTelemetry cannot be imported ({error}), "
            f"expected its packages; {install_words('otel')}, or leave report.traces_to out"
        ) from error
    return otlp.OTLPSpanExporter(endpoint=traces_address(address), timeout=_CLOSE_S)


@contextmanager
def sending_traces(address: str | None, run_id: str) -> "Iterator[Traces | None]":
    """Send traces of a run while the context is open; None where nobody takes them."""
    if address is None:
        yield None
        return
    # It logs each request that fails; here the first one is a line.
    logger = logging.getLogger("opentelemetry")
    traces = Traces(_exporter(address), run_id, to=address)
    logger.addHandler(traces.failures)
    logger.propagate = False
    try:
        yield traces
    finally:
        # What still waits for an answer then logs nothing, either.
        if traces.close():
            logger.removeHandler(traces.failures)
            logger.propagate = True


@dataclass(slots=True)
class _Seen:
    """What is committed of a recording."""

    parts: set[int] = field(default_factory=set)
    last: int | None = None
    start_s: float = math.inf
    end_s: float = 0.0
    audio_s: float = 0.0
    attempts: int = 0
    failure: Mapping[str, Any] | None = None

    def add(self, row: Mapping[str, Any], start_s: float) -> None:
        if row["part"] not in self.parts:
            self.audio_s += row["duration_s"] or 0.0
        self.parts.add(row["part"])
        if row["last_part"]:
            self.last = row["part"]
        self.start_s = min(self.start_s, start_s)
        self.end_s = max(self.end_s, row["committed_at_s"])
        self.attempts = max(self.attempts, row["attempts"] or 1)
        if row["status"] == FAILED:
            self.failure = row

    @property
    def is_whole(self) -> bool:
        return self.last is not None and len(self.parts) > self.last


class Traces:
    """Makes spans of commits, and sends them in batches; from any thread."""

    def __init__(self, exporter: Any, run_id: str, *, to: str = "") -> None:
        self._api = importlib.import_module("opentelemetry.trace")
        self._sdk = importlib.import_module("opentelemetry.sdk.trace")
        sending = importlib.import_module("opentelemetry.sdk.trace.export")
        resources = importlib.import_module("opentelemetry.sdk.resources")
        scope = importlib.import_module("opentelemetry.sdk.util.instrumentation")
        known = version("corpus-asr")
        own = resources.Resource({"service.name": "corpus-asr", "service.version": known})
        given = resources.OTELResourceDetector().detect()  # what the environment names
        self._resource = resources.Resource.create().merge(own).merge(given)
        self._scope = scope.InstrumentationScope("corpus_asr", known)
        self.failures = _Failures()
        """Takes the log of OpenTelemetry."""
        self._sent = _Sent(exporter, sending.SpanExportResult, self.failures, to)
        self._processor = sending.BatchSpanProcessor(
            self._sent, max_queue_size=_QUEUE_SPANS, max_export_batch_size=_BATCH_SPANS
        )
        self._run_id = run_id
        self._seen: dict[str, _Seen] = {}
        self._ended: dict[str, None] = {}  # the last of them, in order
        self._lock = threading.Lock()

    def add(self, times: pa.Table | None) -> None:
        """Take the times of what was committed together; return without waiting."""
        if times is None:
            return
        with self._lock:
            for row in times.to_pylist():
                # What is committed a second time has been told.
                if row["recording_id"] not in self._ended:
                    self._add(row)

    def _add(self, row: Mapping[str, Any]) -> None:
        name = row["recording_id"]
        seen = self._seen.setdefault(name, _Seen())
        spans = [("commit", row["commit_at_s"], row["committed_at_s"])]
        for what, at, lasts in (
            ("extract", "extracted_at_s", "decode_s"),
            ("transcribe", "transcribed_at_s", "transcribe_s"),
        ):
            # What failed, or has no speech, has no times of what was not done.
            if row[at] is not None and row[lasts] is not None:
                spans.append((what, row[at] - row[lasts], row[at]))
        seen.add(row, min(start_s for _, start_s, _ in spans))
        attributes = {
            "corpus_asr.part": row["part"],
            "corpus_asr.channel": row["channel"],
            "corpus_asr.attempts": row["attempts"],
        }
        failed_in = row["error_stage"] if row["status"] == FAILED else None
        for what, start_s, end_s in spans:
            failure = row if what == failed_in else None
            self._send(name, what, start_s, end_s, attributes, failure, of_part=row["part"])
        if seen.is_whole:
            self._end(name, self._seen.pop(name))
            self._ended[name] = None
            if len(self._ended) > _MOST_ENDED:
                del self._ended[next(iter(self._ended))]

    def _end(self, name: str, seen: _Seen) -> None:
        attributes = {
            "corpus_asr.run_id": self._run_id,
            "corpus_asr.recording_id": name,
            "corpus_asr.audio_hours": seen.audio_s / 3600,
            "corpus_asr.parts": len(seen.parts),
            "corpus_asr.attempts": seen.attempts,
        }
        self._send(name, "recording", seen.start_s, seen.end_s, attributes, seen.failure)

    def _send(
        self,
        recording: str,
        name: str,
        start_s: float,
        end_s: float,
        attributes: Mapping[str, Any],
        failure: Mapping[str, Any] | None,
        *,
        of_part: int | None = None,
    ) -> None:
        # The same of what is committed twice, and known before the recording ends.
        trace = _number(16, self._run_id, recording)

        def context(*what: object) -> Any:
            return self._api.SpanContext(
                trace_id=trace,
                span_id=_number(8, self._run_id, recording, *what),
                is_remote=False,
                trace_flags=self._api.TraceFlags(self._api.TraceFlags.SAMPLED),
            )

        known = {key: value for key, value in attributes.items() if value is not None}
        status = self._api.Status(self._api.StatusCode.UNSET)
        if failure is not None:
            known["error.type"] = kind = failure["error_kind"] or "unknown"
            status = self._api.Status(self._api.StatusCode.ERROR, kind)
        self._sent.wanted += 1
        self._processor.on_end(
            self._sdk.ReadableSpan(
                name=name,
                context=context(name, of_part),
                parent=None if of_part is None else context("recording", None),
                resource=self._resource,
                attributes=known,
                status=status,
                start_time=round(start_s * 1e9),
                end_time=round(end_s * 1e9),
                instrumentation_scope=self._scope,
            )
        )

    def close(self) -> bool:
        """Send what is left, for some seconds at most; return whether nothing is at work then."""
        with self._lock:
            # Of recordings with parts that an earlier run committed, or a later one will.
            for name, seen in self._seen.items():
                self._end(name, seen)
            self._seen.clear()
        closing = threading.Thread(target=self._close, name="close-traces", daemon=True)
        closing.start()
        closing.join(_CLOSE_S)
        self._sent.say_what_is_lost()
        return not closing.is_alive()

    def _close(self) -> None:
        self._processor.force_flush(round(_CLOSE_S * 1000))
        self._processor.shutdown()


class _Failures(logging.Handler):
    """Keeps the last message of a log."""

    last = ""

    def emit(self, record: logging.LogRecord) -> None:
        self.last = record.getMessage()


class _Sent:
    """An exporter of OpenTelemetry that says once that spans are lost."""

    def __init__(self, exporter: Any, results: Any, failures: "_Failures", to: str) -> None:
        self._exporter, self._results, self._failures, self._to = exporter, results, failures, to
        self.wanted = self._done = 0
        self._said = False

    def export(self, spans: Sequence[Any]) -> Any:
        why = ""
        try:
            result = self._exporter.export(spans)
        except Exception as error:  # of the client: a run does not end with its collector
            result, why = self._results.FAILURE, type(error).__name__
        if result is self._results.SUCCESS:
            self._done += len(spans)
        else:
            self._say(why or self._failures.last or "the collector did not take them")
        return result

    def say_what_is_lost(self) -> None:
        if self._done < self.wanted:
            self._say(f"{self.wanted - self._done} spans were not sent in time")

    def _say(self, why: str) -> None:
        if not self._said:
            self._said = True
            why = without_secrets(why)
            event(_LOG, logging.WARNING, "traces_lost", to=redact_uri(self._to), why=why)

    def shutdown(self) -> None:
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return bool(self._exporter.force_flush(timeout_millis))


def _number(num_bytes: int, *what: object) -> int:
    return int.from_bytes(hashlib.blake2b(repr(what).encode(), digest_size=num_bytes).digest())
