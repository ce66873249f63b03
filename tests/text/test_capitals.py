"""Transcripts that are all in capitals."""

import pytest

from corpus_asr.text.capitals import sentence_case


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("SO I SAID I'D GO", "So I said I'd go"),
        ("'TIS IN HIS HIT LIST", "'Tis in his hit list"),
        ("ÉTÉ", "Été"),
        ("I", "I"),
        ("Not so LOUD", "Not so LOUD"),
        ("", ""),
        ("12 %", "12 %"),
    ],
)
def test_only_texts_all_in_capitals_are_written_otherwise(text: str, written: str) -> None:
    assert sentence_case(text) == written
