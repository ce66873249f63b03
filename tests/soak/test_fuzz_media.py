"""Broken media files of every container: no crash, no hang, bounded memory, one outcome each."""

from pathlib import Path

import pytest

from tests.support.fuzzing import MAX_DECODER_BYTES, Fuzzed, fuzz, mutated

pytestmark = pytest.mark.slow

# What broken bytes may end as; `internal`, a bug of this program, is not among them.
EXPECTED = {
    "ok", "no_speech", "not_audio", "refused_format", "empty_file", "empty_audio", "bad_stream",
    "no_audio_stream", "unsupported_codec", "damaged", "decoder_crashed", "decoder_timeout",
    "too_long",
}  # fmt: skip


def check(fuzzed: Fuzzed) -> None:
    print(fuzzed.counts, f"{fuzzed.peak_bytes / 1e6:.0f} MB")  # noqa: T201 - what it is read for
    assert set(fuzzed.counts) <= EXPECTED, fuzzed.counts
    assert fuzzed.peak_bytes < MAX_DECODER_BYTES


def test_a_thousand_mutated_files_end_exactly_once(tmp_path: Path):
    fuzzed = fuzz(tmp_path, mutated(1000, seed=5), item_timeout_s=120)
    check(fuzzed)
    assert fuzzed.counts["decoder_timeout"] <= 5, fuzzed.counts
