"""Small runs to look at: recordings with sound, words and whatever names and texts are given."""

import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from corpus_asr.config.run import RunConfig
from corpus_asr.storage.run_state.finish import finish
from corpus_asr.storage.run_state.start import CONFIG_NAME, Run
from corpus_asr.storage.run_state.tables import OutputStore
from corpus_asr.storage.stores.filesystem import describe
from corpus_asr.storage.stores.uri import recording_id
from tests.support.commits import commit, files, part, results

PASSAGE_S = 2.0


def passage(
    index: int, text: str, *, probabilities: Sequence[float] | None = None, **values: Any
) -> dict[str, Any]:
    """Return a segment of 2 s; with probabilities also its words, evenly spread."""
    start_s = PASSAGE_S * index
    words: Any = None
    if probabilities is not None:
        step_s = PASSAGE_S / len(probabilities)
        words = [
            {"word": f" {word}", "start_s": start_s + at * step_s,
             "end_s": start_s + (at + 1) * step_s, "probability": probability}
            for at, (word, probability) in enumerate(
                zip(text.split(), probabilities, strict=True))
        ]  # fmt: skip
    usual = {"segment": index, "text": f" {text}", "start_s": start_s, "end_s": start_s + PASSAGE_S,
             "language": "en", "confidence": 0.9, "tokens": [1], "words": words}  # fmt: skip
    return usual | values


def spoken(uri: str, *passages: dict[str, Any], **values: Any) -> dict[str, Any]:
    """Return the RESULTS row of a whole recording."""
    duration_s = PASSAGE_S * len(passages)
    usual: dict[str, Any] = {"segments": list(passages), "language": "en", "codec": "pcm_s16le",
                             "channels": 1, "sample_rate_hz": 16_000, "part_start_s": 0.0,
                             "part_end_s": duration_s, "duration_s": duration_s}  # fmt: skip
    return part("", 0, uri=uri, texts=None, **(usual | values))


def of_file(path: Path) -> dict[str, Any]:
    """Return what a listing says of a file's version."""
    info = describe(str(path))
    return {"etag": info.etag, "size_bytes": info.size_bytes}


def run_of(folder: Path, *rows: dict[str, Any], **config: Any) -> OutputStore:
    """Commit rows as a run's output."""
    store = OutputStore(str(folder))
    store.write_json(CONFIG_NAME, {"source": {"uri": ["/"]}, **config})
    if rows:
        commit(store, results(*rows))
    return store


def finished(store: OutputStore, *names: str) -> None:
    """End a run as one that listed these recordings."""
    config = RunConfig.model_validate(
        {"source": {"uri": "/"}, "model": {"checkpoint": "m"}, "output": {"uri": store.uri}}
    )
    started = "2026-01-01T00:00:00+00:00"
    run = Run(run_id="run", fingerprint="f-r", started_at=started, continues=False)
    listing = [files(*names)]
    finish(store, run, config, model_revision="r", listing=listing, num_listed=len(names))


@dataclass(frozen=True)
class Response:
    """What a server said."""

    status: int
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)


def fetch(url: str, *, method: str = "GET", **headers: str) -> Response:
    """Make a request; a refusal is a response like any other."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    request = urllib.request.Request(url, method=method, headers=named)
    try:
        with urllib.request.urlopen(request, timeout=60) as found:
            return Response(found.status, found.read(), dict(found.headers))
    except urllib.error.HTTPError as error:
        with error:
            return Response(error.code, error.read(), dict(error.headers))


def asked(url: str, what: str, /, **parameters: Any) -> str:
    """Return the address of a request with parameters."""
    return f"{url}{what}?{urllib.parse.urlencode(parameters)}"


def id_of(uri: str) -> str:
    """Return what a recording is named by."""
    return recording_id(uri)
