"""The checkpoints of a job: fetched, named, and found to fit together before any audio is read.

In: the `model` section. Out: their folders on this machine, and names of their weights. Free of
torch: what only a loaded network can tell is checked where it is loaded.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from corpus_asr.config.decoding import DecodingSettings, check_english_only
from corpus_asr.config.run import CLASSIFY_AUDIO, ClassificationSettings, RunConfig
from corpus_asr.errors import ConfigError
from corpus_asr.families.config_file import read_json_object
from corpus_asr.families.family import Family
from corpus_asr.families.registry import family_of, resolve
from corpus_asr.languages import check_known
from corpus_asr.storage.model_files import fetch_checkpoint, full_name, model_revision
from corpus_asr.storage.run_state.tables import ModelName
from corpus_asr.storage.stores.uri import redact_uri


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """The checkpoints of one job."""

    folder: Path
    """Of the main one, on this machine."""
    revision: str
    by_language: Mapping[str, ModelName] = field(default_factory=dict)
    """For recordings in some languages: a checkpoint as configured, and its revision."""

    @property
    def name(self) -> str:
        """All weights in one word, for the run's fingerprint."""
        others = [f"{code}={made}" for code, (_, made) in sorted(self.by_language.items())]
        return ",".join([self.revision, *others])


def fetch_weights(config: RunConfig, *, hashed: bool = True) -> Weights:
    """Fetch what a job needs to this machine.

    Args:
        config: the job.
        hashed: whether their revisions are wanted; they are hashes of whole checkpoints, so
            without them only small files are fetched and revisions are empty.

    Raises:
        CheckpointError: a checkpoint cannot be had or read.
        ConfigError: one for a language does not fit the main one.
    """
    model = config.model
    folder = fetch_model(model.checkpoint, revision=model.revision, weights=False)
    others = {} if config.pipeline == CLASSIFY_AUDIO else model.by_language
    others_in = fetch_others(folder, others, checkpoint=model.checkpoint, weights=hashed)
    found = {
        code: (full_name(others[code]), model_revision(other) if hashed else "")
        for code, other in others_in.items()
    }
    if hashed:
        folder = fetch_model(model.checkpoint, revision=model.revision)
    revision = model_revision(folder) if hashed else ""
    return Weights(folder=folder, revision=revision, by_language=found)


def fetch_model(checkpoint: str, *, revision: str | None = None, weights: bool = True) -> Path:
    """Fetch a checkpoint of a family there is; of others no weights are fetched in vain.

    Args:
        checkpoint: a folder, an address or a hub name.
        revision: hub branch, tag or commit.
        weights: False fetches only the small files.

    Raises:
        CheckpointError: it cannot be had, or is of no known family.
    """
    folder = fetch_checkpoint(checkpoint, revision=revision, weights=False)
    family_of(folder)
    return fetch_checkpoint(checkpoint, revision=revision) if weights else folder


def fetch_others(
    folder: Path, others: Mapping[str, str], *, checkpoint: str, weights: bool
) -> dict[str, Path]:
    """Fetch the checkpoints for some languages, and see that they fit the main one.

    Args:
        folder: of the main one.
        others: checkpoints by language code.
        checkpoint: the name of the main one, for messages.
        weights: False fetches only the small files.

    Raises:
        CheckpointError: a checkpoint cannot be had or read.
        ConfigError: one does not fit.
    """
    if others:
        _check_detects(folder, others, checkpoint)
    found = {}
    for code, other in others.items():
        found[code] = fetch_model(other, weights=False)
        _check_features(code, other, found[code], folder)
        try:
            check_transcribes(found[code], DecodingSettings(language=code), other)
        except ConfigError as error:
            raise ConfigError(f"reading model.by_language.{code}: {error}") from error
        if weights:
            found[code] = fetch_model(other)
    return found


def _check_detects(folder: Path, others: Mapping[str, str], checkpoint: str) -> None:
    known = language_codes(folder)
    if not known:
        raise ConfigError(
            f"reading model.by_language: found {redact_uri(checkpoint)} as model.checkpoint, which "
            "does not detect languages, expected a multilingual Whisper checkpoint; use one, such "
            "as base, or leave by_language out"
        )
    unknown = sorted(set(others) - set(known))
    if unknown:
        raise ConfigError(
            f"reading model.by_language: found {', '.join(unknown)}, expected codes of languages "
            f"that model.checkpoint detects: {', '.join(sorted(known))}; correct them"
        )


def check_transcribes(folder: Path, decoding: DecodingSettings, checkpoint: str) -> None:
    """Refuse what a checkpoint cannot do, as far as its tokenizer shows: no weights are needed.

    Args:
        folder: with at least its small files.
        decoding: what is asked of it.
        checkpoint: its name, for messages.

    Raises:
        CheckpointError: its tokenizer is missing or unreadable.
        ConfigError: it does not know a language that is asked for, or is English-only.
    """
    tokenizer = resolve(family_of(folder).tokenizer).from_pretrained(folder)
    if not hasattr(tokenizer, "language_ids"):
        return  # of a family that is not told what is spoken
    if not tokenizer.language_ids:
        check_english_only(decoding, checkpoint=redact_uri(checkpoint))
        return
    wanted = [decoding.language] if isinstance(decoding.language, str) else decoding.language
    check_known(wanted, tokenizer.language_ids, key="decoding.language")


def language_codes(folder: Path) -> tuple[str, ...]:
    """Return the codes of the languages that a checkpoint can detect; none for many.

    Raises:
        CheckpointError: its tokenizer is missing or unreadable.
    """
    tokenizer = resolve(family_of(folder).tokenizer).from_pretrained(folder)
    return tuple(getattr(tokenizer, "language_ids", ()))


def _check_features(code: str, checkpoint: str, folder: Path, main: Path) -> None:
    """Refuse a checkpoint that does not hear what was extracted for the main one.

    Raises:
        ConfigError: it is of another family, or was trained on other features.
    """
    families = [family_of(one) for one in (folder, main)]
    bins = [
        resolve(family.part_features).from_folder(one).num_mel_bins
        for family, one in zip(families, (folder, main), strict=True)
    ]
    heard, expected = (
        f"{family.model_type} with {count} mel bins"
        for family, count in zip(families, bins, strict=True)
    )
    if heard != expected:
        raise ConfigError(
            f"reading model.by_language.{code}: {redact_uri(checkpoint)} is {heard}, expected "
            f"{expected} as model.checkpoint is: features are extracted once for all; use "
            "a checkpoint of the same kind"
        )


def check_classifies(folder: Path, classification: ClassificationSettings) -> None:
    """Refuse a checkpoint that cannot tell the labels apart that are asked for.

    Raises:
        CheckpointError: a file of it is missing or unreadable.
        ConfigError: it has no classes, or does not tell (these) languages apart.
    """
    family = family_of(folder)
    if classification.task == "classify":
        _check_classes(folder, family)
        return
    known = () if is_classifier(folder) else language_codes(folder)
    if not known:
        raise ConfigError(
            f"reading classification.task: language needs a multilingual Whisper checkpoint that "
            f"transcribes, and {folder.name} does not tell languages apart; use one, or set task "
            "to classify for a checkpoint with classes of its own"
        )
    if unknown := [code for code in classification.languages if code not in known]:
        raise ConfigError(
            f"reading classification.languages: this checkpoint does not know {', '.join(unknown)}"
            f", expected some of {', '.join(sorted(known))}; correct them"
        )


def _check_classes(folder: Path, family: Family) -> None:
    if family.audio_classifier is None or not is_classifier(folder):
        raise ConfigError(
            f"reading classification.task: classify needs the classes of a "
            f"WhisperForAudioClassification checkpoint, and {folder.name} has none in its "
            "config.json (architectures); train it for them, or set task to language"
        )
    config = resolve(family.config).from_pretrained(folder)
    if config.num_labels < 2 or config.problem_type == "regression":
        raise ConfigError(
            f"reading classification.task: {folder.name} gives numbers, not classes (num_labels "
            f"{config.num_labels}, problem_type {config.problem_type}), expected two classes or "
            "more; use another checkpoint"
        )


def is_classifier(folder: Path) -> bool:
    """Tell by its config.json whether a checkpoint was saved by a class for classification.

    Raises:
        CheckpointError: the file is missing or unreadable.
    """
    names = read_json_object(folder / "config.json").get("architectures") or ()
    return any(str(name).endswith("ForAudioClassification") for name in names)
