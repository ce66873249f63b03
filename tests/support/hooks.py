"""Functions that hooks of tests call."""

import os
import re
import signal
from pathlib import Path
from typing import Any

import pyarrow as pa

NO_FUNCTION = 3


def keyed(segments: pa.Table, **columns: list[Any]) -> dict[str, list[Any]]:
    """Return columns with the keys of segments."""
    return segments.select(["recording_id", "part", "segment"]).to_pydict() | columns


def redact(segments: pa.Table, sign: str = "#") -> dict[str, list[Any]]:
    """Replace digits."""
    found = [re.subn(r"\d", sign, text) for text in segments["text"].to_pylist()]
    return keyed(
        segments, redacted=[text for text, _ in found], digits=[number for _, number in found]
    )


def speakers(segments: pa.Table) -> pa.Table:
    """Return who says each segment."""
    return segments.drop_columns(["text"])


def chapters(segments: pa.Table) -> list[dict[str, Any]]:
    """Return a row for each segment that begins a chapter."""
    return [row for row in segments.to_pylist() if "chapter" in row["text"]]


def noted(segments: pa.Table, folder: str, bad: str = "") -> dict[str, list[Any]]:
    """Note each call in a folder; fail where a text is bad."""
    ids = sorted({*segments["recording_id"].to_pylist()})
    with (Path(folder) / "calls").open("a") as file:
        file.write(" ".join(ids) + "\n")
    texts = segments["text"].to_pylist()
    if bad and any(bad in text for text in texts):
        raise ValueError(f"found {bad}")
    return keyed(segments, length=[len(text) for text in texts])


def deadly(segments: pa.Table, bad: str) -> dict[str, list[Any]]:
    """End the process where a text is bad."""
    if any(bad in text for text in segments["text"].to_pylist()):
        os.kill(os.getpid(), signal.SIGKILL)
    return keyed(segments, length=[len(text) for text in segments["text"].to_pylist()])


class Loaded:
    """Counts how often it is made."""

    made = 0

    def __init__(self, factor: int) -> None:
        type(self).made += 1
        self.factor = factor

    def __call__(self, segments: pa.Table) -> dict[str, list[Any]]:
        """Return vectors."""
        texts = segments["text"].to_pylist()
        return keyed(segments, vector=[[len(text) * self.factor, 1.0] for text in texts])


def killed(segments: pa.Table, folder: str, calls: int) -> dict[str, list[Any]]:
    """Note each call in a folder, and end the process in the first few."""
    place = Path(folder) / "killed"
    number = int(place.read_text()) if place.exists() else 0
    place.write_text(str(number + 1))
    if number < calls:
        os.kill(os.getpid(), signal.SIGKILL)
    return keyed(segments, length=[len(text) for text in segments["text"].to_pylist()])
