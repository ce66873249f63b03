"""Charts are well-formed, to scale, readable by round numbers, and say what a history says."""

import math
import xml.etree.ElementTree as ET
from dataclasses import replace

import pytest

from corpus_asr.report.html.charts import (
    Chart,
    Step,
    number_ticks,
    speed_steps,
    timeline,
)
from corpus_asr.report.html.page import environment
from corpus_asr.storage.run_state.run_files import ProgressSample

HOSTILE = '"><script>alert(1)</script>&'


def drawn(chart: Chart) -> ET.Element:
    macros = environment().get_template("macros.html.j2").module
    return ET.fromstring(macros.plot(chart))  # type: ignore[attr-defined]


def test_numbers_on_an_axis_are_round_and_reach_the_highest() -> None:
    for highest, expected in (
        (0.0, [0, 1]), (1.0, [0, 0.5, 1]), (3.0, [0, 1, 2, 3]), (99.0, [0, 50, 100]),
        (0.07, [0, 0.02, 0.04, 0.06, 0.08]), (1234.0, [0, 500, 1000, 1500]), (math.nan, [0, 1]),
    ):  # fmt: skip
        assert number_ticks(highest) == pytest.approx(expected), highest
    assert number_ticks(1, whole=True) == [0, 1]
    assert number_ticks(2, whole=True) == [0, 1, 2]


def test_steps_are_to_scale() -> None:
    spans = [(0, 10, 50.0), (10, 20, 100.0), (20, 40, 0.0)]
    steps = [Step(start_s=start, stop_s=stop, value=value) for start, stop, value in spans]
    svg = drawn(replace(timeline(steps), label=HOSTILE, targets=[(0.0, 1.0, HOSTILE)]))
    assert [path.get("d") for path in svg.iter("path")] == ["M0 50L25 50L25 0L50 0L50 100L100 100"]
    assert [title.text for title in svg.iter("title")] == [HOSTILE]
    [chart] = [each for each in svg.iter("svg") if each.get("role") == "img"]
    assert chart.get("aria-label") == HOSTILE


def moment(elapsed_s: float, audio_s: float) -> ProgressSample:
    busy = dict.fromkeys(
        ("audio_done_s", "extract_s", "extract_alive_s", "engine_s", "transcribe_alive_s"), 0.0
    )
    return ProgressSample(elapsed_s=elapsed_s, audio_s=audio_s, files=0, failed=0, **busy)


def speeds(*moments: tuple[float, float]) -> list[tuple[float, float, float]]:
    found = speed_steps([moment(*each) for each in moments])
    return [(step.start_s, step.stop_s, step.value) for step in found]


def test_speed_is_that_between_commits() -> None:
    # What leads up to a commit is one step.
    found = speeds((0, 0), (15, 0), (30, 300), (45, 300), (60, 450))
    assert found == [(0, 30, 10.0), (30, 60, 5.0)]
    # An end without commits shows if it is long; what the end flushes belongs to what is before it.
    assert speeds((0, 0), (30, 300), (60, 300))[-1] == (0, 30, 10.0)
    assert speeds((0, 0), (30, 300), (90, 300))[-1] == (30, 90, 0.0)
    assert speeds((0, 0), (30, 300), (60, 600), (62, 920)) == [(0, 30, 10.0), (30, 62, 19.375)]
    # Too little is no step.
    for moments in ((), ((0, 0),), ((0, 0), (0, 5))):
        assert speeds(*moments) == []
