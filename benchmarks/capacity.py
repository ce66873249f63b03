"""Write what fleets need and cost into docs/scaling.md: what `corpus-asr plan --hours` answers.

    python -m benchmarks.capacity

Nothing is measured here: speeds of GPUs, of a core, of the driver and of commits are those of the
code, which its tests compare with what was measured.
"""

from collections.abc import Iterator
from pathlib import Path

from benchmarks.tables import fill
from corpus_asr.activity import clock_time
from corpus_asr.config.load import default_config
from corpus_asr.runtime.capacity import S3_STANDARD, Capacity, capacity
from corpus_asr.runtime.speeds import given_machines, measured_gpus

PAGE = Path(__file__).resolve().parents[1] / "docs" / "scaling.md"
GPUS = (1, 8, 64, 500)
CARD = "H200"
JOBS = {
    "large-v3": ["model.checkpoint=openai/whisper-large-v3"],
    "large-v3, greedy": ["model.checkpoint=openai/whisper-large-v3", "decoding.beam_size=1"],
    "turbo, greedy": ["model.checkpoint=openai/whisper-large-v3-turbo", "decoding.beam_size=1"],
}
HOURS = (10_000, 1_000_000)
# Of an hour of a GPU: an example.
PRICE = 4.0


def planned(job: str, gpus: int, hours: float) -> Capacity:
    """Return what a job needs."""
    config = default_config(JOBS[job])
    [machine] = given_machines(
        [], [f"{PRICE}"], measured=measured_gpus(config, CARD), count=float(gpus)
    )
    return capacity(config, machine, gpus=gpus, audio_s=3600 * hours)


def drawn() -> str:
    """Draw the table."""
    hours = "".join(f" {each:,} h | cost |" for each in HOURS)
    columns = "job | GPUs | RTFx | may be | cores | drivers | GB/s | reads/s | writes/s"
    heads = f"| {columns} |{hours} requests |"
    rule = f"|---|{'--:|' * (9 + 2 * len(HOURS))}"
    return "\n".join([_words(), "", heads, rule, *_rows()])


def _words() -> str:
    return (
        f"A GPU is an {CARD} and costs {PRICE:g} an hour here, an example, and a million requests "
        f"{S3_STANDARD.read:g} to read and {S3_STANDARD.write:g} to write. *requests* is their "
        f"price for {HOURS[-1]:,} hours."
    )


def _rows() -> Iterator[str]:
    for job in JOBS:
        for gpus in GPUS:
            each = [planned(job, gpus, hours) for hours in HOURS]
            most = each[-1]
            reads_per_s, writes_per_s = most.requests_per_s
            cells = [
                job,
                f"{gpus:,}",
                f"{most.rtfx:,.0f}",
                f"{most.rtfx / most.machine.spread:,.0f}-{most.rtfx * most.machine.spread:,.0f}",
                f"{most.extract_cores:,}",
                f"{most.drivers:,}",
                f"{most.bytes_per_s / 1e9:.2f}",
                f"{reads_per_s:,.1f}",
                f"{writes_per_s:,.1f}",
            ]
            for found in each:
                cells += [clock_time(found.duration_s), f"{found.cost:,.0f}"]
            yield f"| {' | '.join([*cells, f'{most.request_cost:,.2f}'])} |"


def main() -> None:
    """Write the table."""
    fill(PAGE, "capacity", drawn())


if __name__ == "__main__":
    main()
