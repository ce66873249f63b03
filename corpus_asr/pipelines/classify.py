"""Classify a corpus into a table of labels with probabilities, such as the language spoken."""

from functools import partial

from corpus_asr.config.choices import CONTINUE, Choices
from corpus_asr.config.run import RunConfig
from corpus_asr.pipelines.driver import run_over_corpus
from corpus_asr.runtime.progress import Stream
from corpus_asr.runtime.summary import RunSummary
from corpus_asr.runtime.weights import Weights, check_classifies, fetch_weights
from corpus_asr.stages.classify import load_label_engine
from corpus_asr.stages.transcribe import EngineFactory


def run(
    config: RunConfig, *, local: bool, progress: Stream | None, choices: Choices = CONTINUE
) -> RunSummary:
    """Do what is left of the job; see `run_over_corpus` for the arguments and errors."""
    return run_over_corpus(config, prepare, local=local, progress=progress, choices=choices)


def prepare(config: RunConfig) -> tuple[Weights, EngineFactory]:
    """Fetch the job's checkpoint, and choose what loads the engine.

    Raises:
        ConfigError: the checkpoint does not predict such labels.
        CheckpointError: the model cannot be had.
    """
    weights = fetch_weights(config)
    check_classifies(weights.folder, config.classification)
    return weights, partial(load_label_engine, classification=config.classification)
