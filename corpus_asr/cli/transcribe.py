"""`corpus-asr transcribe`: files in; text on standard output, or files in a folder.

Everything that can be wrong with the options is found before a model is loaded. Each recording that
is over is written at once, so that an interrupt costs those under way alone.
"""

from typing import TYPE_CHECKING, Any

from corpus_asr.cli import transcribe_options as options
from corpus_asr.cli.failures import readable_errors
from corpus_asr.cli.file_results import (
    OF_THE_MODEL,
    FileResults,
    checked_inputs,
    existing_of,
    formats_of,
    inputs_to_do,
    layout_of,
    made_by,
    work_on_files,
)
from corpus_asr.errors import ConfigError
from corpus_asr.runtime.shutdown import ended_by_sigterm

if TYPE_CHECKING:
    from collections.abc import Iterator

    from corpus_asr.formats.transcript import Transcript
    from corpus_asr.runtime.transcriber import Transcriber

_EACH = "each"


def transcribe(
    files: options.Files,
    output_dir: options.OutputDir = None,
    formats: options.Formats = None,
    overwrite: options.Overwrite = False,
    skip_existing: options.SkipExisting = False,
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
        of_model = {name: keys.pop(name) for name in OF_THE_MODEL if name in keys}
        chosen = formats_of(formats, to_folder=output_dir is not None)
        if "rttm" in chosen and not keys.get("diarize"):
            raise ConfigError(
                "writing rttm: found no --diarize, expected it: the file holds who speaks when; "
                "add it, or leave out the format"
            )
        needs_words = highlight_words or "ctm" in chosen or keys.get("diarize")
        if word_timestamps is not None or needs_words:
            keys["word_timestamps"] = highlight_words or word_timestamps is not False
        options_from(keys)
        layout = layout_of(
            chosen,
            max_line_width=max_line_width,
            max_line_count=max_line_count,
            highlight_words=highlight_words,
        )
        inputs = checked_inputs(files, layout, to_folder=output_dir is not None, quiet=quiet)
        output = None
        if output_dir is not None:
            from corpus_asr.cli.output_files import OutputFiles

            output = OutputFiles(
                output_dir,
                inputs.found,
                layout,
                existing=existing_of(overwrite=overwrite, skip=skip_existing),
                channels_apart=keys.get("channels") == _EACH,
                made_by=made_by(model, compute_type, of_model | keys),
            )
        left = inputs_to_do(inputs, output, quiet=quiet)
        prints_text = verbose if output else layout.formats == ("txt",)
        results = FileResults(
            left, layout, output, prints_text=prints_text, times=timestamps, quiet=quiet
        )

        def transcribed(loaded: "Transcriber", **calls: Any) -> "Iterator[Transcript]":
            return loaded.transcribe_many((each.audio for each in left), **calls)

        work_on_files(
            inputs,
            results,
            transcribed,
            checkpoint=model,
            arguments={"device": device, "compute_type": compute_type, "num_threads": threads}
            | of_model
            | keys,
            quiet=quiet,
        )


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
