"""`corpus-asr transcribe`: files in; text on standard output, or files in a folder.

Everything that can be wrong with the options is found before a model is loaded. Each recording that
is over is written at once, so that an interrupt costs those under way alone.
"""

import difflib
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import typer

from corpus_asr.cli import transcribe_options as options
from corpus_asr.cli.failures import EXIT_SOME_FAILED, note, readable_errors, say
from corpus_asr.cli.options import model_or_default
from corpus_asr.errors import ConfigError, ItemError
from corpus_asr.runtime.shutdown import RunStoppedError, ended_by_sigterm

if TYPE_CHECKING:
    from corpus_asr.cli.inputs import Input, Inputs
    from corpus_asr.cli.output_files import Layout, OutputFiles
    from corpus_asr.formats.transcript import Transcript
    from corpus_asr.runtime.transcriber import Transcriber, TranscriptionProgress
    from corpus_asr.segments import Segment

_EACH = "each"
# What stdout may hold of several recordings.
_PRINTED_FOR_MANY = ("txt", "jsonl")
# Arguments of `Transcriber` that --set reaches as well.
_OF_THE_MODEL = ("slots", "revision", "calibration", "by_language")


def transcribe(
    files: options.Files,
    output_dir: options.OutputDir = None,
    formats: options.Formats = None,
    overwrite: options.Overwrite = False,
    timestamps: options.Timestamps = True,
    max_line_width: options.MaxLineWidth = None,
    max_line_count: options.MaxLineCount = None,
    highlight_words: options.HighlightWords = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    model: options.Model = None,
    device: options.Device = "auto",
    compute_type: options.ComputeType = "auto",
    threads: options.Threads = None,
    language: options.Language = None,
    task: options.Task = None,
    strategy: options.Strategy = None,
    beam_size: options.BeamSize = None,
    temperature: options.Temperature = None,
    initial_prompt: options.InitialPrompt = None,
    hotwords: options.Hotwords = None,
    word_timestamps: options.WordTimestamps = None,
    condition_on_prev_tokens: options.ConditionOnPrevTokens = None,
    clip_timestamps: options.ClipTimestamps = None,
    channels: options.Channels = None,
    vad_filter: options.VadFilter = None,
    vad_threshold: options.VadThreshold = None,
    vad_min_speech: options.VadMinSpeech = None,
    vad_min_silence: options.VadMinSilence = None,
    vad_pad: options.VadPad = None,
    diarize: options.Diarize = False,
    num_speakers: options.NumSpeakers = None,
    min_speakers: options.MinSpeakers = None,
    max_speakers: options.MaxSpeakers = None,
    overrides: options.Overrides = None,
) -> None:
    """Transcribe files: print the text as it comes, or write subtitles, text and JSON."""
    with readable_errors(), ended_by_sigterm():
        from corpus_asr.config.options import option_overrides, options_from

        given = {
            "language": _listed(language),
            "task": task,
            "strategy": strategy,
            "beam_size": beam_size,
            "temperature": _numbers(temperature),
            "initial_prompt": initial_prompt,
            "hotwords": hotwords,
            "condition_on_prev_tokens": condition_on_prev_tokens,
            "clip_timestamps": clip_timestamps,
            "channels": int(channels) if channels and channels.isdecimal() else channels,
            "vad_filter": vad_filter,
            "vad_threshold": vad_threshold,
            "vad_min_speech_s": vad_min_speech,
            "vad_min_silence_s": vad_min_silence,
            "vad_pad_s": vad_pad,
            "diarize": diarize or None,
            "num_speakers": num_speakers,
            "min_speakers": min_speakers,
            "max_speakers": max_speakers,
        }
        keys = option_overrides(overrides or ())
        keys |= {name: value for name, value in given.items() if value is not None}
        of_model = {name: keys.pop(name) for name in _OF_THE_MODEL if name in keys}
        chosen = _formats(formats, to_folder=output_dir is not None)
        if "rttm" in chosen and not keys.get("diarize"):
            raise ConfigError(
                "writing rttm: found no --diarize, expected it: the file holds who speaks when; "
                "add it, or leave out the format"
            )
        needs_words = highlight_words or "ctm" in chosen or keys.get("diarize")
        if word_timestamps is not None or needs_words:
            keys["word_timestamps"] = highlight_words or word_timestamps is not False
        options_from(keys)
        layout = _layout(
            chosen,
            max_line_width=max_line_width,
            max_line_count=max_line_count,
            highlight_words=highlight_words,
        )
        inputs = _inputs(files, layout, to_folder=output_dir is not None, quiet=quiet)
        output = None
        if output_dir is not None:
            from corpus_asr.cli.output_files import OutputFiles

            output = OutputFiles(
                output_dir,
                inputs.found,
                layout,
                overwrite=overwrite,
                channels_apart=keys.get("channels") == _EACH,
            )
        left = _to_do(inputs, output, quiet=quiet)
        prints_text = verbose if output else layout.formats == ("txt",)
        results = _Results(
            left, layout, output, prints_text=prints_text, times=timestamps, quiet=quiet
        )
        if left:
            checkpoint = model_or_default(model, quiet=quiet)
            arguments = {"device": device, "compute_type": compute_type, "num_threads": threads}
            with ExitStack() as stack:
                stack.enter_context(results.counting())
                loading = _loaded(checkpoint, {**arguments, **of_model, **keys}, quiet=quiet)
                results.work(stack.enter_context(loading))
        failed = len(inputs.problems) + results.num_failed
        if failed:
            say(f"{failed} of {inputs.total} files failed")
            raise typer.Exit(EXIT_SOME_FAILED)


def _listed(text: str | None) -> str | list[str] | None:
    return text.split(",") if text and "," in text else text


def _numbers(text: str | None) -> list[float] | None:
    try:
        return None if text is None else [float(number) for number in text.split(",")]
    except ValueError as error:
        raise ConfigError(
            f'reading --temperature: found "{text}", expected numbers with commas between, such as '
            "0 or 0,0.2,0.4; correct it"
        ) from error


def _formats(given: Sequence[str] | None, *, to_folder: bool) -> tuple[str, ...]:
    known = (*options.FORMATS, options.ALL)
    words = [word.strip().lower() for text in given or () for word in text.split(",")]
    for word in words:
        if word not in known:
            near = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
            meant = f"; did you mean {near[0]}?" if near else "; correct it"
            raise ConfigError(f"reading --format: found {word}, expected {_or(known)}{meant}")
    chosen = words or ([options.ALL] if to_folder else ["txt"])
    if options.ALL in chosen:
        chosen = [*options.ALL_FORMATS, *(word for word in chosen if word != options.ALL)]
    found = tuple(dict.fromkeys(chosen))
    if not to_folder and len(found) > 1:
        raise ConfigError(
            f"printing {', '.join(found)}: found {len(found)} formats, expected one for standard "
            "output; name a folder with --output-dir, such as -o ."
        )
    return found


def _or(words: Sequence[str]) -> str:
    return f"{', '.join(words[:-1])} or {words[-1]}"


def _layout(
    formats: tuple[str, ...],
    *,
    max_line_width: int | None,
    max_line_count: int | None,
    highlight_words: bool,
) -> "Layout":
    from corpus_asr.cli.output_files import Layout
    from corpus_asr.formats.cues import CueRules
    from corpus_asr.formats.writers import WordStyle

    return Layout(
        formats=formats,
        rules=CueRules(max_line_width=max_line_width, max_line_count=max_line_count),
        words=WordStyle.highlight if highlight_words else WordStyle.plain,
    )


def _inputs(files: Sequence[str], layout: "Layout", *, to_folder: bool, quiet: bool) -> "Inputs":
    from corpus_asr.cli.inputs import inputs_of
    from corpus_asr.units import counted

    inputs = inputs_of(files)
    first = layout.formats[0]
    if not to_folder and first not in _PRINTED_FOR_MANY and len(inputs.found) > 1:
        raise ConfigError(
            f"printing {first}: found {len(inputs.found)} recordings, expected one for standard "
            "output; name a folder with --output-dir, or print txt or jsonl"
        )
    for problem in inputs.problems:
        say(problem)
    if inputs.num_excluded and inputs.found and not quiet:
        note(f"note: skipped {counted(inputs.num_excluded, 'file')} of other kinds, by their names")
    return inputs


def _to_do(inputs: "Inputs", output: "OutputFiles | None", *, quiet: bool) -> "list[Input]":
    if output is None:
        return inputs.found
    left = [each for each in inputs.found if not output.is_done(each.name)]
    kept = len(inputs.found) - len(left)
    if kept and not quiet:
        which = "all files" if kept == len(inputs.found) else f"{kept} of {len(inputs.found)} files"
        note(f"note: {which} have their outputs in {output.folder}; --overwrite replaces them")
    return left


@contextmanager
def _loaded(checkpoint: str, arguments: dict[str, Any], *, quiet: bool) -> "Iterator[Transcriber]":
    from corpus_asr.cli.display import waiting

    with waiting(f"loading {checkpoint} ...", shown=not quiet):
        from corpus_asr.runtime.transcriber import Transcriber

        loaded = Transcriber.from_pretrained(checkpoint, **arguments)
    with loaded:
        yield loaded


class _Results:
    """What becomes of recordings: they are transcribed, written, printed and counted."""

    def __init__(
        self,
        inputs: "list[Input]",
        layout: "Layout",
        output: "OutputFiles | None",
        *,
        prints_text: bool,
        times: bool,
        quiet: bool,
    ) -> None:
        from corpus_asr.cli.display import Display, Meter, TextPrinter

        self.num_failed = 0
        self._inputs = {each.name: each for each in inputs}
        self._layout = layout
        self._output = output
        self._quiet = quiet
        self._meter = Meter([*self._inputs])
        self._display = Display(self._meter, shown=not quiet)
        self._printer = None
        if prints_text:
            self._printer = TextPrinter([*self._inputs], self._display, times=times)

    def counting(self) -> AbstractContextManager[None]:
        """Find out meanwhile how much audio there is."""
        from corpus_asr.cli.display import lengths_of

        uris = {name: each.uri for name, each in self._inputs.items() if not each.piped}
        # A single one is opened at once.
        return nullcontext() if self._quiet or len(uris) < 2 else lengths_of(self._meter, uris)

    def work(self, loaded: "Transcriber") -> None:
        """Transcribe all recordings; those that fail are counted."""
        from corpus_asr.cli.display import is_terminal

        found = loaded.transcribe_many(
            (each.audio for each in self._inputs.values()),
            on_error=self._failed,
            on_progress=self._progressed,
            on_segment=None if self._printer is None else self._said,
        )
        with self._display:
            try:
                for transcript in found:
                    self._finished(transcript)
            except KeyboardInterrupt as interrupt:
                if self._printer is not None:
                    self._printer.end_early()
                raise self._interrupted(interrupt) from None
        done = self._meter.num_finished - self.num_failed
        if done and (self._output is not None or is_terminal(sys.stderr)):
            self._tell(self._meter.summary(done))

    def _progressed(self, progress: "TranscriptionProgress") -> None:
        self._meter.update(
            progress.uri, done_s=progress.transcribed_s, length_s=progress.duration_s
        )

    def _said(self, name: str, segment: "Segment") -> None:
        assert self._printer is not None, "segments are asked for to be printed"
        self._printer.add(name, segment)

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
            self._tell(f"{redact_uri(name)}: {self._output.write(name, transcripts)}")
        if self._printer is not None:
            self._printer.end(name, transcripts)
        elif self._output is None:
            with self._display.aside():
                for each in transcripts:
                    for _, text in self._layout.texts(each, self._inputs[name].shown_uri):
                        sys.stdout.write(text)
                sys.stdout.flush()
        if not any(each.segments for each in transcripts):
            searched = duration(transcript.duration_s)
            self._tell(f"note: {redact_uri(name)}: no speech found in {searched}")

    def _tell(self, words: str) -> None:
        if not self._quiet:
            note(words)

    def _interrupted(self, interrupt: KeyboardInterrupt) -> RunStoppedError:
        number = getattr(interrupt, "signal_number", signal.SIGINT)
        done = self._meter.num_finished - self.num_failed
        kept = f"; the files of {done} of {len(self._inputs)} recordings are written: run the same "
        kept += "command again for the others"
        how = "interrupted" if number == signal.SIGINT else "stopped by SIGTERM"
        return RunStoppedError(how + (kept if self._output else ""), signal_number=number)
