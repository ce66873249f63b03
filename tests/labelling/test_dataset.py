"""Lines of data folders in order: as `sorted` puts them, with a bounded part of them in memory."""

import random
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corpus_asr.labelling import dataset
from corpus_asr.labelling.dataset import sorted_lines
from corpus_asr.labelling.writers import KaldiWriter

LINE = st.binary(max_size=6).map(lambda content: content.replace(b"\n", b"") + b"\n")


@given(
    lines=st.lists(LINE, max_size=60),
    piece_bytes=st.integers(1, 50),
    most_pieces=st.integers(2, 4),
)
def test_lines_are_as_sorted_puts_them(
    lines: list[bytes],
    piece_bytes: int,
    most_pieces: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("sorted")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dataset, "PIECE_BYTES", piece_bytes)
        patch.setattr(dataset, "MOST_PIECES", most_pieces)
        assert [*sorted_lines(lines, folder)] == sorted(lines)
        assert len([*folder.iterdir()]) < most_pieces


def test_memory_does_not_grow_with_lines_and_speakers_have_any_number_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dataset, "PIECE_BYTES", 20_000)

    def lines() -> Iterator[bytes]:
        draw = random.Random(7)
        for _ in range(20_000):  # one speaker, as of an audio book
            yield b"reader reader-%032x\n" % draw.getrandbits(128)

    spk2utt = KaldiWriter.arranged["spk2utt"]
    tracemalloc.start()
    try:
        num_bytes = sum(map(len, spk2utt(sorted_lines(lines(), tmp_path))))
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert num_bytes == len(b"reader\n") + 20_000 * len(b" reader-" + b"0" * 32)
    # Of lines alone it would be 2 MB; buffers of 41 files are most of this.
    assert peak_bytes < 1_000_000
