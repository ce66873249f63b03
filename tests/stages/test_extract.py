from collections.abc import Generator, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pytest

from corpus_asr.activity import FileSums
from corpus_asr.errors import CheckpointError
from corpus_asr.schemas import PACKS, PARTS
from corpus_asr.stages.extract import ExtractStage
from corpus_asr.stages.isolation import IsolatedGenerator
from corpus_asr.stages.parts import ExtractRequest
from tests.support.engines import scripted_job
from tests.support.fuzzing import MAX_DECODER_BYTES, fuzz, mutated
from tests.support.tables import packs_of

SCRIPTED = "tests.support.extractors:make"


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[ExtractStage]:
    stage = make_stage(tmp_path)
    yield stage
    stage.close()


def make_stage(folder: Path, extractor: str = SCRIPTED, **settings: Any) -> ExtractStage:
    return ExtractStage(scripted_job(folder, extract=settings), extractor=extractor)


def rows_of(stage: ExtractStage, packs: pa.Table) -> list[dict[str, Any]]:
    tables = list(stage(packs))
    assert all(table.num_rows == 1 for table in tables)
    assert all(table.schema.equals(PARTS, check_metadata=True) for table in tables)
    return [row for table in tables for row in table.to_pylist()]


def brief(rows: list[dict[str, Any]]) -> list[tuple[int, str, bool]]:
    return [(row["part"], row["status"], row["last_part"]) for row in rows]


def test_every_part_is_one_table_and_the_last_is_marked(stage: ExtractStage):
    rows = rows_of(stage, packs_of("x/parts=3/silent=1"))
    assert brief(rows) == [(0, "ok", False), (1, "no_speech", False), (2, "ok", True)]
    first, silent, last = rows
    assert [(row["part_start_s"], row["part_end_s"]) for row in rows] == [(0, 1), (1, 2), (2, 3)]
    assert first["speech_spans"] == [{"start_s": 0.25, "end_s": 0.75}]
    assert first["speech_s"] == 0.5
    assert first["features"] == [0.0] * (102 * 4)
    assert first["language_features"] is None
    assert silent["features"] is None
    assert silent["speech_spans"] == []
    assert last["features"][:2] == [2.0, 2.0]
    assert len(last["language_features"]) == 3000 * 4
    assert last["etag"] == "etag"


def test_parts_come_as_soon_as_the_next_is_known(stage: ExtractStage):
    with closing(
        cast("Generator[pa.Table, None, None]", stage(packs_of("x/parts=3/crash=2")))
    ) as tables:
        assert next(tables).column("part").to_pylist() == [0]
    # A caller that leaves early does not bring the next recording out of step.
    assert brief(rows_of(stage, packs_of("y/parts=1"))) == [(0, "ok", True)]


def test_done_parts_are_not_emitted_again_and_keep_their_places(stage: ExtractStage):
    for uri, done, expected in (
        ("x/parts=4", [0, 2], [(1, "ok", False), (3, "ok", True)]),
        ("x/parts=3/fail=1", [1, 2], [(0, "ok", False), (3, "failed", True)]),
    ):
        assert brief(rows_of(stage, packs_of(uri, done={uri: done}))) == expected, uri


def test_a_failure_is_one_row_after_the_good_parts(stage: ExtractStage):
    rows = rows_of(stage, packs_of("x/parts=3/fail=2/header=3", "y/parts=1"))
    ended = [(0, "ok", False), (1, "ok", False), (2, "failed", True), (0, "ok", True)]
    assert brief(rows) == ended
    names = ("error_stage", "error_kind", "retryable", "features")
    assert [rows[2][name] for name in names] == ["extract", "scripted", False, None]


def test_the_last_part_has_the_digest_and_the_next_recording_has_it_not(stage: ExtractStage):
    rows = rows_of(stage, packs_of("x/parts=2/digest=7", "y/parts=1"))
    assert [row["content_digest"] for row in rows] == [None, "7", None]


def test_a_recording_that_became_shorter_than_what_is_done_ends_all_the_same(stage: ExtractStage):
    uri = "x/parts=2"
    rows = rows_of(stage, packs_of(uri, "y/parts=1", done={uri: [0, 1, 2]}))
    assert brief(rows) == [(3, "failed", True), (0, "ok", True)]
    assert rows[0]["error_kind"] == "changed"
    assert rows[0]["retryable"] is True
    assert "found 2 parts, expected more" in rows[0]["error_message"]


def test_whatever_one_recording_does_the_next_is_extracted(stage: ExtractStage):
    for what, kind in (("crash", "decoder_crashed"), ("bug", "internal"), ("memory", "internal")):
        rows = rows_of(stage, packs_of(f"x/parts=2/{what}=0", "y/parts=1"))
        assert brief(rows) == [(0, "failed", True), (0, "ok", True)], what
        assert rows[0]["error_kind"] == kind


def test_a_number_that_no_sum_could_hold_is_the_failure_of_its_part(stage: ExtractStage):
    rows = rows_of(stage, packs_of("x/parts=2/endless=0"))
    assert brief(rows) == [(0, "failed", False), (1, "ok", True)]
    assert "found decode_s inf, expected a finite number" in rows[0]["error_message"]


def test_an_unusable_checkpoint_propagates(tmp_path: Path):
    stage = make_stage(tmp_path, extractor="tests.support.extractors:make_unusable")
    with closing(stage), pytest.raises(CheckpointError, match="scripted"):
        list(stage(packs_of("x/parts=1")))


def test_what_was_done_is_counted(stage: ExtractStage, caplog: pytest.LogCaptureFixture):
    assert stage.activity.parts_extracted == 0
    with caplog.at_level("INFO", logger="corpus_asr.stages.extract"):
        tables = stage(packs_of("x/parts=3/silent=1", "y/parts=1/fail=0"))
        next(tables)
        held = stage.activity
        for _ in tables:
            pass
    done = stage.activity
    assert held.parts_extracted == 1
    assert done.parts_extracted == 4
    assert 0 < done.extract_s <= done.extract_alive_s
    assert done.backpressure_s >= held.backpressure_s > 0  # counted while it lasts
    messages = [record.__dict__["fields"] for record in caplog.records]
    assert [(one["recording_id"], one["part"], one["status"]) for one in messages] == [
        ("x/parts=3/silent=1", 0, "ok"),
        ("x/parts=3/silent=1", 1, "no_speech"),
        ("x/parts=3/silent=1", 2, "ok"),
        ("y/parts=1/fail=0", 0, "failed"),
    ]
    assert {one["event"] for one in messages} == {"part_extracted"}


def test_seconds_are_known_from_the_header_and_in_the_end_as_decoded(stage: ExtractStage):
    def known() -> tuple[FileSums | None, float]:
        found = stage.activity
        assert set(found.durations) <= {"other:5"}  # of 1,000 bytes
        return found.durations.get("other:5"), found.decoded_s

    uris = "x/parts=3/header=9", "y/parts=2", "z/parts=3/fail=1/header=60"
    tables = stage(packs_of(*uris, done={uris[0]: [0]}))
    next(tables)  # one part is held back, one was done before
    assert known() == (FileSums.of(1000, 8.0), 2.0)
    next(tables)
    next(tables)  # of the second file nothing is known before its end
    assert known() == (FileSums.of(1000, 2.0), 4.0)
    rest = list(tables)
    assert len(rest) == 3
    sums = FileSums.of(1000, 2.0) + FileSums.of(1000, 2.0) + FileSums.of(1000, 1.0)
    assert known() == (sums, 5.0)
    rows_of(stage, packs_of("broken/parts=1/fail=0"))
    assert known() == (sums + FileSums.of(1000, 0.0), 5.0)


def test_a_file_listed_as_too_large_never_reaches_the_child(tmp_path: Path):
    # 500 bytes at most; listed are 1,000.
    stage = make_stage(tmp_path, "tests.support.isolated:crash_at_start", max_file_gb=5e-7)
    (row,) = rows_of(stage, packs_of("x/parts=1"))
    assert (row["status"], row["error_kind"], row["last_part"]) == ("failed", "too_large", True)
    assert "extract.max_file_gb" in row["error_message"]


def test_only_as_much_is_opened_ahead_as_fits_into_memory(
    stage: ExtractStage, monkeypatch: pytest.MonkeyPatch
):
    asked: list[ExtractRequest] = []

    def run(_: IsolatedGenerator, request: ExtractRequest) -> Iterator[Any]:
        asked.append(request)
        return iter(())

    monkeypatch.setattr(IsolatedGenerator, "run", run)
    names = [f"{number}/parts=1" for number in range(12)]
    packs = packs_of(*names).to_pylist()
    for number, file in enumerate(packs[0]["files"]):
        file["size_bytes"] = (1000, None, 5 << 20, 3 << 20)[number % 4]
    list(stage(pa.Table.from_pylist(packs, schema=PACKS)))
    assert [request.uri for request in asked] == names
    # After the first: 4 MiB (unknown), 4 (a block of 5), 3, nearly nothing, 4; one more is 4 again.
    assert asked[0].upcoming == tuple(names[1:6])
    assert asked[-1].upcoming == ()


@pytest.mark.long
def test_broken_files_end_exactly_once(tmp_path: Path):
    fuzzed = fuzz(tmp_path, mutated(48, seed=1), item_timeout_s=300)
    assert "internal" not in fuzzed.counts
    assert not {"decoder_crashed", "decoder_timeout"} & {*fuzzed.counts}, fuzzed.names
    assert fuzzed.counts["ok"] + fuzzed.counts["no_speech"] > 15  # what can be read still is
    assert fuzzed.peak_bytes < MAX_DECODER_BYTES
