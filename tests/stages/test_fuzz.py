"""Some dozens of broken media files through the pipeline; tests/soak has the thousand."""

from pathlib import Path

from tests.support.fuzzing import fuzz


def test_mutated_files_end_exactly_once(tmp_path: Path):
    counts = fuzz(tmp_path, 48, seed=1, item_timeout_s=300)
    assert sum(counts.values()) == 48
    assert "internal" not in counts
    assert counts["ok"] + counts["no_speech"] > 10  # what can be read still is
