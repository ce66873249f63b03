"""`corpus-asr check`: whether a checkpoint says here what it says in transformers.

In: a checkpoint and audio files. Out, for each file: both texts, and where they part. The classes
of both packages have the same names and are called in the same way: greedily, in float32, on the
same samples. Knows nothing of speech detection, fallback, or how recordings are cut.
"""

import importlib
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from corpus_asr.benchmark.engines import read_samples
from corpus_asr.errors import CheckpointError, ConfigError, install_words
from corpus_asr.families.loading import resolve_device
from corpus_asr.families.registry import Family, family_of, recognizer_class
from corpus_asr.models import auto
from corpus_asr.report.accuracy.scoring import aligned
from corpus_asr.report.text import duration, harmless, printable, row, wrapped
from corpus_asr.storage.model_files import fetch_checkpoint
from corpus_asr.storage.stores.uri import redact_uri
from corpus_asr.units import SAMPLE_RATE_HZ, WINDOW_S, counted

_THEIRS = "transformers"
_OURS = "corpus-asr"
# Of greedy search in one window; a checkpoint's own settings may ask for beams and timestamps.
_GREEDY = {"num_beams": 1, "do_sample": False, "return_dict_in_generate": True}
_MODEL_CLASSES = {
    "parakeet_ctc": "AutoModelForCTC",
    "parakeet_rnnt": "AutoModelForRNNT",
    "parakeet_tdt": "AutoModelForTDT",
}
_SEQ2SEQ = "AutoModelForSpeechSeq2Seq"
_WORDS_SHOWN = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenDifference:
    """Where two texts first have different tokens."""

    position: int
    """From 0."""
    transformers: str | None
    """None: its text has ended."""
    ours: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What both say of one file."""

    path: str
    duration_s: float
    compared_s: float
    """From the file's beginning."""
    equal: bool
    """Whether the texts are."""
    transformers: str
    ours: str
    words: tuple[tuple[str, str], ...]
    """Words that differ: those of transformers, and ours in their place."""
    num_tokens: int
    """Those of transformers."""
    first_token: TokenDifference | None
    features_difference: float
    """The largest of any feature; infinite where shapes differ."""
    scores_difference: float
    """The largest of any score after the same tokens; infinite where shapes differ."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """A checkpoint, compared on some files."""

    model: str
    transformers: str
    """Its version."""
    device: str
    files: tuple[Comparison, ...]

    @property
    def equal(self) -> bool:
        """Whether all texts are."""
        return all(each.equal for each in self.files)


def check(
    model: str, paths: Sequence[str], *, revision: str | None = None, device: str = "cpu"
) -> Check:
    """Compare what a checkpoint says of audio files here and in transformers.

    Raises:
        ConfigError: a package is missing or too old, or a file is.
        CheckpointError: one of the two cannot load the checkpoint.
    """
    for package in (_THEIRS, "jiwer"):
        if find_spec(package) is None:
            raise ConfigError(
                f"checking {model} against transformers: found no package {package}, expected it; "
                f"{install_words('bench')}"
            )
    for path in paths:
        if not Path(path).is_file():
            raise ConfigError(f"opening {path}: no such file; check the name")
    theirs = importlib.import_module(_THEIRS)
    where = resolve_device(device)
    folder = fetch_checkpoint(model, revision=revision)
    family = family_of(folder)
    with _quiet(theirs):
        readers = [
            _Reader.load(library, folder, family, where, version=theirs.__version__)
            for library in (theirs, auto)
        ]
        files = tuple(
            _compared(path, *readers, window_s=_window_s(family, folder)) for path in paths
        )
    return Check(model=model, transformers=theirs.__version__, device=str(where), files=files)


@contextmanager
def _quiet(library: Any) -> Iterator[None]:
    # It warns of defaults that are what is wanted here, and shows the progress of loading.
    logs = library.logging
    verbosity, bars = logs.get_verbosity(), logs.is_progress_bar_enabled()
    logs.set_verbosity_error()
    logs.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logs.set_verbosity(verbosity)
        if bars:
            logs.enable_progress_bar()


def _window_s(family: Family, folder: Path) -> float:
    """Return how much one window of a run holds: longer ones are not what it usually reads."""
    if family.recognizer is None:
        return WINDOW_S
    return recognizer_class(family).usual_window_s(str(folder))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Reader:
    """A checkpoint as loaded by one of the two packages."""

    name: str
    processor: Any
    model: Any

    @classmethod
    def load(
        cls, library: Any, folder: Path, family: Family, device: torch.device, *, version: str
    ) -> "_Reader":
        name = _OURS if library is auto else f"{_THEIRS} {version}"
        kind = _MODEL_CLASSES.get(family.model_type, _SEQ2SEQ)
        if not hasattr(library, kind):
            raise ConfigError(
                f"loading {folder} by {name}: it has no {kind}, expected a version that knows "
                f"{family.model_type}; pip install -U transformers"
            )
        try:
            model = getattr(library, kind).from_pretrained(folder, dtype=torch.float32)
            processor = library.AutoProcessor.from_pretrained(folder)
        except Exception as error:  # theirs may be of any kind
            if library is auto:
                raise
            raise CheckpointError(
                f"loading {folder} by {name}: {type(error).__name__}: {error}; name a checkpoint "
                "that transformers can load, with float weights, tokenizer and feature extractor"
            ) from error
        return cls(name=name, processor=processor, model=model.to(device).eval())

    def inputs(self, samples: np.ndarray) -> dict[str, Tensor]:
        found = self.processor(samples, sampling_rate=SAMPLE_RATE_HZ, return_tensors="pt")
        return {name: value.to(self.model.device) for name, value in found.items()}

    def tokens(self, inputs: dict[str, Tensor]) -> list[int]:
        """Search greedily, as far as there is a choice: CTC and transducers have no other way."""
        options = _GREEDY if self.model.config.model_type not in _MODEL_CLASSES else {}
        found = self.model.generate(**inputs, **options)
        sequences = getattr(found, "sequences", found)
        return [int(token) for token in sequences[0]]

    def text(self, tokens: Sequence[int]) -> str:
        ids = torch.tensor([tokens])
        (text,) = self.processor.batch_decode(ids, skip_special_tokens=True)
        return str(text)

    def token(self, tokens: Sequence[int], position: int) -> str | None:
        if position >= len(tokens):
            return None
        number = tokens[position]
        return f"{number} {self.processor.tokenizer.convert_ids_to_tokens(number)!r}"

    @torch.no_grad()
    def scores(self, inputs: dict[str, Tensor], tokens: Sequence[int]) -> Tensor:
        """Score what follows tokens: those of transformers, and a transducer's first."""
        config, read = self.model.config, None
        if config.model_type not in _MODEL_CLASSES:
            read = [config.decoder_start_token_id, *tokens][: config.max_target_positions]
        elif config.model_type != "parakeet_ctc":
            read = [config.blank_token_id]
        given: dict[str, Any] = {}
        if read is not None:
            given = {"decoder_input_ids": torch.tensor([read], device=self.model.device)}
        logits: Tensor = self.model(**inputs, **given).logits
        # The axis of a transducer's one token is there or not.
        return logits.reshape(-1, logits.shape[-1])


def _compared(path: str, theirs: _Reader, ours: _Reader, *, window_s: float) -> Comparison:
    samples = read_samples(path)
    part = samples[: round(window_s * SAMPLE_RATE_HZ)]
    given, own = theirs.inputs(part), ours.inputs(part)
    expected, found = theirs.tokens(given), ours.tokens(own)
    text, own_text = theirs.text(expected), ours.text(found)
    return Comparison(
        path=path,
        duration_s=len(samples) / SAMPLE_RATE_HZ,
        compared_s=len(part) / SAMPLE_RATE_HZ,
        equal=text == own_text,
        transformers=text,
        ours=own_text,
        words=tuple(differing_words(text, own_text)),
        num_tokens=len(expected),
        first_token=_first_difference(theirs, expected, ours, found),
        features_difference=_largest(given["input_features"], own["input_features"]),
        scores_difference=_largest(theirs.scores(given, expected), ours.scores(own, expected)),
    )


def differing_words(reference: str, text: str) -> Iterator[tuple[str, str]]:
    """Yield the words of a reference that a text has not, with those in their place."""
    expected, found = reference.split(), text.split()
    if not expected or not found:
        if expected or found:
            yield " ".join(expected), " ".join(found)
        return
    for chunk in aligned(expected, found).alignments[0]:
        if chunk.type != "equal":
            yield (
                " ".join(expected[chunk.ref_start_idx : chunk.ref_end_idx]),
                " ".join(found[chunk.hyp_start_idx : chunk.hyp_end_idx]),
            )


def _first_difference(
    theirs: _Reader, expected: Sequence[int], ours: _Reader, found: Sequence[int]
) -> TokenDifference | None:
    if expected == found:
        return None
    pairs = zip(expected, found, strict=False)
    shorter = min(len(expected), len(found))
    position = next((at for at, (one, other) in enumerate(pairs) if one != other), shorter)
    return TokenDifference(
        position=position,
        transformers=theirs.token(expected, position),
        ours=ours.token(found, position),
    )


def _largest(expected: Tensor, found: Tensor) -> float:
    if expected.shape != found.shape:
        return float("inf")
    return float((expected - found).abs().max()) if expected.numel() else 0.0


def render(result: Check) -> str:
    """Return a check as text."""
    return "\n".join(_lines(result))


def _lines(result: Check) -> Iterator[str]:
    yield (
        f"{printable(redact_uri(result.model))} here and in transformers {result.transformers}, "
        f"the reference: greedy, float32, {result.device}"
    )
    for each in result.files:
        cut = each.compared_s < each.duration_s
        of = f"the first {each.compared_s:g} s of {duration(each.duration_s)}" if cut else duration(
            each.duration_s
        )  # fmt: skip
        verdict = "equal" if each.equal else "different"
        yield f"{printable(each.path)}, {of}: {verdict}"
        yield from wrapped(each.transformers.strip(), label="reference")
        if not each.equal:
            yield from wrapped(each.ours.strip(), label="here")
        for number, (expected, found) in enumerate(each.words[:_WORDS_SHOWN]):
            pair = f"{expected or '(nothing)'} -> {found or '(nothing)'}"
            yield from wrapped(pair, label="" if number else "words")
        if len(each.words) > _WORDS_SHOWN:
            yield from wrapped(f"and {len(each.words) - _WORDS_SHOWN:,} more")
        if each.first_token is not None:
            first = each.first_token
            place = f"{first.position + 1:,} of {each.num_tokens:,}"
            tokens = f"{first.transformers or 'the end'} -> {first.ours or 'the end'}"
            yield row("first token", harmless(f"{place}: {tokens}"))
        most = f"features {each.features_difference:.1g}, scores {each.scores_difference:.1g}"
        yield row("differ by", f"at most: {most}")
    different = sum(not each.equal for each in result.files)
    found = f"{different:,} of {counted(len(result.files), 'text')} different"
    yield found if different else "all texts are equal"


def as_data(result: Check) -> dict[str, Any]:
    """Return a check as JSON has it; infinite differences are null."""
    data = asdict(result) | {"model": redact_uri(result.model), "equal": result.equal}
    for each in data["files"]:
        for name in ("features_difference", "scores_difference"):
            each[name] = None if each[name] == float("inf") else each[name]
    return data
