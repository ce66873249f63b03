"""Prompt format of a Whisper checkpoint: tokens, limits, prompts and language detection."""

from collections import defaultdict
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from corpus_asr.array_types import Float16
from corpus_asr.audio.parts import language_window_starts
from corpus_asr.config.decoding import DecodingSettings, check_english_only
from corpus_asr.decoding.jobs import Search, TokenRules, WindowJob, WindowResult
from corpus_asr.decoding.phrases import as_prompt, check_hotwords, forms
from corpus_asr.errors import CheckpointError, ConfigError
from corpus_asr.families.registry import family_of, resolve
from corpus_asr.languages import check_known
from corpus_asr.segments import Segment
from corpus_asr.transcription.windows import Language, PartRequest, frames_to_encode
from corpus_asr.transcription.words import AlignmentSpec, split_words, upper_half
from corpus_asr.units import FRAMES_PER_POSITION, WINDOW_FRAMES, WINDOW_S


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptFormat:
    """Token IDs of a checkpoint, and the prompts and rules built from them."""

    text: Callable[[Sequence[int]], str]
    """Converts token IDs to text, without timestamps and special tokens."""
    encode: Callable[[str], tuple[int, ...]]
    """Converts text after a space to token IDs; raises `ValueError` for control tokens."""
    spell: Callable[[str], tuple[int, ...]]
    """Converts text without a leading space to token IDs."""
    request: Callable[[str | None, str, bool], tuple[int, ...]]
    """Returns the prompt tokens for a language, a task and whether to produce timestamps."""
    end: int
    start: int
    start_of_previous: int
    no_speech: int | None
    no_timestamps: int
    timestamp_begin: int
    languages: Mapping[str, int]
    """Token ID by language code; empty for English-only checkpoints."""
    suppress: tuple[int, ...]
    suppress_first: tuple[int, ...]
    max_initial_timestamp: int | None
    max_target_positions: int
    alignment_heads: tuple[tuple[int, int], ...] = ()
    """Decoder layers and heads whose cross-attention follows the audio in time."""
    alignment_filter_width: int = 7
    """Width of the median filter over that cross-attention, in positions."""

    @classmethod
    def from_folder(cls, folder: Path) -> "PromptFormat":
        """Load a checkpoint's tokenizer and generation settings."""
        family = family_of(folder)
        config = resolve(family.config).from_pretrained(folder)
        generation = resolve(family.generation).from_pretrained(folder)
        tokenizer = resolve(family.tokenizer).from_pretrained(folder)
        if tokenizer.timestamp_begin >= config.vocab_size:
            raise CheckpointError(
                f"reading {folder}: found {config.vocab_size} tokens, expected timestamps from "
                f"{tokenizer.timestamp_begin}; use the tokenizer of the checkpoint"
            )
        return cls(
            text=tokenizer.decode_text,
            # After a space, as within a transcript; without the start-of-previous token.
            encode=lambda text: tuple(tokenizer.get_prompt_ids(text, return_tensors=None)[1:]),
            spell=lambda text: tuple(tokenizer(text, add_special_tokens=False).input_ids),
            request=tokenizer.prompt,
            end=tokenizer.eot,
            start=tokenizer.sot,
            start_of_previous=tokenizer.start_of_prev,
            no_speech=tokenizer.no_speech,
            no_timestamps=tokenizer.no_timestamps,
            timestamp_begin=tokenizer.timestamp_begin,
            languages=tokenizer.language_ids,
            suppress=tuple(generation.suppress_tokens or ()),
            suppress_first=tuple(generation.begin_suppress_tokens or ()),
            max_initial_timestamp=generation.initial_timestamp_bound,
            max_target_positions=config.max_target_positions,
            alignment_heads=_alignment_heads(folder, config, generation.alignment_heads),
            alignment_filter_width=config.median_filter_width,
        )

    def check(self, settings: DecodingSettings) -> None:
        """Reject settings that this checkpoint does not support, before any audio is read."""
        if self.languages:
            language = settings.language
            wanted = [language] if isinstance(language, str) else list(language)
            check_known(wanted, self.languages)
        else:
            check_english_only(settings)
        if settings.target_language is not None:
            raise ConfigError(
                "decoding.target_language: found it for Whisper, expected task: translate, into "
                "English; remove it"
            )
        if settings.window_s is not None and settings.window_s > WINDOW_S:
            raise ConfigError(
                f"decoding.window_s: found {settings.window_s:g}, but windows of Whisper are at "
                f"most {WINDOW_S} s; set it to less"
            )
        if settings.window_s is not None and not settings.in_chunks:
            raise ConfigError(
                f"decoding.window_s: found {settings.window_s:g}, but sequential windows are 30 "
                "s; remove it, or set decoding.strategy: chunked without condition_on_prev_tokens"
            )
        if settings.align and settings.task != "transcribe":
            raise ConfigError(
                f"decoding.align: found task {settings.task}, expected transcribe, since a "
                "translation has no word times; remove the task"
            )
        for name in ("initial_prompt", "prefix"):
            self.check_prompt(name, getattr(settings, name))
        if settings.hotwords_mode == "prompt":
            self.check_prompt("hotwords", as_prompt(settings.hotwords))
        else:
            check_hotwords(settings.hotwords, self.spellings)

    def check_prompt(self, name: str, text: str | None) -> None:
        """Reject a text that exceeds the prompt, naming its key."""
        if text is None:
            return
        try:
            count = len(self.encode(text))
        except ValueError as error:
            raise ConfigError(f"decoding.{name}: {error}") from error
        # Earlier text may lose its oldest tokens; hotwords and prefixes must fit completely.
        if name != "initial_prompt" and count > self.prompt_room:
            raise ConfigError(
                f"decoding.{name}: found {count} tokens, but this checkpoint has room for "
                f"{self.prompt_room}; shorten it"
            )

    @property
    def prompt_room(self) -> int:
        """Maximum number of prompt tokens for earlier text, hotwords or a prefix."""
        # As in openai-whisper: half of the decoder, minus the start-of-previous token.
        return self.max_target_positions // 2 - 1

    def prompt(
        self,
        language: str | None,
        task: str,
        previous: Sequence[int] = (),
        *,
        hotwords: Sequence[int] = (),
        prefix: Sequence[int] = (),
    ) -> tuple[tuple[int, ...], int]:
        """Return a window's prompt and the position of its start token.

        The newest tokens of earlier text are used, fewer with many hotwords. The prompt ends with
        the prefix.

        Source: faster-whisper 1.2, `get_prompt`.
        """
        # The prefix starts at 0.00 s: without this timestamp the model would generate one after it.
        timed_prefix = (self.timestamp_begin, *prefix) if prefix else ()
        start = (*self.request(language, task, True), *timed_prefix)
        # A quarter of the decoder is reserved for the window's text.
        room = self.max_target_positions * 3 // 4 - 1 - len(hotwords) - len(start)
        kept = tuple(previous)[max(0, len(previous) - max(0, min(self.prompt_room, room))) :]
        if not kept and not hotwords:
            return start, 0
        return (self.start_of_previous, *hotwords, *kept, *start), 1 + len(hotwords) + len(kept)

    def spellings(self, phrase: str) -> list[tuple[int, ...]]:
        """Return the token sequences of each spelling of a phrase in a text.

        Words follow a space; in scripts without letter case also without one.

        Raises:
            ValueError: the phrase has control tokens, or more tokens than a text.
        """
        spellings = [self.encode(form) for form in forms(phrase)]
        if phrase[0].lower() == phrase[0].upper():
            spellings.append(self.spell(phrase))
        longest = max(map(len, spellings))
        if longest > self.prompt_room:
            raise ValueError(
                f"found {longest} tokens in {phrase[:40]!r}, expected at most {self.prompt_room}; "
                "shorten it"
            )
        return spellings

    def alignment(self, language: str | None, task: str) -> AlignmentSpec:
        """Return how text in a language is aligned to time its words."""
        return AlignmentSpec(
            prompt=self.request(language, task, False),
            end=self.end,
            room=self.max_target_positions,
            heads=self.alignment_heads,
            filter_width=self.alignment_filter_width,
            frames_per_position=FRAMES_PER_POSITION,
            choices=self.end,
            spell=lambda tokens: split_words(tokens, self.text, language),
        )

    @property
    def text_rules(self) -> TokenRules:
        """Return the rules for text with timestamps."""
        return TokenRules(
            end=self.end,
            suppress=self.suppress,
            suppress_first=self.suppress_first,
            timestamp_begin=self.timestamp_begin,
            no_timestamps=self.no_timestamps,
            max_initial_timestamp=self.max_initial_timestamp,
        )

    def language_rules(self, among: Sequence[str]) -> TokenRules:
        """Return rules that restrict the first token to these languages."""
        return TokenRules(end=self.end, only=tuple(self.languages[code] for code in among))


def _alignment_heads(
    folder: Path, config: Any, given: Sequence[Sequence[int]] | None
) -> tuple[tuple[int, int], ...]:
    layers, heads = config.decoder_layers, config.decoder_attention_heads
    if not given:
        return upper_half(layers, heads)
    named = tuple((int(layer), int(head)) for layer, head in given)
    missing = [pair for pair in named if not (0 <= pair[0] < layers and 0 <= pair[1] < heads)]
    if missing:
        raise CheckpointError(
            f"reading the alignment heads of {folder}: found {list(missing[0])}, expected a layer "
            f"below {layers} and a head below {heads}; correct alignment_heads in "
            "generation_config.json, or remove it"
        )
    return named


LanguageWindow = tuple[tuple[int, ...], Float16[np.ndarray, "mel frame"], int | None]
"""A window for detection: its key within the task, features, and frames to encode or None."""


def given_language(prompt_format: PromptFormat, settings: DecodingSettings) -> Language | None:
    """Return the language if it is configured or the only one; None if it must be detected."""
    among = _choices(prompt_format, settings)
    if len(among) > 1:
        return None
    if among:
        return Language(code=among[0], probability=None)
    code = settings.language if isinstance(settings.language, str) else None
    return Language(code=code if prompt_format.languages else "en", probability=None)


def find_language(
    part: PartRequest, prompt_format: PromptFormat, settings: DecodingSettings
) -> Generator[WindowJob, WindowResult, Language]:
    """Detect the language of the recording, or of this part of it, unless it is configured.

    Detection uses windows of the first part with speech for all parts of a recording, so that the
    parts agree on any worker.
    """
    language = given_language(prompt_format, settings)
    if language is not None:
        return language
    windows: list[LanguageWindow]
    carried = part.language_features
    if settings.language_mode == "recording" and carried is not None:
        # Padded where they were cut, so they are encoded completely.
        clips = carried.reshape(-1, WINDOW_FRAMES, carried.shape[1])
        windows = [((-1, number), window.T, None) for number, window in enumerate(clips)]
    else:
        windows = _own_windows(part, settings)
    return (yield from ask_language(windows, prompt_format, settings))


def ask_language(
    windows: Sequence[LanguageWindow], prompt_format: PromptFormat, settings: DecodingSettings
) -> Generator[WindowJob, WindowResult, Language]:
    """Return the language with the highest mean probability over windows.

    Detection decodes one token, restricted to language tokens. Where the padding is auto, shortened
    windows of an uncertain language are also encoded whole.

    Source: Radford et al. 2022, section 2.3; openai-whisper `detect_language`, for one window.
    """
    among = _choices(prompt_format, settings)
    rules = prompt_format.language_rules(among)
    probabilities: list[np.ndarray] = []

    def ask(windows: Sequence[LanguageWindow]) -> Generator[WindowJob, WindowResult, Language]:
        for name, features, num_frames in windows:
            result = yield WindowJob(
                features=features,
                num_frames=num_frames,
                window=name,
                prompt=(prompt_format.start,),
                rules=rules,
                max_new_tokens=1,
                search=Search(keep_scores=True),
            )
            assert result.scores is not None, "scores were requested"
            scores = result.scores[0, list(rules.only)].double()
            probabilities.append(torch.softmax(scores, dim=0).numpy())
        means = np.mean(probabilities, axis=0).tolist()
        candidates = tuple(sorted(zip(among, means, strict=True), key=lambda pair: -pair[1]))
        return Language(code=candidates[0][0], probability=candidates[0][1], candidates=candidates)

    language = yield from ask(windows)
    if settings.padding_s == "auto" and language.is_uncertain:
        whole = [(name, features, None) for name, features, frames in windows if frames is not None]
        language = yield from ask(whole)
    return language


def spoken_most(segments: Sequence[Segment]) -> Language | None:
    """Return the language with the longest total duration; None without segments."""
    seconds: defaultdict[str | None, float] = defaultdict(float)
    weighted: defaultdict[str | None, float] = defaultdict(float)
    for segment in segments:
        length_s = segment.end_s - segment.start_s
        probability = segment.language_probability
        seconds[segment.language] += length_s
        weighted[segment.language] += length_s * (1.0 if probability is None else probability)
    if not seconds:
        return None
    code = max(seconds, key=lambda known: seconds[known])
    return Language(code=code, probability=weighted[code] / seconds[code])


def _choices(prompt_format: PromptFormat, settings: DecodingSettings) -> Sequence[str]:
    # Empty if no language is detected.
    if not prompt_format.languages:
        return ()
    if settings.language == "auto":
        return tuple(prompt_format.languages)
    return () if isinstance(settings.language, str) else settings.language


def _own_windows(part: PartRequest, settings: DecodingSettings) -> list[LanguageWindow]:
    speech = None if part.speech is None else [(span.start_s, span.end_s) for span in part.speech]
    # Whole where no speech was detected: what silence is taken for does not depend on its length.
    is_short = bool(speech) or settings.padding_s != "auto"
    padding_s = settings.first_padding_s if is_short else None
    end = part.num_frames
    windows: list[LanguageWindow] = []
    for start_s in language_window_starts(speech, start_s=part.start_s, end_s=part.end_s):
        start = part.frame(start_s)
        # Equal to the first window of sequential decoding unless padded differently.
        same = part.fits_one_window or start + WINDOW_FRAMES <= end
        # Windows shared by all parts are encoded completely, as their audio length is not known.
        frames = frames_to_encode(end - start, padding_s) if part.fits_one_window else None
        name = start, end if same else -1
        windows.append((name, part.window_in_silence(start, end), frames))
    return windows
