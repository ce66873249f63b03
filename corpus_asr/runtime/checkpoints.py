"""The checkpoints of a job: fetched, named, and found to fit together before any audio is read.

Free of torch: what only a loaded network shows is checked where it is loaded.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from corpus_asr.config.decoding import DecodingSettings, check_english_only
from corpus_asr.config.run import (
    CLASSIFY_AUDIO,
    ClassificationSettings,
    ModelSettings,
    RunConfig,
)
from corpus_asr.errors import CheckpointError, ConfigError
from corpus_asr.families.registry import (
    FAMILIES,
    USERS_FEATURES,
    Family,
    family_of,
    part_features,
    recognizer_class,
    resolve,
    users_family,
)
from corpus_asr.families.saved_files import read_json_object
from corpus_asr.languages import advise_codes, check_known
from corpus_asr.storage.model_files import fetch_checkpoint, full_name, model_revision
from corpus_asr.storage.stores.uri import redact_uri

if TYPE_CHECKING:  # reads tables
    from corpus_asr.storage.run_state.part_rows import ModelName


def model_name(model: ModelSettings) -> str:
    """Return the model name used in tables: its checkpoint, after a recognizer's name."""
    if model.recognizer is None:
        return full_name(model.checkpoint)
    return " ".join(filter(None, (model.recognizer, model.given_checkpoint)))


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A checkpoint of a known family, on this machine."""

    name: str
    """As configured: a folder, a URI or a hub name."""
    folder: Path
    family: Family
    hub_revision: str | None = None
    """Hub branch, tag or commit."""
    revision: str = ""
    """Hash of the weights; empty where only the small files are here."""
    by_language: Mapping[str, "Checkpoint"] = field(default_factory=dict)
    """Checkpoints that transcribe recordings in these languages instead."""
    aligner: "Checkpoint | None" = None
    """Checkpoint that times words instead of it."""

    @classmethod
    def fetch(cls, name: str, *, revision: str | None = None) -> "Checkpoint":
        """Fetch a checkpoint's small files, which suffice to check it before fetching weights."""
        folder = fetch_checkpoint(name, revision=revision, weights=False)
        return cls(name=name, folder=folder, family=family_of(folder), hub_revision=revision)

    @classmethod
    def of(cls, model: ModelSettings) -> "Checkpoint":
        """Fetch the small files of a job's model; a user's recognizer has none."""
        if model.recognizer is None:
            return cls.fetch(model.checkpoint, revision=model.revision)
        return cls(
            name=model_name(model),
            folder=Path(model.given_checkpoint or ""),
            family=users_family(model.recognizer),
        )

    @property
    def is_users(self) -> bool:
        """Whether it belongs to a user's recognizer, whose files only the recognizer knows."""
        return self.family.part_features == USERS_FEATURES

    @property
    def family_name(self) -> str:
        """Key of its calibration: the family, or the class of a user's recognizer."""
        return str(self.family.recognizer) if self.is_users else self.family.model_type

    def hashed(self) -> "Checkpoint":
        """Fetch the weights and set `revision`, their hash; a user's recognizer loads its own."""
        if self.is_users:
            return replace(self, revision=_users_revision(self))
        folder = fetch_checkpoint(self.name, revision=self.hub_revision)
        return replace(self, folder=folder, revision=model_revision(folder))

    @property
    def models_by_language(self) -> "dict[str, ModelName]":
        """Full name and weights' revision of each checkpoint of `by_language`."""
        return {code: (full_name(c.name), c.revision) for code, c in self.by_language.items()}

    @property
    def fingerprint(self) -> str:
        """Revisions of all weights, of `by_language` and `aligner` too, for the fingerprint."""
        revisions = [f"{code}={c.revision}" for code, c in sorted(self.by_language.items())]
        revisions += [] if self.aligner is None else [f"align={self.aligner.revision}"]
        return ",".join([self.revision, *revisions])

    @cached_property
    def config(self) -> Any:
        """Configuration object of the family, from config.json."""
        return resolve(self.family.config).from_pretrained(self.folder)

    @cached_property
    def language_ids(self) -> Mapping[str, int] | None:
        """Token ID of each language; empty if English-only, None if the family has none."""
        if self.family.tokenizer is None:
            return None
        tokenizer = resolve(self.family.tokenizer).from_pretrained(self.folder)
        return getattr(tokenizer, "language_ids", None)

    @cached_property
    def is_classifier(self) -> bool:
        """Whether config.json names an audio classification class."""
        names = read_json_object(self.folder / "config.json").get("architectures") or ()
        return any(str(name).endswith("ForAudioClassification") for name in names)


def _users_revision(checkpoint: Checkpoint) -> str:
    """Return a short hash of a user's recognizer: class, version, checkpoint, file names.

    File contents are not read, since only the recognizer knows which files it uses: it must change
    its `version` when its output changes.
    """
    version = recognizer_class(checkpoint.family).version
    parts = [checkpoint.family.recognizer, version, checkpoint.name]
    if checkpoint.folder != Path() and checkpoint.folder.is_dir():
        paths = sorted(path for path in checkpoint.folder.rglob("*") if path.is_file())
        parts += [f"{path.relative_to(checkpoint.folder)} {path.stat().st_size}" for path in paths]
    return hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()[:16]


def fetch_checkpoints(config: RunConfig, *, hashed: bool = True) -> Checkpoint:
    """Fetch a job's checkpoints; without `hashed`, only their small files.

    Raises:
        ConfigError: a checkpoint does not support the job, judged by its small files.
        CheckpointError: one cannot be fetched.
    """
    main = Checkpoint.of(config.model)
    if hashed and config.pipeline == CLASSIFY_AUDIO:
        _check_classifies(main, config.classification)
    elif hashed:
        check_transcribes(main, config.decoding.settings())
    names = {} if config.pipeline == CLASSIFY_AUDIO else config.model.by_language
    by_language = fetch_others(main, names)
    aligner = fetch_aligner(config.align.model)
    # Gigabytes are fetched only after all small files passed the checks.
    if hashed:
        main = main.hashed()
        by_language = {code: checkpoint.hashed() for code, checkpoint in by_language.items()}
        aligner = aligner and aligner.hashed()
    return replace(main, by_language=by_language, aligner=aligner)


def fetch_aligner(name: str | None) -> Checkpoint | None:
    """Fetch the small files of the word alignment checkpoint, if one is named.

    Raises:
        ConfigError: its family has no aligners.
    """
    if name is None:
        return None
    checkpoint = Checkpoint.fetch(name)
    if checkpoint.family.word_aligner is None:
        model_types = sorted(
            family.model_type for family in FAMILIES.values() if family.word_aligner
        )
        raise ConfigError(
            f"reading align.model: {redact_uri(name)} is of the family "
            f"{checkpoint.family.model_type}, expected an aligner ({', '.join(model_types)}); "
            "name one, such as nvidia/parakeet-ctc-0.6b, or remove it"
        )
    return checkpoint


def fetch_others(main: Checkpoint, others: Mapping[str, str]) -> dict[str, Checkpoint]:
    """Fetch the small files of per-language checkpoints, and check their compatibility."""
    if others:
        _check_detects(main, others)
    fetched = {}
    for code, name in others.items():
        try:
            checkpoint = Checkpoint.fetch(name)
            part_features(checkpoint.folder)  # raises for unsupported features
            check_transcribes(checkpoint, DecodingSettings(language=code))
        except (CheckpointError, ConfigError) as error:
            raise type(error)(f"model.by_language.{code}: {error}") from error
        fetched[code] = checkpoint
    return fetched


def _check_detects(main: Checkpoint, others: Mapping[str, str]) -> None:
    if not main.language_ids:
        raise ConfigError(
            f"reading model.by_language: found {redact_uri(main.name)} as model.checkpoint, "
            "expected a multilingual Whisper checkpoint; use one, such as base, or remove "
            "by_language"
        )
    if unknown := sorted(set(others) - set(main.language_ids)):
        raise ConfigError(
            f"reading model.by_language: found {', '.join(unknown)}, expected codes of languages "
            f"that model.checkpoint detects: {', '.join(sorted(main.language_ids))}; "
            f"{advise_codes(unknown, main.language_ids)}correct them"
        )


# Attributes that a tokenizer may lack.
_OF_TOKENIZERS = ("language", "language_mode", "task")


def check_transcribes(checkpoint: Checkpoint, decoding: DecodingSettings) -> None:
    """Raise an error for options that a checkpoint does not support, judged by its tokenizer."""
    plain = DecodingSettings()
    if all(getattr(decoding, key) == getattr(plain, key) for key in _OF_TOKENIZERS):
        return  # reading one takes 0.1 s
    if checkpoint.language_ids is None:
        return  # a family without language tokens is checked on loading
    if not checkpoint.language_ids:
        check_english_only(decoding, checkpoint=redact_uri(checkpoint.name))
        return
    wanted = [decoding.language] if isinstance(decoding.language, str) else decoding.language
    check_known(wanted, checkpoint.language_ids)


def _check_classifies(checkpoint: Checkpoint, classification: ClassificationSettings) -> None:
    if classification.task == "classify":
        _check_classes(checkpoint)
        return
    known_codes = () if checkpoint.is_classifier else tuple(checkpoint.language_ids or ())
    if not known_codes:
        raise ConfigError(
            f"reading classification.task: found language with {checkpoint.folder.name}, expected "
            "a multilingual Whisper checkpoint that transcribes; use one, or set task to classify"
        )
    if unknown := [code for code in classification.languages if code not in known_codes]:
        raise ConfigError(
            f"reading classification.languages: found {', '.join(unknown)}, expected languages of "
            f"the checkpoint: {', '.join(sorted(known_codes))}; correct them"
        )


def _check_classes(checkpoint: Checkpoint) -> None:
    if checkpoint.family.audio_classifier is None or not checkpoint.is_classifier:
        raise ConfigError(
            f"reading classification.task: found classify with {checkpoint.folder.name}, expected "
            "a WhisperForAudioClassification checkpoint; use one, or set task to language"
        )
    config = checkpoint.config
    if config.num_labels < 2 or config.problem_type == "regression":
        raise ConfigError(
            f"reading classification.task: {checkpoint.folder.name} has num_labels "
            f"{config.num_labels} and problem_type {config.problem_type}, expected two classes or "
            "more; use another checkpoint"
        )
