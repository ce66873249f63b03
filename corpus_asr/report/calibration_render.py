"""A calibration for people and for programs.

In: a `Calibration`. Out: lines of text, or values fit for JSON. Knows nothing of how it was fitted.
"""

import math
from collections.abc import Iterator
from typing import Any

from corpus_asr.report.calibration import Calibration, Reliability
from corpus_asr.report.text import counted, row, table, wrapped
from corpus_asr.storage.stores.uri import redact_uri

_HEADER = ("confidence", "segments", "words", "mean", "right", "with errors")


def render_calibration(found: Calibration) -> str:
    """Return a calibration as text: the figures before and after, and where it was written."""
    return "\n".join(_lines(found))


def _lines(found: Calibration) -> Iterator[str]:
    yield ""
    yield row("calibration", found.model.name)
    yield from wrapped(
        f"{counted(found.after.segments, 'segment')} in {counted(found.recordings, 'recording')}; "
        f"{found.after.right:.1%} of words right, {found.after.with_errors:.1%} of segments with "
        "an error",
        label="fitted to",
    )
    yield from _quality("before", found.before)
    yield from _quality("held out", found.after)
    yield from wrapped(
        f"{redact_uri(found.address)}; later runs in this folder use it, others with "
        "model.calibration",
        label="written",
    )


def _quality(title: str, found: Reliability) -> Iterator[str]:
    rows = [
        (
            f"{band.low:g} to {band.high:g}", f"{band.segments:,}", f"{band.words:,}",
            f"{band.confidence:.3f}", f"{band.right:.3f}", f"{band.with_errors:.1%}",
        )
        for band in found.bands
    ]  # fmt: skip
    yield from table(title, [_HEADER, *rows])
    yield row("", f"ECE {found.ece:.3f}, Brier {found.brier:.3f}, AUC {found.auc:.3f}")


def calibration_data(found: Calibration) -> dict[str, Any]:
    """Return a calibration as JSON has it."""
    return {
        "name": found.model.name,
        "address": redact_uri(found.address),
        "recordings": found.recordings,
        "before": reliability_data(found.before),
        "held_out": reliability_data(found.after),
    }


def reliability_data(found: Reliability) -> dict[str, Any]:
    """Return figures of quality as JSON has them."""
    return {
        "segments": found.segments,
        "words": found.words,
        "right": round(found.right, 6),
        "with_errors": round(found.with_errors, 6),
        "ece": round(found.ece, 6),
        "brier": round(found.brier, 6),
        "auc": None if math.isnan(found.auc) else round(found.auc, 6),
        "bands": [
            {name: round(getattr(band, name), 6) for name in band.__slots__} for band in found.bands
        ],
    }
