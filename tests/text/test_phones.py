"""Sounds with their times, as manifests hold them."""

import pytest

from corpus_asr.text.phones import PHONES, UNKNOWN, Phone, read_phones, write_phones


def test_what_is_written_is_read() -> None:
    written = write_phones([("hh", 0.255), ("?", 0.304), ("l", 0.304)])
    assert written == "hh:0.255 ?:0.304 l:0.304"
    assert read_phones(written) == [
        Phone(PHONES.index("hh"), 0.255),
        Phone(UNKNOWN, 0.304),
        Phone(PHONES.index("l"), 0.304),
    ]
    assert read_phones("") == []


@pytest.mark.parametrize("written", ["hh", "hh:", "hh:soon", "hh:0.3 l:0.2", "hh:nan", "hh:-1"])
def test_sounds_without_a_time_and_times_that_run_backwards_are_refused(written: str) -> None:
    with pytest.raises(ValueError, match=r"order|float"):
        read_phones(written)
