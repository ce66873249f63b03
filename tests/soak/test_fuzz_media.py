"""A thousand broken media files of every container: no crash, no hang, one outcome each."""

from pathlib import Path

import pytest

from tests.support.fuzzing import fuzz

pytestmark = pytest.mark.slow

# What broken bytes may end as; `internal`, a bug of this program, is not among them.
EXPECTED = {
    "ok", "no_speech", "not_audio", "refused_format", "empty_file", "empty_audio", "bad_stream",
    "no_audio_stream", "unsupported_codec", "damaged", "decoder_crashed", "decoder_timeout",
    "too_long",
}  # fmt: skip


def test_a_thousand_mutated_files_end_exactly_once(tmp_path: Path):
    counts = fuzz(tmp_path, 1000, seed=5, item_timeout_s=120)
    print(counts)  # noqa: T201 - what a soak test is read for
    assert set(counts) <= EXPECTED, counts
    assert counts["decoder_timeout"] <= 5, counts
