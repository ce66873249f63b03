import io
import threading

import pytest

from corpus_asr.errors import FetchError
from corpus_asr.stages.extraction import OpenedAhead


class Opener:
    """Tells what was asked for; opens nothing before it is let go."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.opened: list[io.BytesIO] = []
        self.go = threading.Event()

    def __call__(self, uri: str) -> io.BufferedIOBase:
        self.asked.append(uri)
        assert self.go.wait(60)
        if "bad" in uri:
            raise FetchError(f"reading {uri}: scripted")
        file = io.BytesIO(uri.encode())
        self.opened.append(file)
        return file


def test_files_are_opened_side_by_side_and_each_once():
    opener = Opener()
    ahead = OpenedAhead(opener, threads=3)
    ahead.expect(["a", "b", "bad"])
    opener.go.set()
    assert ahead.take("a").read() == b"a"
    ahead.expect(["b", "bad"])
    with pytest.raises(FetchError, match="bad: scripted"):
        ahead.take("bad")
    assert ahead.take("b").read() == b"b"
    assert ahead.take("z").read() == b"z"  # not expected: opened now
    assert sorted(opener.asked) == ["a", "b", "bad", "z"]


def test_what_is_not_wanted_any_more_is_closed_or_never_opened():
    opener = Opener()
    ahead = OpenedAhead(opener, threads=1)
    ahead.expect(["a", "b", "c"])
    while not opener.asked:
        pass
    ahead.expect(["c"])
    opener.go.set()
    assert ahead.take("c").read() == b"c"
    assert opener.asked == ["a", "c"]
    assert opener.opened[0].closed
