"""Classify a corpus into a table of labels with probabilities, such as the language spoken."""

from corpus_asr.config.run import DEFAULT_OPTIONS, RunConfig, RunOptions
from corpus_asr.pipelines.driver import run_over_corpus
from corpus_asr.runtime.checkpoints import Checkpoint, check_classifies, fetch_checkpoints
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
    """Fetch the job's checkpoint.

    Raises:
        ConfigError: the checkpoint does not predict such labels.
        CheckpointError: the model cannot be had.
    """
    checkpoint = fetch_checkpoints(config)
    check_classifies(checkpoint, config.classification)
    return checkpoint
