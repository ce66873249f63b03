"""A run's counts as Prometheus metrics, through Ray's own export.

In: what the board knows, whenever it changes. Out: counters and gauges that Ray's agents export
with all others (`ray_` before their names). One process updates them, a few times a second at most;
where nobody exports them (no dashboard, or `ray` without its `default` extra) they go nowhere.
"""

from dataclasses import dataclass

from ray.util.metrics import Counter, Gauge, Histogram

from corpus_asr.activity import Activity
from corpus_asr.runtime.progress import Tally

PREFIX = "corpus_asr_"
COMMIT_BOUNDARIES_S = [0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0]


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric: the count it shows, and what it means."""

    name: str
    count: str
    description: str


COMMITTED = (
    Metric("audio_seconds_total", "audio_s", "seconds of audio committed"),
    Metric("parts_total", "parts", "parts committed"),
    Metric("parts_retried_total", "retried", "parts tried again after their worker died"),
)
WORKED = (
    Metric("extract_seconds_total", "extract_s", "seconds extract workers extracted"),
    Metric("extract_cpu_seconds_total", "extract_cpu_s", "CPU seconds of extraction"),
    Metric("hand_over_seconds_total", "hand_over_s", "seconds extracted parts waited to be taken"),
    Metric("fetch_retries_total", "fetch_retries", "requests for recordings that were repeated"),
    Metric("encode_seconds_total", "encode_s", "seconds engines encoded"),
    Metric("step_seconds_total", "step_s", "seconds engines decoded steps"),
    Metric("engine_wait_seconds_total", "wait_s", "seconds engines waited for results"),
    Metric("engine_alive_seconds_total", "transcribe_alive_s", "seconds since engines were loaded"),
    Metric("windows_total", "windows", "windows encoded"),
    Metric("tokens_total", "tokens", "tokens decoded"),
    Metric("commit_retries_total", "commit_retries", "requests of commits that were repeated"),
    Metric("workers_replaced_total", "workers_replaced", "workers replaced as unusable"),
)
NOW = (
    Metric("parts_ready", "parts_ready", "extracted parts that wait for an engine"),
    Metric("parts_in_engines", "parts_in_engines", "parts handed to engines, without a result"),
    Metric("slot_occupancy", "occupancy", "share of decoder slots in use in the last steps"),
)
RECORDINGS = Metric("recordings_total", "files", "recordings ended; status: done or failed")
COMMIT_SECONDS = Metric("commit_seconds", "commit_s", "seconds a commit took")


class Metrics:
    """The metrics of one run; kept by its board."""

    def __init__(self) -> None:
        self._tally, self._activity = Tally(), Activity()
        self._counters = {
            metric: Counter(PREFIX + metric.name, metric.description)
            for metric in (*COMMITTED, *WORKED)
        }
        self._gauges = {metric: Gauge(PREFIX + metric.name, metric.description) for metric in NOW}
        self._recordings = Counter(
            PREFIX + RECORDINGS.name, RECORDINGS.description, tag_keys=("status",)
        )
        self._commits = Histogram(
            PREFIX + COMMIT_SECONDS.name, COMMIT_SECONDS.description, COMMIT_BOUNDARIES_S
        )

    def committed(self, seconds: float) -> None:
        """Note how long one commit took."""
        self._commits.observe(seconds)

    def update(self, tally: Tally, activity: Activity) -> None:
        """Show these counts, which only grow unless a worker's are lost."""
        grown = {metric: _growth(metric, self._tally, tally) for metric in COMMITTED}
        grown |= {metric: _growth(metric, self._activity, activity) for metric in WORKED}
        for metric, more in grown.items():
            if more > 0:
                self._counters[metric].inc(more)
        failed = max(0, tally.failed - self._tally.failed)
        done = max(0, tally.files - self._tally.files - failed)
        for status, number in (("done", done), ("failed", failed)):
            if number:
                self._recordings.inc(number, {"status": status})
        self._show(activity)
        self._tally, self._activity = tally, activity

    def _show(self, activity: Activity) -> None:
        room = activity.slot_room - self._activity.slot_room
        values: dict[str, float] = {
            "parts_ready": activity.parts_ready,
            "parts_in_engines": activity.parts_in_engines,
        }
        if room > 0:
            values["occupancy"] = (activity.slot_steps - self._activity.slot_steps) / room
        for metric, gauge in self._gauges.items():
            if metric.count in values:
                gauge.set(values[metric.count])


def _growth(metric: Metric, before: Tally | Activity, now: Tally | Activity) -> float:
    return float(getattr(now, metric.count) - getattr(before, metric.count))
