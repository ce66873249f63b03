"""Transcribe a corpus into tables of segments and outcomes."""

from corpus_asr.config.run import DEFAULT_OPTIONS, RunConfig, RunOptions
from corpus_asr.pipelines.driver import run_over_corpus
from corpus_asr.runtime.checkpoints import Checkpoint, check_transcribes, fetch_checkpoints
from corpus_asr.runtime.progress import RunSummary, Stream


def run(
    config: RunConfig,
    *,
    local: bool,
    progress: Stream | None,
    options: RunOptions = DEFAULT_OPTIONS,
) -> RunSummary:
    """Do what is left of the job; see `run_over_corpus` for the arguments and errors."""
    return run_over_corpus(config, prepare, local=local, progress=progress, options=options)


def prepare(config: RunConfig) -> Checkpoint:
    """Fetch the job's checkpoints.

    Raises:
        CheckpointError: a model cannot be had.
        ConfigError: it does not know a language that is asked for.
    """
    # What is refused is refused before gigabytes of weights are fetched.
    small = Checkpoint.fetch(config.model.checkpoint, revision=config.model.revision)
    check_transcribes(small, config.decoding)
    return fetch_checkpoints(config)
