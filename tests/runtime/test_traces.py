"""Traces: what was measured of each recording, sent without anything waiting for a collector."""

import logging
import re
import socket
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from corpus_asr.errors import ConfigError
from corpus_asr.pipelines import driver
from corpus_asr.runtime import traces
from corpus_asr.runtime.commit import Committer
from corpus_asr.runtime.traces import COMMITTED, TRACED, Traces, check_traces, sending_traces
from corpus_asr.storage.run_state.tables import OutputStore
from corpus_asr.storage.stores.uri import recording_id
from tests.support.engines import script, scripted_engine
from tests.support.killing import killable_job
from tests.support.stores import Handler, serving
from tests.support.tables import part, results, with_section

pytest.importorskip("opentelemetry.exporter.otlp.proto.http")
SECRET = "s3cr3t"


def times_of(at_s: float) -> dict[str, Any]:
    return {"decode_s": 2.0, "extracted_at_s": at_s, "transcribe_s": 3.0,
            "transcribed_at_s": at_s + 5.0}  # fmt: skip


def sent_spans(tmp_path: Path, *commits: list[dict[str, Any]]) -> list[Any]:
    """Commit rows for each list, and return the spans that were sent."""
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter = InMemorySpanExporter()
    made = Traces(exporter, "run")
    store = OutputStore(str(tmp_path / "output"))
    committer = Committer(store=store, run_id="run", model="m", model_revision="1", traced=True)
    for rows in commits:
        made.add(committer(results(*rows)).times)
    made.close()
    return list(exporter.get_finished_spans())


def test_a_recording_is_a_trace_of_what_was_measured_in_whatever_order(tmp_path: Path) -> None:
    now_s = time.time()
    uri = f"https://host/talk.mp3?signature={SECRET}"
    said = part("", 1, texts=["Nobody hears this."], uri=uri, attempts=2, **times_of(now_s + 9))
    failed = part("", 0, texts=None, uri=uri, last=False, status="failed",
                  error_stage="transcribe", error_kind="out_of_memory", error_message="all of it",
                  **times_of(now_s))  # fmt: skip
    silent = part("quiet", 0, texts=None, status="no_speech", extracted_at_s=now_s, decode_s=1.0)
    found = sent_spans(tmp_path, [said, silent], [failed])
    roots = {span.attributes["corpus_asr.recording_id"]: span
             for span in found if span.name == "recording"}  # fmt: skip
    assert roots.keys() == {recording_id(uri), recording_id("/quiet")}
    root = roots[recording_id(uri)]
    own = [span for span in found if span.context.trace_id == root.context.trace_id]
    others = [span for span in own if span is not root]
    assert sorted((span.name, span.attributes["corpus_asr.part"]) for span in others) == [
        (name, number) for name in ("commit", "extract", "transcribe") for number in (0, 1)
    ]
    assert {span.parent.span_id for span in others} == {root.context.span_id}
    assert root.parent is None
    assert len({span.context.span_id for span in found}) == len(found)
    assert root.attributes == {
        "corpus_asr.run_id": "run", "corpus_asr.recording_id": recording_id(uri),
        "corpus_asr.audio_hours": 20 / 3600, "corpus_asr.parts": 2, "corpus_asr.attempts": 2,
        "error.type": "out_of_memory",
    }  # fmt: skip
    errors = [(span.name, span.attributes.get("corpus_asr.part"))
              for span in own if span.status.status_code.name == "ERROR"]  # fmt: skip
    assert sorted(errors, key=str) == [("recording", None), ("transcribe", 0)]
    first = next(span for span in others
                 if (span.name, span.attributes["corpus_asr.part"]) == ("extract", 0))  # fmt: skip
    assert first.end_time - first.start_time == pytest.approx(2e9, abs=1e3)
    assert first.end_time == pytest.approx(now_s * 1e9, abs=1e3)
    assert root.start_time == first.start_time
    assert root.end_time == max(span.end_time for span in others if span.name == "commit")
    # What has no speech was not transcribed.
    quiet = roots[recording_id("/quiet")].context.trace_id
    assert {span.name for span in found if span.context.trace_id == quiet} == {
        "recording", "extract", "commit",
    }  # fmt: skip
    told = " ".join(span.to_json() for span in found)
    assert not any(word in told for word in (SECRET, "talk", "Nobody", "all of it", "signature"))


def test_what_is_committed_twice_has_one_trace(tmp_path: Path) -> None:
    said = [part("a", 0, texts=["x"], **times_of(time.time()))]
    found = sent_spans(tmp_path, said, said)
    assert sorted(span.name for span in found) == ["commit", "extract", "recording", "transcribe"]


def test_what_an_earlier_run_began_is_a_trace_at_the_end(tmp_path: Path) -> None:
    found = sent_spans(tmp_path, [part("a", 3, texts=["x"], **times_of(time.time()))])
    assert sorted(span.name for span in found) == ["commit", "extract", "recording", "transcribe"]


def test_untraced_commits_know_no_times(tmp_path: Path) -> None:
    store = OutputStore(str(tmp_path))
    committer = Committer(store=store, run_id="run", model="m", model_revision="1")
    assert committer(results(part("a", 0, texts=["x"]))).times is None


class Collector:
    def __init__(self, address: str) -> None:
        self.address = address
        self.bodies: list[bytes] = []
        self.paths: set[str] = set()
        self.status, self.waits_s = 200, 0.0


class CollectorHandler(Handler):
    def answer(self) -> None:
        collector = self.server.state
        collector.paths.add(self.path)
        collector.bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
        time.sleep(collector.waits_s)
        self.answer_empty(collector.status)


@pytest.mark.long
def test_a_run_sends_a_trace_of_each_recording(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    script(monkeypatch.setattr, engine=scripted_engine)
    config = killable_job(tmp_path, files=6).config
    with serving(CollectorHandler, Collector) as collector:
        job = with_section(config, "report", traces_to=f"{collector.address}/")
        summary = driver.run(job, local=True, progress=None)
    assert collector.paths == {"/v1/traces"}
    assert len(collector.bodies) < summary.files  # in batches
    requests = [ExportTraceServiceRequest.FromString(body) for body in collector.bodies]
    spans = [span for each in requests for resource in each.resource_spans
             for scope in resource.scope_spans for span in scope.spans]  # fmt: skip
    roots = [span for span in spans if span.name == "recording"]
    assert len(roots) == len({span.trace_id for span in spans}) == summary.files == 6
    assert {span.name for span in spans} == {"recording", "extract", "transcribe", "commit"}
    assert all(span.start_time_unix_nano < span.end_time_unix_nano for span in roots)


@pytest.mark.parametrize(
    ("how", "why"),
    [("down", "due to timeout"), ("refuses", "400, reason: Bad Request"),
     ("hangs", "due to timeout|not sent in time")],
)  # fmt: skip
def test_a_collector_that_fails_costs_a_line_of_the_log(
    how: str, why: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(traces, "_CLOSE_S", 0.5)
    monkeypatch.setattr(traces, "_QUEUE_SPANS", 600)
    rows = [part(str(number), 0, texts=["x"], **times_of(1e9)) for number in range(300)]
    times = results(*rows).select(TRACED)
    for name in COMMITTED:
        times = times.append_column(name, pa.array([1e9 + 7] * len(rows)))
    with serving(CollectorHandler, Collector) as collector:
        collector.status, collector.waits_s = 400, 20.0 * (how == "hangs")
        address = collector.address
        if how == "down":
            with socket.create_server(("127.0.0.1", 0)) as server:
                address = f"http://127.0.0.1:{server.getsockname()[1]}"
        with sending_traces(address, "run") as sending:
            assert sending is not None
            began_s = time.monotonic()
            sending.add(times)
            sending.add(times)
            taken_s = time.monotonic() - began_s
    assert taken_s < 1.0  # without waiting for an answer
    assert time.monotonic() - began_s < 10  # also on a busy machine; the collector takes 20
    lost = [record for record in caplog.records if "traces_lost" in record.getMessage()]
    assert [record.levelno for record in lost] == [logging.WARNING]
    assert address in lost[0].getMessage()
    assert re.search(why, lost[0].getMessage())
    assert not [record for record in caplog.records if record.name.startswith("opentelemetry")]


def test_an_address_may_name_the_path_of_traces() -> None:
    for given in ("http://c:4318", "http://c:4318/", "http://c:4318/v1/traces"):
        assert traces.traces_address(given) == "http://c:4318/v1/traces"


def test_without_the_packages_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "opentelemetry.exporter.otlp.proto.http.trace_exporter"
    monkeypatch.setitem(sys.modules, name, None)
    check_traces(None)
    with pytest.raises(
        ConfigError, match=r"pip install opentelemetry-\S+ \(extra otel\), or leave report"
    ):
        check_traces("http://collector:4318")
