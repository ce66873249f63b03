"""Predictions of a real run against what became true: `python -m benchmarks.eta FOLDER ...`.

Runs a job over folders in this process, or on Ray, and notes every second what the progress line
would say. At the end it prints the estimates at shares of the run's time beside the truth.
"""

import argparse
import json
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from benchmarks.tables import markdown
from corpus_asr.activity import Estimate, clock_time
from corpus_asr.config.run import RunConfig
from corpus_asr.pipelines import driver
from corpus_asr.runtime.progress import Progress
from corpus_asr.storage.run_state.run_files import Standing

SHARES = (0.02, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9)
SEEN: list[Standing] = []


class Noting(Progress):
    """Progress that keeps what it was every second."""

    @contextmanager
    def shown(self) -> Iterator[Self]:
        ended = threading.Event()

        def note() -> None:
            while not ended.wait(1.0):
                SEEN.append(self.standing())

        thread = threading.Thread(target=note)
        with super().shown() as progress:
            thread.start()
            try:
                yield progress
            finally:
                ended.set()
                thread.join()
                SEEN.append(self.standing())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="+")
    parser.add_argument("--model", default="whisper-tiny.en")
    parser.add_argument("--ray", action="store_true")
    parser.add_argument("--json", type=Path, help="keep every estimate here")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as output:
        config = RunConfig.model_validate(
            {
                "source": {"uri": arguments.folders, "exclude": ["*.jsonl", "*.md", "*.json"]},
                "model": {"checkpoint": arguments.model},
                "output": {"uri": output},
            }
        )
        setattr(driver, "Progress", Noting)  # noqa: B010 - the driver's own, not what it exports
        summary = driver.run(config, local=not arguments.ray)
    end_s = next(each.elapsed_s for each in SEEN if not each.remaining)
    print(
        f"{summary.files} recordings, {summary.failed} failed; {summary.audio_s / 60:.1f} min of "
        f"audio in {clock_time(end_s)} until the last was committed\n"
    )
    titles = (
        "at",
        "elapsed",
        "minutes (true)",
        "ETA",
        "range",
        "true",
        "error of the whole",
        "held",
    )
    print("\n".join(markdown(titles, [_row(share, end_s) for share in SHARES], left=())))
    told = [each for each in SEEN if each.eta is not None and each.remaining]
    inside = sum(_holds(each.eta, end_s - each.elapsed_s) for each in told)
    print(
        f"\nfirst ETA after {clock_time(told[0].elapsed_s)}; the range held the truth in {inside} "
        f"of {len(told)} seconds"
    )
    if arguments.json is not None:
        arguments.json.write_text(json.dumps([_data(each) for each in SEEN]))


def _row(share: float, end_s: float) -> list[str]:
    at = min(SEEN, key=lambda each: abs(each.elapsed_s - share * end_s))
    true_s, eta, audio = end_s - at.elapsed_s, at.eta, at.audio_expected
    predicted = "unknown" if eta is None else clock_time(eta.value)
    minutes = "unknown" if audio is None else f"{audio.value / 60:.1f}"
    return [
        f"{share:.0%}",
        clock_time(at.elapsed_s),
        f"{minutes} ({SEEN[-1].audio_s / 60:.1f})",
        predicted,
        "" if eta is None else f"{clock_time(eta.low)}-{clock_time(eta.high)}",
        clock_time(true_s),
        "" if eta is None else f"{(eta.value - true_s) / end_s:+.0%}",
        "" if eta is None else "yes" if _holds(eta, true_s) else "no",
    ]


def _holds(eta: Estimate | None, true_s: float) -> bool:
    return eta is not None and eta.low <= true_s <= eta.high


def _data(standing: Standing) -> dict[str, Any]:
    return {name: getattr(standing, name) for name in Standing.__dataclass_fields__}


if __name__ == "__main__":
    main()
