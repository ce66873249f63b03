"""The recordings that a page lists are those of its lists, with what the tables say."""

from pathlib import Path
from typing import Any

import pytest

from corpus_asr.report import recordings
from corpus_asr.report.recordings import STARTED, RecordingRow
from corpus_asr.report.run import counted_run
from corpus_asr.report.samples import Sampler
from corpus_asr.storage.run_state.run_files import CONFIG_NAME
from corpus_asr.storage.run_state.tables import OutputStore
from tests.support.tables import commit, part, results


def row(
    name: str, index: int = 0, *, confidences: tuple[float, ...] = (0.9,), **values: Any
) -> Any:
    usual = part(name, index, texts=["said"] * len(confidences) or None, uri=f"/audio/{name}")
    for at, confidence in enumerate(confidences):
        usual["segments"][at] |= {"confidence": confidence, "start_s": 1.0 * at, "end_s": at + 1.0}
    spent = {"duration_s": 60.0, "decode_s": 0.1, "transcribe_s": 1.0, "language": "en"}
    return usual | spent | values


def listed(folder: Path, *commits: list[dict[str, Any]]) -> dict[str, RecordingRow]:
    store = OutputStore(str(folder))
    store.write_json(CONFIG_NAME, {})
    for rows in commits:
        commit(store, results(*rows))
    with counted_run(store, sampler := Sampler(store)) as (_, tables):
        details = sampler.details(tables)
    return {found.uri.rpartition("/")[2]: found for found in details.recordings}


def test_rows_say_what_the_tables_say(tmp_path: Path) -> None:
    long = {"start_s": 0.0, "end_s": 3.0}
    first = row("a", confidences=(0.2, 0.6), last=False, decode_errors=1)
    first["last_part"] = False
    first["segments"][1] |= long
    second = row("a", 1, confidences=(), status="no_speech", language=None, decode_errors=4)
    third = row("c")
    third["last_part"] = False
    found = listed(
        tmp_path,
        [first, row("b", confidences=(), status="failed", duration_s=0.0)],
        [second, third],
    )
    assert list(found) == ["a", "c", "b"]  # by confidence; then without any
    a = found["a"]
    assert (a.status, a.language, a.segments, a.decode_errors) == ("ok", "en", 2, 4)
    assert (a.duration_s, a.extract_s, a.transcribe_s) == pytest.approx((120.0, 0.2, 2.0))
    assert a.confidence == pytest.approx((0.2 * 1 + 0.6 * 3) / 4, abs=1e-3)  # over time
    assert (a.etag, a.size_bytes) == (first["etag"], first["size_bytes"])
    assert (found["b"].status, found["b"].confidence) == ("failed", None)
    assert found["c"].status == STARTED


def test_of_many_recordings_the_lists_are_the_extremes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recordings, "LISTED", 2)
    rows = [
        row(f"r{n}", confidences=((n + 1) / 12,), duration_s=10.0 * ((3 * n) % 10 + 1),
            transcribe_s=float((7 * n) % 10),
            speech_without_text_s={2: 3.0, 5: 9.0, 8: 2.0}.get(n))
        for n in range(11)
    ]  # fmt: skip
    found = listed(tmp_path, rows[:4], rows[4:])
    assert {name: each.lists for name, each in found.items()} == {
        "r0": ("confidence",),
        "r1": ("confidence",),
        "r3": ("longest",),
        "r6": ("longest",),
        "r4": ("slowest",),
        "r7": ("slowest",),
        "r5": ("gaps",),
        "r2": ("gaps",),
    }
    assert found["r5"].speech_without_text_s == 9.0
    # Few are listed as a whole.
    monkeypatch.setattr(recordings, "LISTED", 3)
    assert len(listed(tmp_path / "other", rows)) == 11
