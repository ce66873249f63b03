"""Transcribe a corpus: a job in, tables of segments and outcomes and a summary out."""

from functools import partial

from corpus_asr.config.choices import CONTINUE, Choices
from corpus_asr.config.run import RunConfig
from corpus_asr.runtime.progress import Stream
from corpus_asr.runtime.summary import RunSummary
from corpus_asr.runtime.weights import Weights, check_transcribes, fetch_model, fetch_weights
from corpus_asr.stages.routes import load_routed_engine
from corpus_asr.stages.transcribe import EngineFactory, load_engine
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
        ConfigError: the job cannot be done as configured, or another run is at work in the output
            folder; nothing was done.
        CheckpointError: a model cannot be had or loaded.
        EngineError: the work could not go on; what was committed is kept.
        FetchError: the output store or the listing failed.
    """
    weights, engine = prepare(config)
    return run_over_corpus(config, weights, engine, local=local, progress=progress, choices=choices)


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
