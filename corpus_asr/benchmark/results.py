"""Medians, ratios and word errors of what was run, and the table that shows them.

A ratio is taken within a round, between two runs that stood near each other, and the median is over
rounds: a machine that slows down half-way moves both sides of it.
"""

import importlib
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from corpus_asr.benchmark.orders import Recording
from corpus_asr.benchmark.rounds import Row
from corpus_asr.text.normalize import BasicTextNormalizer, EnglishTextNormalizer

EXIT_UNUSABLE = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """A median, with the least and the most of what it was taken from."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Summarise values, at least one."""
        return cls(median=statistics.median(values), least=min(values), most=max(values))

    def as_data(self) -> dict[str, float]:
        """Return JSON values."""
        return {"median": self.median, "min": self.least, "max": self.most}


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What the table says of one row."""

    label: str
    failed: str | None
    speed: Spread | None
    """Times real time."""
    stages: dict[str, float]
    """Median seconds by stage."""
    total_s: float | None
    ratios: dict[str, Spread]
    """How many times as fast as this row each of our own rows is."""
    peak_memory_mib: float | None
    peak_gpu_mib: float | None
    word_error_rate: float | None

    def as_data(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "label": self.label,
            "failed": self.failed,
            "times_real_time": self.speed and self.speed.as_data(),
            "median_total_s": self.total_s,
            "median_stages_s": self.stages,
            "ours_times_as_fast": {dtype: ratio.as_data() for dtype, ratio in self.ratios.items()},
            "peak_memory_mib": self.peak_memory_mib,
            "peak_gpu_mib": self.peak_gpu_mib,
            "word_error_rate": self.word_error_rate,
        }


def summarise(
    rows: Sequence[Row],
    audio_s: float,
    recordings: Sequence[Recording] = (),
    *,
    language: str = "en",
) -> list[Summary]:
    """Summarise every row."""
    ours = [row for row in rows if row.case.is_ours and row.runs]
    found = []
    for row in rows:
        texts = row.runs[0].get("texts") if row.runs else None
        error = None if texts is None else word_error_rate(texts, recordings, language=language)
        found.append(_summary(row, ours, audio_s, error))
    return found


def ratios(ours: Row, other: Row) -> Spread | None:
    """How many times as fast ours is, over the rounds that both finished; None without any."""
    pairs = zip(ours.runs, other.runs, strict=False)
    found = [theirs["total_s"] / own["total_s"] for own, theirs in pairs]
    return Spread.of(found) if found else None


def word_error_rate(
    texts: Sequence[str], recordings: Sequence[Recording], *, language: str = "en"
) -> float | None:
    """Compare with the references, both normalised; None where there are none, or no jiwer.

    Recordings without a reference are left out, and so are those whose reference has no words.
    """
    normalise = EnglishTextNormalizer() if language == "en" else BasicTextNormalizer()
    pairs = [
        (normalise(recording.text).strip(), normalise(text).strip())
        for text, recording in zip(texts, recordings, strict=True)
        if recording.text is not None
    ]
    pairs = [(reference, text) for reference, text in pairs if reference]
    if not pairs or find_spec("jiwer") is None:
        return None
    jiwer = importlib.import_module("jiwer")
    return float(jiwer.wer([pair[0] for pair in pairs], [pair[1] for pair in pairs]))


def _summary(row: Row, ours: Sequence[Row], audio_s: float, error: float | None) -> Summary:
    runs = row.runs
    stages = list(runs[0]["stages"]) if runs else []
    totals = [run["total_s"] for run in runs]
    compared = {one.case.dtype: ratios(one, row) for one in ours if not row.case.is_ours}
    return Summary(
        label=row.case.label,
        failed=row.failed,
        speed=Spread.of([audio_s / total for total in totals]) if runs else None,
        stages={name: statistics.median(run["stages"][name] for run in runs) for name in stages},
        total_s=statistics.median(totals) if runs else None,
        ratios={dtype: ratio for dtype, ratio in compared.items() if ratio is not None},
        peak_memory_mib=_most(runs, "peak_memory_mib"),
        peak_gpu_mib=_most(runs, "peak_gpu_mib"),
        word_error_rate=error,
    )


def _most(runs: Sequence[dict[str, Any]], key: str) -> float | None:
    return max((run[key] for run in runs if run.get(key) is not None), default=None)


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


def say(line: str) -> None:
    """Print a result."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def tell(line: str) -> None:
    """Print what is being done, apart from results."""
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()
