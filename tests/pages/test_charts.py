"""Charts are well-formed, to scale, and readable by round numbers."""

import re
import xml.etree.ElementTree as ET

import pytest

from corpus_asr.pages.charts import (
    Step,
    bar,
    histogram,
    number_ticks,
    steps,
    time_ticks,
    time_words,
)

HOSTILE = '"><script>alert(1)</script>&'


def step(start_s: float, stop_s: float, *values: float | None) -> Step:
    return Step(start_s=start_s, stop_s=stop_s, values=values, title=HOSTILE)


@pytest.mark.parametrize(
    ("highest", "expected"),
    [
        (0.0, [0, 1]),
        (1.0, [0, 0.5, 1]),
        (3.0, [0, 1, 2, 3]),
        (99.0, [0, 50, 100]),
        (0.07, [0, 0.02, 0.04, 0.06, 0.08]),
        (1234.0, [0, 500, 1000, 1500]),
        (float("nan"), [0, 1]),
    ],
)
def test_numbers_on_an_axis_are_round_and_reach_the_highest(highest, expected):
    assert number_ticks(highest) == pytest.approx(expected)


def test_counts_have_whole_ticks():
    assert number_ticks(1, whole=True) == [0, 1]
    assert number_ticks(2, whole=True) == [0, 1, 2]


@pytest.mark.parametrize("end_s", [0.4, 3, 59, 61, 800, 7201, 90_000, 1e6, 4e7])
def test_times_on_an_axis_are_few_round_and_told_apart(end_s):
    ticks = time_ticks(end_s)
    assert ticks[0] == 0
    assert len(ticks) <= 6
    assert ticks[-1] <= end_s
    words = [time_words(tick, end_s) for tick in ticks]
    assert len(set(words)) == len(words)
    assert not [word for word in words if "e" in word]


def test_steps_are_to_scale_and_lifted_where_nothing_is_known():
    found = [step(0, 10, 50.0, None), step(10, 20, 100.0, 25.0), step(20, 40, None, 75.0)]
    drawn = ET.fromstring(steps(found, label=HOSTILE, say=str, area=True))
    lines = {each.get("class"): each.get("d") for each in drawn.iter("path")}
    assert lines["line line-1"] == "M0 50L25 50L25 0L50 0"
    assert lines["line line-2"] == "M25 75L50 75L50 25L100 25"
    assert [each.text for each in drawn.iter("title")] == [HOSTILE] * 3
    [chart] = [each for each in drawn.iter("svg") if each.get("role") == "img"]
    assert chart.get("aria-label") == HOSTILE


def test_a_scale_may_be_fixed():
    drawn = ET.fromstring(steps([step(0, 1, 0.25)], label="", say="{:.0%}".format, top=1.0))
    labels = [each.text for each in drawn.iter("text")]
    assert "100%" in labels
    assert [each.get("d") for each in drawn.iter("path")] == ["M0 75L100 75"]


def test_bars_are_to_scale():
    drawn = ET.fromstring(
        histogram([0, 2, 4], label="", edges=["0", "", "", "1"], titles=["a", "b", "c"])
    )
    bars = [each for each in drawn.iter("rect") if each.get("class") == "bar"]
    assert [float(each.get("height", "")) for each in bars] == [0, 50, 100]
    assert [each.text for each in drawn.iter("title")] == ["a", "b", "c"]


@pytest.mark.parametrize(("share", "width"), [(0.5, "50"), (-1, "0"), (7, "100"), (1 / 3, "33.33")])
def test_a_bar_stays_in_its_cell(share, width):
    assert re.findall(r'class="bar" width="([\d.]*)%"', bar(share)) == [width]
