"""Classify a corpus: a job in, a table of labels with probabilities and a summary out.

Which language is spoken, or whatever the classes of a checkpoint are. Everything but the engine is
what a transcription does: listing, extraction, commits, resuming, failures, reports.
"""

from functools import partial

from corpus_asr.config.choices import CONTINUE, Choices
from corpus_asr.config.run import RunConfig
from corpus_asr.runtime.progress import Stream
from corpus_asr.runtime.summary import RunSummary
from corpus_asr.runtime.weights import Weights, check_classifies, fetch_weights
from corpus_asr.stages.classify import load_label_engine
from corpus_asr.stages.transcribe import EngineFactory
from pipelines.corpus import run_over_corpus


def run(
    config: RunConfig, *, local: bool, progress: Stream | None, choices: Choices = CONTINUE
) -> RunSummary:
    """Do what is left of the job, and finish its output folder.

    Args:
        config: the job.
        local: in this process, without Ray.
        progress: where lines about the run go; None for none.
        choices: how what earlier runs left is treated.

    Raises:
        ConfigError: the job cannot be done as configured, the checkpoint cannot tell such labels
            apart, or another run is at work in the output folder; nothing was done.
        CheckpointError: the model cannot be had or loaded.
        EngineError: the work could not go on; what was committed is kept.
        FetchError: the output store or the listing failed.
    """
    weights, engine = prepare(config)
    return run_over_corpus(config, weights, engine, local=local, progress=progress, choices=choices)


def prepare(config: RunConfig) -> tuple[Weights, EngineFactory]:
    """Fetch the job's checkpoint, and choose what loads the engine.

    Raises:
        ConfigError: the checkpoint cannot tell such labels apart.
        CheckpointError: the model cannot be had.
    """
    weights = fetch_weights(config)
    check_classifies(weights.folder, config.classification)
    return weights, partial(load_label_engine, classification=config.classification)
