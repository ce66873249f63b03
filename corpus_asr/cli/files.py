"""`corpus-asr transcribe`: files in; text on standard output, or files in a folder.

Everything that can be wrong with options and texts is found before a model is loaded. Each
recording that is over is written at once, so that an interrupt costs those under way alone.
"""

import difflib
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Literal

import typer

from corpus_asr.cli.failures import EXIT_SOME_FAILED, note, readable_errors, say
from corpus_asr.cli.options import (
    ALL,
    ALL_FORMATS,
    FORMATS,
    FileOptions,
    FileOverrides,
    Files,
    RecognitionOptions,
    check_names,
    model_or_default,
    rules_of,
    with_groups,
)
from corpus_asr.config.decoding import ALL_TRACKS
from corpus_asr.errors import ConfigError, FetchError, ItemError
from corpus_asr.formats.options import CUE_LIMITS, JSON_LINES, WordStyle
from corpus_asr.runtime.shutdown import RunStoppedError
from corpus_asr.units import counted

if TYPE_CHECKING:
    from corpus_asr.cli.inputs import Input, Inputs
    from corpus_asr.cli.output_files import Layout, OutputFiles
    from corpus_asr.formats.transcript import Transcript
    from corpus_asr.runtime.in_flight import TranscriptionProgress
    from corpus_asr.runtime.transcriber import Transcriber
    from corpus_asr.storage.stores.filesystem import StoreOptions


# Says nothing where the text is known.
_OF_RECOGNITION = (
    "task", "strategy", "quality", "beam_size", "temperature", "initial_prompt", "hotwords",
    "word_timestamps", "condition_on_prev_tokens", "diarize",
)  # fmt: skip


@with_groups
def transcribe(
    files: Files = None,
    *,
    chosen: FileOptions,
    options: RecognitionOptions,
    overrides: FileOverrides = None,
) -> None:
    """Transcribe files, or align a known text with one: print it, or write subtitles and JSON."""
    with readable_errors():
        keys = keys_of(overrides, asdict(options) | {
            "beam_size": _number_or_word(options.beam_size),
            "temperature": _numbers(options.temperature),
            "channels": _number_or_word(options.channels),
            "track": _number_or_word(options.track),
            "diarize": options.diarize or None,
            "align_model": chosen.align_model,
        })  # fmt: skip
        formats = formats_of(chosen)
        if chosen.text is not None:
            _check_aligns(keys, formats)
        elif "rttm" in formats and not keys.get("diarize"):
            raise ConfigError(
                "writing rttm: found no --diarize, expected it for speaker turns; add it, or "
                "remove the format"
            )
        else:
            needs_words = chosen.highlight_words or "ctm" in formats or keys.get("diarize")
            needs_words = needs_words or "align_model" in keys
            if options.word_timestamps is not None or needs_words:
                wanted = chosen.highlight_words or options.word_timestamps is not False
                keys["word_timestamps"] = wanted
        rules = rules_of(chosen.subtitle_preset, keys)
        check_keys(keys)
        from corpus_asr.cli.output_files import Layout

        words = WordStyle.highlight if chosen.highlight_words else WordStyle.plain
        layout = Layout(formats=formats, rules=rules, words=words)
        if chosen.text is None:
            inputs, texts = checked_inputs(files or [], layout, chosen), None
        else:
            inputs, texts = input_with_text(files or [], chosen.text, layout, chosen)
        if not inputs.total:
            raise ConfigError(
                "transcribing: found no FILE, expected files, folders, globs or URIs, or - for "
                "standard input; name one"
            )
        work_on_files(inputs, layout, chosen, keys, texts)


def _check_aligns(keys: Mapping[str, Any], formats: Sequence[str]) -> None:
    from corpus_asr.config.options import translated

    if useless := [key for key in translated(keys) if key in _OF_RECOGNITION]:
        raise ConfigError(
            f"aligning --text: found {', '.join(useless)}, expected no options of recognition, "
            "since the words are known; remove them"
        )
    if "rttm" in formats:
        raise ConfigError(
            "writing rttm: found a text without speakers, expected speaker turns; remove the format"
        )


def _apart(keys: Mapping[str, Any]) -> Literal["", "channel", "track"]:
    if keys.get("channels") == "each":
        return "channel"
    return "track" if keys.get("track") == ALL_TRACKS else ""


def _number_or_word(text: str | None) -> int | str | None:
    return int(text) if text and text.isdecimal() else text


def _numbers(text: str | None) -> list[float] | None:
    try:
        return None if text is None else [float(number) for number in text.split(",")]
    except ValueError as error:
        raise ConfigError(
            f'reading --temperature: found "{text}", expected numbers with commas between, such as '
            "0 or 0,0.2,0.4; correct it"
        ) from error


# Arguments of `Transcriber` that --set reaches as well.
_OF_THE_MODEL = (
    "slots", "revision", "calibration", "by_language", "recognizer", "align_model", "allow_hosts",
)  # fmt: skip
# Of these, what changes nothing that is written.
_OF_NO_TEXT = ("slots", "allow_hosts")
# Formats in which several recordings may share stdout.
_PRINTED_FOR_MANY = ("txt", JSON_LINES)


def formats_of(chosen: FileOptions) -> tuple[str, ...]:
    """Return the formats of --format; the default for a folder is all."""
    choices = (*FORMATS, ALL)
    words = [word.strip().lower() for text in chosen.formats or () for word in text.split(",")]
    for word in words:
        if word not in choices:
            near = difflib.get_close_matches(word, choices, n=1, cutoff=0.5)
            meant = f"; did you mean {near[0]}?" if near else "; correct it"
            wanted = f"{', '.join(choices[:-1])} or {choices[-1]}"
            raise ConfigError(f"reading --format: found {word}, expected {wanted}{meant}")
    to_folder = chosen.output_dir is not None
    names = words or ([ALL] if to_folder else ["txt"])
    if ALL in names:
        names = [*ALL_FORMATS, *(word for word in names if word != ALL)]
    formats = tuple(dict.fromkeys(names))
    if not to_folder and len(formats) > 1:
        raise ConfigError(
            f"printing {', '.join(formats)}: found {len(formats)} formats, expected one on "
            "standard output; name a folder with --output-dir, such as -o ."
        )
    return formats


def checked_inputs(files: Sequence[str], layout: "Layout", chosen: FileOptions) -> "Inputs":
    """Return the recordings named by arguments; print errors for others."""
    from corpus_asr.cli.inputs import inputs_of

    inputs = inputs_of(files)
    first = layout.formats[0]
    if chosen.output_dir is None and first not in _PRINTED_FOR_MANY and len(inputs.found) > 1:
        raise ConfigError(
            f"printing {first}: found {len(inputs.found)} recordings, expected one on standard "
            "output; name a folder with --output-dir, or print txt or jsonl"
        )
    for problem in inputs.problems:
        say(problem)
    if inputs.num_ignored and inputs.found and not chosen.quiet:
        note(f"note: skipped {counted(inputs.num_ignored, 'file')} that are not audio")
    if inputs.num_dangling:
        note(f"note: skipped {counted(inputs.num_dangling, 'link')} with missing targets")
    return inputs


# Number of missing words to name in a note.
_NAMED = 12


def _missing(transcript: "Transcript") -> str:
    missing = transcript.missing or ()
    num_words = sum(len(segment.words or ()) for segment in transcript.segments)
    words = [word.word.strip() for word in missing[:_NAMED]]
    more = ", ..." if len(missing) > _NAMED else ""
    return (
        f"{len(missing):,} of {num_words + len(missing):,} words are not in the audio: "
        f"{', '.join(words)}{more}"
    )


def keys_of(overrides: Sequence[str] | None, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys of --set and of options, without those not given."""
    from corpus_asr.config.decoding import hotwords_from
    from corpus_asr.config.options import option_overrides

    values = {name: value for name, value in given.items() if value is not None}
    keys = option_overrides(overrides or ()) | values
    if str(keys.get("hotwords", "")).startswith("@"):
        try:
            listed = hotwords_from(keys["hotwords"], files=True)
        except ValueError as error:
            raise ConfigError(f"reading --hotwords: {error}") from error
        keys["hotwords"] = {hotword.phrase: hotword.weight for hotword in listed}
    return keys


def check_keys(keys: Mapping[str, Any]) -> None:
    """Reject invalid keys and values before anything is opened."""
    from corpus_asr.config.options import OPTION_NAMES, options_from, translated

    check_names(translated(keys), (*OPTION_NAMES, *_OF_THE_MODEL, *CUE_LIMITS))
    options_from({name: value for name, value in keys.items() if name not in _OF_THE_MODEL})


def _files_of(
    inputs: "Inputs",
    layout: "Layout",
    chosen: FileOptions,
    keys: Mapping[str, Any],
    texts: Mapping[str, str] | None,
    store: "StoreOptions",
) -> "OutputFiles | None":
    if chosen.output_dir is None:
        return None
    from corpus_asr.cli.output_files import OutputFiles
    from corpus_asr.storage.model_files import checkpoint_version, full_name

    checkpoint = model_or_default(chosen.model, quiet=True)
    model = {"model": full_name(checkpoint), "model_revision": checkpoint_version(checkpoint)}
    named_settings = {name: value for name, value in keys.items() if name not in _OF_NO_TEXT}
    made_by = {**model, "compute_type": chosen.compute_type, **named_settings}
    return OutputFiles(
        chosen.output_dir,
        inputs.found,
        layout,
        overwrite=chosen.overwrite,
        apart="" if texts is not None else _apart(keys),
        made_by=made_by,
        texts=texts,
        store=store,
    )


def _inputs_to_do(inputs: "Inputs", output: "OutputFiles | None", *, quiet: bool) -> "list[Input]":
    """Return the recordings whose files are missing or outdated."""
    if output is None:
        return inputs.found
    inputs_to_do = [recording for recording in inputs.found if not output.is_done(recording.name)]
    kept = len(inputs.found) - len(inputs_to_do)
    if kept and not quiet:
        which = "all files" if kept == len(inputs.found) else f"{kept} of {len(inputs.found)} files"
        again = "--overwrite transcribes again"
        note(f"note: {which} have their outputs in {output.folder}; {again}")
    return inputs_to_do


def work_on_files(
    inputs: "Inputs",
    layout: "Layout",
    chosen: FileOptions,
    keys: Mapping[str, Any],
    texts: Mapping[str, str] | None,
) -> None:
    """Load the model, work on all recordings, and exit with a code where some failed.

    `texts` are those of recordings by their names, where they are aligned.
    """
    from corpus_asr.cli.display import waiting
    from corpus_asr.storage.stores.filesystem import StoreOptions
    from corpus_asr.storage.stores.host_allowlist import HostRules

    store = StoreOptions(hosts=HostRules.of_call(keys.get("allow_hosts")))
    output = _files_of(inputs, layout, chosen, keys, texts, store)
    to_do = _inputs_to_do(inputs, output, quiet=chosen.quiet)
    counts_speakers = keys.get("num_speakers") is None
    results = FileResults(to_do, layout, output, chosen, counts_speakers=counts_speakers)
    if to_do:
        checkpoint = chosen.model
        if "recognizer" not in keys:
            checkpoint = model_or_default(chosen.model, quiet=chosen.quiet)
        arguments = {"device": chosen.device, "compute_type": chosen.compute_type,
                     "num_threads": chosen.threads, **keys}  # fmt: skip
        name = checkpoint or keys["recognizer"]
        with waiting(f"loading {name} ...", shown=not chosen.quiet):
            from corpus_asr.runtime.transcriber import Transcriber

            loaded = Transcriber.from_pretrained(checkpoint, **arguments)
        with loaded:
            results.work(loaded, texts)
    failed = len(inputs.problems) + results.num_failed
    if failed:
        say(f"{failed:,} of {counted(inputs.total, 'file')} failed")
        raise typer.Exit(EXIT_SOME_FAILED)


class FileResults:
    """Transcribes recordings, writes and prints their transcripts, and counts results."""

    def __init__(
        self,
        inputs: "list[Input]",
        layout: "Layout",
        output: "OutputFiles | None",
        chosen: FileOptions,
        *,
        counts_speakers: bool = False,
    ) -> None:
        """`counts_speakers`: the number of speakers is an estimate, and noted."""
        from corpus_asr.cli.display import Meter, TextPrinter, display_of

        self.num_failed = 0
        self._inputs = {recording.name: recording for recording in inputs}
        self._layout = layout
        self._output = output
        self._quiet, self._counts_speakers = chosen.quiet, counts_speakers
        self._meter = Meter([*self._inputs])
        self._display = display_of(self._meter, shown=not chosen.quiet)
        self._printer = None
        if chosen.verbose if output else layout.formats == ("txt",):
            self._printer = TextPrinter([*self._inputs], self._display, times=chosen.timestamps)

    def work(self, loaded: "Transcriber", texts: Mapping[str, str] | None) -> None:
        """Process the transcripts of all recordings; failures are counted."""
        from corpus_asr.runtime.terminal import is_terminal

        calls: dict[str, Any] = {"on_error": self._failed, "on_progress": self._progressed}
        if texts is None:
            transcripts = loaded.transcribe_many(
                (recording.audio for recording in self._inputs.values()),
                on_segment=None if self._printer is None else self._printer.add,
                **calls,
            )
        else:
            pairs = ((recording.audio, texts[name]) for name, recording in self._inputs.items())
            transcripts = loaded.align_many(pairs, **calls)
        self._meter.begin()
        with self._display:
            try:
                for transcript in transcripts:
                    self._finished(transcript)
            except KeyboardInterrupt as interrupt:
                if self._printer is not None:
                    self._printer.end_early()
                raise self._interrupted(interrupt) from None
            finally:
                if self._output is not None:
                    self._output.close()
        done = self._meter.num_finished - self.num_failed
        if done and (self._output is not None or is_terminal(sys.stderr)):
            self._tell(self._meter.summary(done))

    def _progressed(self, progress: "TranscriptionProgress") -> None:
        self._meter.update(
            progress.uri, done_s=progress.transcribed_s, length_s=progress.duration_s
        )

    def _failed(self, name: str, error: ItemError) -> None:
        self.num_failed += 1
        self._meter.finish(name, None)
        if self._printer is not None:
            self._printer.end(name)
        say(str(error))

    def _finished(self, transcript: "Transcript") -> None:
        from corpus_asr.report.text import duration
        from corpus_asr.storage.stores.uri import redact_uri

        name = transcript.uri or ""
        self._meter.finish(name, transcript.duration_s)
        transcripts = transcript.channels or (transcript,)
        if self._output is not None:
            # Channels are one file as a dialogue, and one file each. Tracks have the same content
            # in different languages.
            of_tracks = bool(transcript.channels and transcript.audio_tracks)
            files = [*transcript.channels] if of_tracks else [transcript, *transcript.channels]
            self._tell(f"{redact_uri(name)}: {self._output.write(name, transcript, files)}")
        if self._printer is not None:
            self._printer.end(name, transcripts)
        elif self._output is None:
            with self._display.aside():
                # Files cannot be concatenated, except JSON Lines.
                by_line = self._layout.formats == (JSON_LINES,)
                for part in transcripts if by_line else (transcript,):
                    for _, content in self._layout.contents(part, self._inputs[name].shown_uri):
                        sys.stdout.write(content.decode())
                sys.stdout.flush()
        if remark := _of_file(transcript):
            self._tell(f"note: {redact_uri(name)}: {remark}")
        speakers = {turn.speaker for part in transcripts for turn in part.turns or ()}
        if speakers and self._counts_speakers:
            number = counted(len(speakers), "speaker")
            self._tell(f"note: {redact_uri(name)}: {number}; if that is wrong: --num-speakers")
        if transcript.missing:
            self._tell(f"note: {redact_uri(name)}: {_missing(transcript)}")
        if transcript.extra_words:
            number = counted(transcript.extra_words, "word")
            self._tell(f"note: {redact_uri(name)}: {number} recognized that are not in the text")
        if without_s := sum(part.speech_without_text_s or 0.0 for part in transcripts):
            seconds = duration(without_s)
            self._tell(f"note: {redact_uri(name)}: {seconds} of detected speech have no text")
        elif not any(part.segments for part in transcripts):
            searched = duration(transcript.duration_s)
            self._tell(f"note: {redact_uri(name)}: no speech found in {searched}")

    def _tell(self, words: str) -> None:
        if not self._quiet:
            note(words)

    def _interrupted(self, interrupt: KeyboardInterrupt) -> RunStoppedError:
        number = getattr(interrupt, "signal_number", signal.SIGINT)
        done = self._meter.num_finished - self.num_failed
        of = counted(len(self._inputs), "recording")
        kept = f"; the files of {done:,} of {of} are written: run the same command again for the "
        kept += "others"
        name = signal.Signals(number).name
        how = "interrupted" if number == signal.SIGINT else f"stopped by {name}"
        return RunStoppedError(how + (kept if self._output else ""), signal_number=number)


def _of_file(transcript: "Transcript") -> str:
    """Return remarks about unusual properties of a file; empty without any."""
    remarks = []
    if tracks := transcript.audio_tracks:
        named = ", ".join(f"{number} {name}".rstrip() for number, name in enumerate(tracks, 1))
        taken, silent = transcript.audio_track, transcript.silent_tracks
        took = "took all" if taken is None else f"took {taken}"
        if silent:
            took += f", without speech in {' and '.join(map(str, silent))}"
        remarks.append(f"{len(tracks)} audio tracks ({named}): {took}")
    if corrections := transcript.time_corrections:
        places = counted(corrections, "place")
        remarks.append(f"its times or lengths were wrong in {places}, and are corrected")
    return "; ".join(remarks)


_STDIN = "-"


def input_with_text(
    files: Sequence[str], text: str, layout: "Layout", chosen: FileOptions
) -> "tuple[Inputs, Mapping[str, str]]":
    """Return the recording and its text by its name; a text that cannot be read is a problem."""
    from corpus_asr.storage.stores.uri import normalize

    if text == _STDIN and text in files:
        raise ConfigError(
            "reading -: found it as audio and as text, expected one of them; name a file for the "
            "second"
        )
    inputs = checked_inputs(files, layout, chosen)
    if inputs.total > 1:
        raise ConfigError(
            f"aligning {text}: found one text for {inputs.total:,} recordings, expected one "
            "recording; align several by a job with decoding.align, or in Python"
        )
    texts: dict[str, str] = {}
    for recording in list(inputs.found):
        try:
            texts[recording.name] = _read(text if text == _STDIN else normalize(text))
        except (ConfigError, FetchError) as error:
            say(str(error))
            inputs.problems.append(str(error))
            inputs.found.remove(recording)
    return inputs, texts


def _read(place: str) -> str:
    if place == _STDIN:
        data = sys.stdin.buffer.read()
    else:
        from corpus_asr.storage.stores.filesystem import read_bytes

        data = read_bytes(place)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"reading the text {place}: found bytes that are not UTF-8 (at {error.start}), "
            "expected UTF-8; convert it (iconv -t utf-8)"
        ) from error
