"""Train a network from nothing: settings in; spoken sentences, a vocabulary and a checkpoint out.

Only the order of things is decided here; each is done elsewhere. Safe to repeat: what is made is
not made again, and training goes on after its last checkpoint.
"""

from pathlib import Path

from corpus_asr.config.from_nothing import FromNothingConfig
from corpus_asr.runtime.progress import Stream
from corpus_asr.synthesis.corpus import SETS, Texts, drawn_lines, write_corpus
from corpus_asr.synthesis.voices import installed_voices
from corpus_asr.training.fresh import Sizes, make_checkpoint
from corpus_asr.training.sources import passages_in
from pipelines import finetune


def run(config: FromNothingConfig, *, progress: Stream | None) -> finetune.Finetuned:
    """Make what is missing, and train.

    Args:
        config: the training.
        progress: where lines about it go; None for none.

    Raises:
        ConfigError: there are no voices, or as `finetune.run` has it.
        CheckpointError: as there.
        EngineError: as there.
        FetchError: as there.
        OSError: a local folder cannot be written.
    """
    _speak(config, progress)
    _make_network(config)
    return finetune.run(config.training_alone, progress=progress)


def _speak(config: FromNothingConfig, progress: Stream | None) -> None:
    """Make the spoken corpus, unless it is there; its manifests are written last."""
    speech = config.speech
    folder = Path(speech.folder)
    if all((folder / f"{name}.jsonl").is_file() for name in SETS):
        return
    voices = installed_voices(speech.voices)
    texts = Texts(
        files=[Path(text) for text in speech.texts],
        common_words=speech.common_words,
        written_share=speech.written_share,
        imitated_share=speech.imitated_share,
        digits_share=speech.digits_share,
    )
    lines = {
        name: drawn_lines(
            voices,
            texts,
            seed=config.training.seed,
            held_out_share=speech.held_out_share,
            set=name,
        )
        for name in SETS
    }
    hours = {"train": speech.hours, "validation": speech.validation_hours}
    spoken = write_corpus(folder, lines, hours, workers=speech.workers)
    if progress is not None:
        told = ", ".join(f"{hours:.2f} h for {name}" for name, hours in spoken.hours.items())
        progress.write(f"spoken by {len(voices)} voices: {told}; {spoken.failed} lines failed\n")


def _make_network(config: FromNothingConfig) -> None:
    """Make the checkpoint that knows nothing, unless it is there."""
    folder = Path(config.model.checkpoint)
    if (folder / "config.json").is_file():
        return
    texts = (passage.text for passage in passages_in(config.data, "train"))
    sizes = Sizes(**config.network.model_dump(), dropout=config.model.dropout or 0.0)
    make_checkpoint(texts, folder, sizes, seed=config.training.seed)
