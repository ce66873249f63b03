"""What happens where there is no room for an output object."""

import errno
import io
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from corpus_asr.errors import FetchError
from corpus_asr.storage.stores import filesystem, local

LIMIT_BYTES = 4096


def full_after(num_bytes: int) -> Callable[..., Any]:
    """Return an `open` whose files take no more bytes than that."""

    class Full(io.FileIO):
        def write(self, data: Any) -> int:
            super().write(bytes(data)[:num_bytes])
            raise OSError(errno.ENOSPC, "No space left on device")

    return lambda path, mode: Full(path, mode.replace("b", ""))


@pytest.mark.parametrize("num_bytes", [0, 1, 999])
def test_a_full_disk_leaves_what_was_there_and_says_where_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_bytes: int
):
    target = tmp_path / "object"
    filesystem.write_atomic(str(target), b"before")
    monkeypatch.setattr(local, "open", full_after(num_bytes), raising=False)
    with pytest.raises(FetchError) as caught:
        filesystem.write_atomic(str(target), b"x" * 1000)
    assert caught.value.kind == "no_space"
    for words in (str(target), f"bytes free in {tmp_path}", "room for 1,000", "free some"):
        assert words in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["object"]
    assert target.read_bytes() == b"before"


def test_a_limit_of_the_process_is_told_as_well(tmp_path: Path):
    code = (
        "import sys; from corpus_asr.storage.stores import filesystem; "
        "filesystem.write_atomic(sys.argv[1], bytes(10_000))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "object")],
        capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT_BYTES, LIMIT_BYTES)),
    )  # fmt: skip
    assert done.returncode == 1
    assert "no space left (File too large)" in done.stderr
    assert list(tmp_path.iterdir()) == []
