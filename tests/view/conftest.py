"""A small run with sound, and a server that shows it."""

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from corpus_asr.storage.run_state.tables import OutputStore
from corpus_asr.storage.stores.uri import recording_id
from corpus_asr.view.answers import Answers
from corpus_asr.view.catalogue import Library, Transcripts, View
from corpus_asr.view.search import Filters, Hit, Order, Page, find, parse_query
from corpus_asr.view.server import ViewServer
from corpus_asr.view.sound import Sounds
from tests.report.conftest import browser as browser
from tests.report.conftest import complaints as complaints
from tests.report.conftest import open_page as open_page
from tests.support.audio import encode, tone, wav_bytes
from tests.support.pages import asked, fetch
from tests.support.runs import of_file, passage, run_of, spoken
from tests.support.tables import commit, part, results

PASSAGES = 30
SECONDS = 60.0
HOSTILE_NAME = "<img src=x onerror=alert(1)>\u202egnp.wav"
HOSTILE_TEXT = "</script><script>alert(1)</script> <b>bold</b> \u202e&amp; \"'"


@dataclass(frozen=True)
class Shown:
    """A run that is shown: the folder of its recordings, its output, and the server."""

    folder: Path
    store: OutputStore
    server: ViewServer

    def id(self, name: str) -> str:
        """Return what a recording is named by."""
        return recording_id(str(self.folder / name))

    @property
    def url(self) -> str:
        """The first page."""
        return self.server.url


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shown]:
    """A run of four recordings: plain, one that browsers do not play, hostile, failed."""
    folder = tmp_path_factory.mktemp("corpus")
    plain, odd, hostile = folder / "plain.wav", folder / "odd.aiff", folder / HOSTILE_NAME
    samples = tone(SECONDS)
    plain.write_bytes(wav_bytes(samples, rate_hz=16_000))
    options = {"container": "aiff", "codec": "pcm_s16be", "sample_format": "s16"}
    odd.write_bytes(encode(samples, rate_hz=16_000, **options))
    hostile.write_bytes(wav_bytes(tone(4.0), rate_hz=16_000))
    messages = [
        passage(
            at,
            f"This is passage{at} peace",
            probabilities=(0.9, 0.95, sure, 1.0),
            no_speech_prob=0.01,
        )
        for at, sure in enumerate([0.9] * 7 + [0.3] + [0.9] * (PASSAGES - 8))
    ]
    failure: dict[str, Any] = {
        "error_stage": "extract", "error_kind": "not_audio", "retryable": False, "part_end_s": 0.0,
        "error_message": "not recognized <b>as audio</b>",
    }  # fmt: skip
    store = run_of(
        tmp_path_factory.mktemp("run") / "output",
        spoken(str(plain), *messages, **of_file(plain)),
        spoken(str(odd), passage(0, "odd one"), passage(1, "odd two"), codec="pcm_s16be",
               part_end_s=SECONDS, **of_file(odd)),
        spoken(str(hostile), passage(0, HOSTILE_TEXT), **of_file(hostile)),
        part("", 0, uri=str(folder / "bad.wav"), texts=None, status="failed", **failure),
    )  # fmt: skip
    with (
        closing(Library(store)) as library,
        closing(Sounds(store)) as sounds,
        closing(ViewServer(answers_of(library, sounds))) as server,
    ):
        library.wait()
        with served(server):
            yield Shown(folder, store, server)


@contextmanager
def serving(
    store: OutputStore, *, editable: bool = True, refresh_s: float = 0.0, **values: Any
) -> Iterator[ViewServer]:
    """Serve a run whose texts are read; values are those of `ViewServer`."""
    with closing(Library(store, refresh_s=refresh_s)) as library, closing(Sounds(store)) as sounds:
        library.wait()
        answers = answers_of(library, sounds, editable=editable)
        with closing(ViewServer(answers, **values)) as server, served(server):
            yield server


def answers_of(library: Library, sounds: Sounds, **values: Any) -> Answers:
    return Answers(library, Transcripts(library.store), sounds, **values)


@contextmanager
def served(server: ViewServer) -> Iterator[None]:
    """Let a server answer in a thread of its own."""
    loop = asyncio.new_event_loop()
    serving = loop.create_task(server.serve())

    def run() -> None:
        with suppress(asyncio.CancelledError):
            loop.run_until_complete(serving)
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    yield
    loop.call_soon_threadsafe(serving.cancel)
    thread.join()


@pytest.fixture
def store(tmp_path: Path) -> OutputStore:
    return run_of(tmp_path / "output")


@pytest.fixture
def library(store: OutputStore) -> Iterator[Library]:
    with closing(Library(store, refresh_s=0.0)) as opened:
        yield opened


def get(url: str, what: str, **parameters: Any) -> Any:
    """Return an answer of the server."""
    return json.loads(fetch(asked(url, what, **parameters)).body)


def add(store: OutputStore, *rows: dict[str, Any]) -> str:
    return commit(store, results(*rows))


def search(view: View, typed: str = "", *, whole: bool = False, **values: Any) -> Page[Hit]:
    order, page = values.pop("order", Order.recording), values.pop("page", 0)
    query = parse_query(typed, whole_words=whole)
    assert view.searchable
    return find(view.catalogue.tables, query, Filters(**values), order=order, page=page)


def said(found: Page[Hit]) -> list[str]:
    return [hit.text.strip() for hit in found.rows]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> OutputStore:
    return run_of(tmp_path_factory.mktemp("run"), spoken("/c/a.wav", passage(0, "secret words")))


@pytest.fixture
def server(run: OutputStore) -> Iterator[ViewServer]:
    with serving(run) as started:
        yield started
