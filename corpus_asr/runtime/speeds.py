"""Speed of a machine for a job: measured by the last run or a check, or stated."""

import math
from dataclasses import dataclass

from corpus_asr.activity import Estimate
from corpus_asr.config.run import RunConfig
from corpus_asr.errors import ConfigError
from corpus_asr.runtime.checkpoints import model_name
from corpus_asr.storage.run_state.run_files import FINGERPRINT_NAME, read_snapshot, result_settings
from corpus_asr.storage.run_state.table_names import RUN_NAME
from corpus_asr.storage.run_state.tables import OutputStore

# Shorter runs are mostly startup.
_LEAST_AUDIO_S = 300.0
_LEAST_WALL_S = 60.0
# Another corpus or day: relative range of a measured speed.
_SPEED_RANGE = 1.15


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """A machine or cluster for the work, and its speed."""

    name: str
    rtfx: float
    """RTFx of one worker."""
    count: int = 1
    """Number of workers."""

    def duration_s(self, audio: Estimate) -> Estimate:
        """Estimate the seconds for an audio duration, without the start of a run."""
        likely = audio.over(self.rtfx * self.count)
        return Estimate(likely.value, likely.low / _SPEED_RANGE, likely.high * _SPEED_RANGE)

    def speed_words(self) -> str:
        """Return the total speed as text, and that of one worker if there are several."""
        all_rtfx = f"RTFx {self.rtfx * self.count:,.1f}"
        return all_rtfx if self.count == 1 else f"{all_rtfx} ({self.count} x {self.rtfx:,.1f})"


def stated_machine(config: RunConfig, rtfx: float) -> Machine:
    """Return the configured number of workers, or one, at a stated RTFx each.

    Raises:
        ConfigError: the speed is not a number above 0.
    """
    if not 0 < rtfx < math.inf:
        raise ConfigError(
            f"planning with --speed: found {rtfx:g}, expected the RTFx of one worker, above 0, "
            "such as 180"
        )
    workers = config.transcribe.workers
    return Machine(name="as given", rtfx=rtfx, count=1 if workers == "auto" else workers)


def measured_machines(config: RunConfig, store: OutputStore) -> list[Machine]:
    """Return the speed of the last run in a job's folder, if model and settings are the same."""
    of_run, snapshot = store.read_json(FINGERPRINT_NAME), read_snapshot(store)
    if of_run is None or snapshot is None or of_run["settings"] != result_settings(config):
        return []
    # Settings are without the model, since one that was moved is the same; an unfinished run has
    # none to compare.
    run = store.read_json(RUN_NAME)
    if run is not None and run["model"] != model_name(config.model):
        return []
    if snapshot.audio_s < _LEAST_AUDIO_S or snapshot.elapsed_s < _LEAST_WALL_S:
        return []
    workers = max(1, snapshot.transcribe_workers)
    name = f"measured by the run of {snapshot.started_at[:10]} here"
    return [Machine(name=name, rtfx=snapshot.rtfx / workers, count=workers)]
