"""Charts as SVG inside a page: steps over time, histograms, bars in tables.

In: numbers. Out: `Html`. Widths are shares of the place a chart is given, so that letters keep
their size on any screen; colours come from the style sheet. Each value is told by a <title>, and
what a chart says is said in words or in a table beside it. Knows nothing of what numbers mean.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from corpus_asr.pages.html import Html, escaped, fill, joined

_TOP, _HEIGHT, _BELOW = 8, 160, 22  # pixels above, of and below the plot
_MOST_TICKS = 5
_TIME_STEPS_S = (
    1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10_800, 21_600, 43_200, 86_400,
)  # fmt: skip

_CHART = """<div class="plot"><svg class="chart" width="100%" height="$height" role="img"
 aria-label="$label">
$lines<svg x="0" y="$top" width="100%" height="$plot" viewBox="0 0 100 100"
 preserveAspectRatio="none">$shapes</svg>
$labels$ticks$targets</svg></div>"""
_LINE = '<line class="grid" x1="0" x2="100%" y1="$y" y2="$y"/>'
_LABEL = '<text class="tick" x="-6" y="$y" text-anchor="end">$text</text>'
_TICK = '<text class="tick" x="$x%" y="$y" text-anchor="$anchor">$text</text>'
_TARGET = """<rect class="target" x="$x%" y="$y" width="$width%" height="$height">\
<title>$title</title></rect>"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A stretch of time and what held in it."""

    start_s: float
    stop_s: float
    values: tuple[float | None, ...]
    """One for each line of the chart; None where nothing is known."""
    title: str


def steps(
    found: Sequence[Step],
    *,
    label: str,
    say: Callable[[float], str],
    top: float | None = None,
    area: bool = False,
) -> Html:
    """Draw lines that are level for a stretch, over time from 0.

    Args:
        found: the stretches, one after the other; at least one.
        label: what the chart shows, for those who do not see it.
        say: how a value is written beside a line of the grid.
        top: the highest value of the scale; by default it follows from the values.
        area: whether the first line's area is filled.
    """
    end_s = found[-1].stop_s or 1.0
    ticks = number_ticks(
        top or max((value for step in found for value in step.values if value), default=1.0)
    )
    highest = top or ticks[-1]
    lines = []
    for number in range(len(found[0].values)):
        path = _path(found, number, end_s, highest)
        if area and number == 0:
            lines.append(fill('<path class="area" d="$path"/>', path=_closed(found, end_s, path)))
        lines.append(fill('<path class="line line-$n" d="$path"/>', n=number + 1, path=path))
    spots = [
        (100 * step.start_s / end_s, 100 * (step.stop_s - step.start_s) / end_s, step.title)
        for step in found
    ]
    times = [(100 * at / end_s, time_words(at, end_s)) for at in time_ticks(end_s)]
    return _chart(label, _grid(ticks, highest, say), joined(lines), _marks(times), spots)


def histogram(
    counts: Sequence[int], *, label: str, edges: Sequence[str], titles: Sequence[str]
) -> Html:
    """Draw a bar for each count.

    Args:
        counts: one per bin, all of one width.
        label: what the chart shows, for those who do not see it.
        edges: the words at the bins' borders, one more than counts; "" for none.
        titles: what is told of each bin.
    """
    ticks = number_ticks(max([*counts, 1]), whole=True)
    width = 100 / len(counts)
    bars = joined(
        fill(
            '<rect class="bar" x="$x" y="$y" width="$width" height="$height"/>',
            x=_number(number * width + 0.06 * width),
            y=_number(100 - 100 * count / ticks[-1]),
            width=_number(0.88 * width),
            height=_number(100 * count / ticks[-1]),
        )
        for number, count in enumerate(counts)
    )
    spots = [(number * width, width, title) for number, title in enumerate(titles)]
    borders = [(number * width, words) for number, words in enumerate(edges) if words]
    grid = _grid(ticks, ticks[-1], lambda value: f"{value:,.0f}")
    return _chart(label, grid, bars, _marks(borders), spots)


def bar(share: float, *, kind: str = "bar") -> Html:
    """Draw a horizontal bar for a cell of a table, whose number stands beside it."""
    return fill(
        '<svg class="inline" width="100%" height="10" aria-hidden="true">'
        '<rect class="track" width="100%" height="10" rx="2"/>'
        '<rect class="$kind" width="$share%" height="10" rx="2"/></svg>',
        kind=kind,
        share=_number(100 * min(1.0, max(0.0, share))),
    )


def number_ticks(highest: float, *, whole: bool = False) -> list[float]:
    """Return round numbers from 0 to the first that is not below the highest value."""
    if not highest > 0 or not math.isfinite(highest):
        return [0.0, 1.0]
    rough = highest / (_MOST_TICKS - 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * (1 - 1e-9))
    step = max(1.0, step) if whole else step
    return [step * number for number in range(math.ceil(highest / step - 1e-9) + 1)]


def time_ticks(end_s: float) -> list[float]:
    """Return round times from 0 to at most the end."""
    step = next((each for each in _TIME_STEPS_S if end_s / each <= _MOST_TICKS), None)
    if step is None:
        day = _TIME_STEPS_S[-1]
        step = day * math.ceil(end_s / day / _MOST_TICKS)
    return [step * float(number) for number in range(int(end_s / step) + 1)]


def time_words(at_s: float, end_s: float) -> str:
    """Write a time on an axis that ends at `end_s`, which decides its unit."""
    if end_s <= 120:
        return f"{at_s:g} s"
    if end_s <= 2 * 3600:
        return f"{at_s / 60:g} min"
    return f"{at_s / 3600:g} h" if end_s <= 3 * 86_400 else f"{at_s / 86_400:.3g} d"


def _path(found: Sequence[Step], number: int, end_s: float, highest: float) -> str:
    """Return the line as moves in a square of 100 by 100; it is lifted where nothing is known."""
    moves, drawing = [], False
    for step in found:
        value = step.values[number]
        if value is None:
            drawing = False
            continue
        y = _number(100 - 100 * min(1.0, value / highest))
        start, stop = (_number(100 * at / end_s) for at in (step.start_s, step.stop_s))
        moves.append(f"{'L' if drawing else 'M'}{start} {y}L{stop} {y}")
        drawing = True
    return "".join(moves)


def _closed(found: Sequence[Step], end_s: float, path: str) -> str:
    start, stop = (_number(100 * at / end_s) for at in (found[0].start_s, found[-1].stop_s))
    return f"{path}L{stop} 100L{start} 100Z" if path else ""


def _grid(ticks: Sequence[float], highest: float, say: Callable[[float], str]) -> tuple[Html, Html]:
    """Return the lines of a grid, and what stands on them."""
    heights = [_TOP + _HEIGHT * (1 - value / highest) for value in ticks]
    lines = joined(fill(_LINE, y=_number(y)) for y in heights)
    labels = joined(
        fill(_LABEL, y=_number(y + 4), text=say(value))
        for y, value in zip(heights, ticks, strict=True)
    )
    return lines, labels


def _marks(found: Sequence[tuple[float, str]]) -> Html:
    y = _TOP + _HEIGHT + 15
    marks = []
    for x, text in found:
        anchor = "start" if x < 2 else "end" if x > 96 else "middle"
        marks.append(fill(_TICK, x=_number(x), y=y, anchor=anchor, text=text))
    return joined(marks)


def _chart(
    label: str,
    grid: tuple[Html, Html],
    shapes: Html,
    ticks: Html,
    spots: Sequence[tuple[float, float, str]],
) -> Html:
    targets = joined(
        fill(_TARGET, x=_number(x), y=_TOP, width=_number(width), height=_HEIGHT, title=title)
        for x, width, title in spots
    )
    return fill(
        _CHART,
        height=_TOP + _HEIGHT + _BELOW,
        top=_TOP,
        plot=_HEIGHT,
        label=escaped(label),
        lines=grid[0],
        labels=grid[1],
        shapes=shapes,
        ticks=ticks,
        targets=targets,
    )


def _number(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")
