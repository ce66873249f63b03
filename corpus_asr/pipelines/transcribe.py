"""Transcribe a corpus into tables of segments and outcomes."""

from functools import partial

from corpus_asr.config.choices import CONTINUE, Choices
from corpus_asr.config.run import RunConfig
from corpus_asr.pipelines.driver import run_over_corpus
from corpus_asr.runtime.progress import Stream
from corpus_asr.runtime.summary import RunSummary
from corpus_asr.runtime.weights import Weights, check_transcribes, fetch_model, fetch_weights
from corpus_asr.stages.routes import load_routed_engine
from corpus_asr.stages.transcribe import EngineFactory, load_engine


def run(
    config: RunConfig, *, local: bool, progress: Stream | None, choices: Choices = CONTINUE
) -> RunSummary:
    """Do what is left of the job; see `run_over_corpus` for the arguments and errors."""
    return run_over_corpus(config, prepare, local=local, progress=progress, choices=choices)


def prepare(config: RunConfig) -> tuple[Weights, EngineFactory]:
    """Fetch the job's checkpoints, and choose what loads the engine.

    Raises:
        CheckpointError: a model cannot be had.
        ConfigError: it does not know a language that is asked for.
    """
    model = config.model
    # What is refused is refused before gigabytes of weights are fetched.
    folder = fetch_model(model.checkpoint, revision=model.revision, weights=False)
    check_transcribes(folder, config.decoding, model.checkpoint)
    weights = fetch_weights(config)
    engine: EngineFactory = load_engine
    if config.model.by_language:
        engine = partial(load_routed_engine, by_language=config.model.by_language)
    return weights, engine
