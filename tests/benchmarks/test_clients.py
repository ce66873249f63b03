"""Calls of many clients: how they are counted, and the table of medians."""

import threading
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks import clients
from benchmarks.clients import ENGINES, ROWS, clips_of, measured, tables


def test_clients_share_the_calls() -> None:
    seen: list[str] = []
    four = threading.Barrier(4)

    def call(clip: str) -> None:
        seen.append(clip)
        four.wait(30)  # calls of four clients are under way together
        time.sleep(0.02)

    clips = [str(number) for number in range(8)]
    run = measured(call, clips, 4)
    assert sorted(seen) == clips
    assert 0 < run["calls_per_s"] <= 8 / 0.04
    assert run["slowest_s"] >= run["median_s"] >= 0.02
    assert run["cpu_s_per_call"] >= 0


def test_the_table_has_medians_over_rounds() -> None:
    runs: list[dict[str, Any]] = [
        {
            "table": "greedy", "row": row, "clients": count, "calls_per_s": speed * count,
            "cpu_s_per_call": 0.5, "median_s": 1.0, "slowest_s": speed,
        }
        for row, speeds in (("one", (1.0, 2.0, 9.0)), ("two", (4.0,)))
        for speed in speeds
        for count in clients.CLIENTS
    ]  # fmt: skip
    title, _, head, _, one, two, _ = tables(runs).split("\n")
    assert title == "greedy:"
    assert head.count("|") == one.count("|") == 8
    assert one == "| one | 2.00 | 8.00 | 32.00 | 0.50 / 0.50 / 0.50 | 1.00 | 2.00 |"
    assert two.startswith("| two | 4.00 |")


def test_rows_name_engines_once_each(tmp_path: Path) -> None:
    assert {engine for _, _, engine, _ in ROWS} == set(ENGINES)
    assert len({row[:2] for row in ROWS}) == len(ROWS)
    (tmp_path / "notes.txt").touch()
    with pytest.raises(SystemExit, match="has no recordings"):
        clips_of(tmp_path)
    for name in ("b.wav", "a.mp3"):
        (tmp_path / name).touch()
    assert [Path(clip).name for clip in clips_of(tmp_path)] == ["a.mp3", "b.wav"]
