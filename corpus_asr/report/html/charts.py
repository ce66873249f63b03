"""Charts of a run (speed over time, histograms) as coordinates for the templates.

A plot is 100 wide and 100 high, so that all but text scales; outer heights are in pixels.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from corpus_asr.report.html.formatting import coordinate
from corpus_asr.report.text import duration
from corpus_asr.storage.run_state.run_files import ProgressSample

TOP, HEIGHT = 8, 160  # pixels above the plot, and its height
_MOST_TICKS = 5
_TIMES = "\N{MULTIPLICATION SIGN}"
# A shorter time without commits at the end is normal.
_QUIET_S = 60.0
# Minimum steps and seconds: a shorter line shows only the start and end of a run.
LEAST_STEPS, LEAST_S = 4, 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A time span and its speed."""

    start_s: float
    stop_s: float
    value: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """Coordinates; x from 0 to 100 across the plot, y from 0, its top, to 100."""

    label: str
    """Text for screen readers."""
    levels: Sequence[tuple[float, str]]
    """Grid lines: y in pixels, and text."""
    marks: Sequence[tuple[float, str]]
    """Labels of the x axis: x and text."""
    targets: Sequence[tuple[float, float, str]]
    """Areas with a tooltip: x, width and text."""
    line: str = ""
    """SVG path data."""
    bars: Sequence[tuple[float, float, float, float]] = ()
    """x, y, width and height."""


def histogram(
    counts: Sequence[int], *, label: str, edges: Sequence[str], titles: Sequence[str]
) -> Chart:
    """Return a bar chart of counts of bins of equal width; `edges` are the labels between bins."""
    ticks = number_ticks(max([*counts, 1]), whole=True)
    width = 100 / len(counts)
    heights = [100 * count / ticks[-1] for count in counts]
    return Chart(
        label=label,
        levels=_levels(ticks, "{:,.0f}".format),
        marks=[(number * width, words) for number, words in enumerate(edges) if words],
        targets=[(number * width, width, title) for number, title in enumerate(titles)],
        # A gap of 6 % of the bin on either side of a bar.
        bars=[
            ((number + 0.06) * width, 100 - height, 0.88 * width, height)
            for number, height in enumerate(heights)
        ],
    )


def number_ticks(highest: float, *, whole: bool = False) -> list[float]:
    """Return round numbers from 0 to the first at or above the highest value."""
    if not highest > 0 or not math.isfinite(highest):
        return [0.0, 1.0]
    # 1e-9: in binary, 0.3 / 3 is not quite 0.1.
    rough = highest / (_MOST_TICKS - 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * (1 - 1e-9))
    step = max(1.0, step) if whole else step
    return [step * number for number in range(math.ceil(highest / step - 1e-9) + 1)]


def _levels(ticks: Sequence[float], say: Callable[[float], str]) -> list[tuple[float, str]]:
    return [(TOP + HEIGHT * (1 - value / ticks[-1]), say(value)) for value in ticks]


def speed_chart(moments: Sequence[ProgressSample]) -> Chart | None:
    """Return the chart of speed between commits; None if the run is too short."""
    steps = speed_steps(moments)
    return timeline(steps) if len(steps) >= LEAST_STEPS and steps[-1].stop_s >= LEAST_S else None


def timeline(steps: Sequence[Step]) -> Chart:
    """Return a chart of speeds over time, with y starting at 0."""
    end_s = steps[-1].stop_s
    ticks = number_ticks(max(step.value for step in steps))
    points = [
        f"{coordinate(100 * at_s / end_s)} {coordinate(100 - 100 * step.value / ticks[-1])}"
        for step in steps
        for at_s in (step.start_s, step.stop_s)
    ]
    return Chart(
        label="Speed over time",
        levels=_levels(ticks, f"{{:,g}}{_TIMES}".format),
        marks=[(100 * third / 3, duration(end_s * third / 3)) for third in range(4)],
        targets=[
            (
                100 * step.start_s / end_s,
                100 * (step.stop_s - step.start_s) / end_s,
                f"{duration(step.start_s)} to {duration(step.stop_s)}: {step.value:,.1f}{_TIMES}",
            )
            for step in steps
        ],
        line=f"M{'L'.join(points)}",
    )


def speed_steps(moments: Sequence[ProgressSample]) -> list[Step]:
    """Return the speed between consecutive commits."""
    return [
        Step(
            start_s=start.elapsed_s,
            stop_s=end.elapsed_s,
            value=(end.audio_s - start.audio_s) / (end.elapsed_s - start.elapsed_s),
        )
        for start, end in itertools.pairwise(_with_commits(moments))
    ]


def _with_commits(moments: Sequence[ProgressSample]) -> list[ProgressSample]:
    kept = list(moments[:1])
    # A commit adds minutes of audio at once: between single moments, speed would jump.
    for moment in moments[1:]:
        if moment.audio_s > kept[-1].audio_s and moment.elapsed_s > kept[-1].elapsed_s:
            kept.append(moment)
    if kept and moments[-1].elapsed_s - kept[-1].elapsed_s >= _QUIET_S:
        kept.append(moments[-1])
    times_s = [moment.elapsed_s for moment in kept[-3:]]
    if len(times_s) == 3 and 2 * (times_s[2] - times_s[1]) < times_s[1] - times_s[0]:
        del kept[-2]  # the final flush belongs to the time before it
    return kept
