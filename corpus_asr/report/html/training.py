"""The page of a fine-tuning: learning curves from the rows of its log, thinned to few points."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from corpus_asr.report.html.charts import Chart, curve
from corpus_asr.report.html.page import environment, render_document
from corpus_asr.report.text import now

# A chart has no room for more; each is the mean of the steps since the point before.
MOST_POINTS = 300


class Curve(NamedTuple):
    """What a chart shows of the log."""

    title: str
    caption: str
    key: str
    form: str


_CURVES = (
    Curve("Loss", "Mean over the tokens of each step.", "loss", "{:.3g}"),
    Curve("WER", "Of the validation windows, by step.", "wer", "{:.1%}"),
    Curve("Learning rate", "Of each step.", "lr", "{:.2g}"),
)


def training_page(uri: str, rows: Sequence[Mapping[str, Any]], *, steps: int) -> str:
    """Return the page of a training as HTML.

    Args:
        uri: its output folder, without secrets.
        rows: those of its log, one per step or evaluation.
        steps: those that it will have done at its end.
    """
    trained = [row for row in rows if "loss" in row]
    wers = [(row["wer"], row["step"]) for row in rows if row.get("wer") is not None]
    charts = [(of.title, of.caption, _chart(rows, of, steps)) for of in _CURVES]
    return render_document(
        environment().get_template("training.html.j2"),
        uri=uri,
        step=trained[-1]["step"] if trained else 0,
        steps=steps,
        wall_s=sum(row["wall_s"] for row in trained),
        tokens=sum(row["tokens"] for row in trained),
        best=min(wers, default=None),
        first=wers[0] if wers else None,
        charts=[each for each in charts if each[2] is not None],
        written_at=now(),
    )


def _chart(rows: Sequence[Mapping[str, Any]], of: Curve, steps: int) -> Chart | None:
    points = [
        (float(row["step"]), float(row[of.key]))
        for row in rows
        # Numbers that are none are null in a log, and infinite in a process.
        if row.get(of.key) is not None and math.isfinite(row[of.key])
    ]
    if len(points) < 2:  # makes no line
        return None
    return curve(thinned(points), end=steps, label=of.title, say=of.form.format)


def thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return at most `MOST_POINTS`: the last place and the mean value of neighbors."""
    every = -(-len(points) // MOST_POINTS)
    groups = [points[at : at + every] for at in range(0, len(points), every)]
    return [(group[-1][0], sum(value for _, value in group) / len(group)) for group in groups]
