"""The table that is printed.

In: summaries. Out: text with aligned columns. Columns that say nothing are left out.
"""

from collections.abc import Sequence

from corpus_asr.benchmark.results import Spread, Summary


def render(summaries: Sequence[Summary]) -> str:
    """Draw one table; rows that failed are listed below it with their reasons."""
    done = [summary for summary in summaries if summary.speed is not None]
    stages = dict.fromkeys(name for one in done for name in one.stages)
    dtypes = dict.fromkeys(name for one in done for name in one.ratios)
    columns = [
        ["", *(one.label for one in done)],
        ["x real time", *(_spread(one.speed, ".1f") for one in done)],
        *([f"{name.replace('_', ' ')} s", *_numbers([one.stages.get(name) for one in done], ".2f")]
          for name in stages),
        ["total s", *_numbers([one.total_s for one in done], ".2f")],
        *([f"{name} is x as fast", *(_spread(one.ratios.get(name), ".2f") for one in done)]
          for name in dtypes),
        ["peak MiB", *_numbers([one.peak_memory_mib for one in done], ".0f")],
        ["peak GPU MiB", *_numbers([one.peak_gpu_mib for one in done], ".0f")],
        ["WER %", *_numbers([_percent(one.word_error_rate) for one in done], ".2f")],
    ]  # fmt: skip
    drawn = aligned([column for column in columns if any(column[1:])]) if done else []
    failed = [f"{one.label}  failed: {one.failed}" for one in summaries if one.failed is not None]
    return "\n".join([*drawn, *failed])


def aligned(columns: Sequence[Sequence[str]]) -> list[str]:
    """Return lines of columns, the first to the left and the others to the right."""
    widths = [max(map(len, column)) for column in columns]
    lines = []
    for first, *others in zip(*columns, strict=True):
        padded = map(str.rjust, others, widths[1:])
        lines.append("  ".join([first.ljust(widths[0]), *padded]).rstrip())
    return lines


def _spread(spread: Spread | None, form: str) -> str:
    if spread is None:
        return ""
    return f"{spread.median:{form}} ({spread.least:{form}}..{spread.most:{form}})"


def _numbers(values: Sequence[float | None], form: str) -> list[str]:
    return ["" if value is None else f"{value:{form}}" for value in values]


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share
