"""The options of `corpus-asr transcribe` and `align`, in groups, by the panels of their help.

Typer makes the name of an option from that of its field, unless one is given here. Those that set
a key have its name, with hyphens and without its unit.
"""

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from typing import Annotated, Any

import typer

from corpus_asr.cli.options import (
    CHECKPOINT_HELP,
    complete_checkpoint,
    complete_device,
    complete_format,
    complete_language,
    complete_option_override,
    complete_strategy,
    complete_task,
    overrides_of,
)
from corpus_asr.config.decoding import AudioSettings, ComputeType, DecodingSettings
from corpus_asr.formats.names import ExportFormat

# What `all` stands for; jsonl alone is no format of exports.
ALL_FORMATS = ("txt", "srt", "vtt", "tsv", "json", "jsonl", "lrc")
FORMATS = (*ALL_FORMATS, *(name.value for name in ExportFormat if name not in ALL_FORMATS))
ALL = "all"
_AUDIO, _DECODING = AudioSettings(), DecodingSettings()


def _in_panel(panel: str) -> Callable[..., Any]:
    def option(*names: str, **values: Any) -> Any:
        *declared, text = names
        return typer.Option(*declared, help=text, rich_help_panel=panel, **values)

    return option


_output = _in_panel("Output")
_text = _in_panel("Text")
_speech = _in_panel("Speech and channels")
_speakers = _in_panel("Speakers")
_model = _in_panel("Model and machine")
_SECONDS = {"metavar": "SECONDS"}
# Three values: yes, no, and as the settings have it.
_UNSET = {"show_default": False}

Files = Annotated[
    list[str],
    typer.Argument(metavar="FILE", help="Files, folders, globs, URIs; - for standard input."),
]
Language = Annotated[
    str | None,
    _text(
        "--language", "Language: en or English, or candidates: en,de; default: detected.",
        autocompletion=complete_language,
    ),
]  # fmt: skip
Overrides = Annotated[
    list[str] | None,
    overrides_of(
        "Any other key of the sections decoding and extract, slots, revision or calibration.",
        complete_option_override,
    ),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class FileOptions:
    """Options of each command that turns files into transcripts."""

    output_dir: Annotated[
        str | None,
        _output(
            "--output-dir",
            "-o",
            "Write files to this folder or URI; default: print the text.",
            metavar="DIR",
        ),
    ] = None
    formats: Annotated[
        list[str] | None,
        _output(
            "--format",
            "-f",
            f"{', '.join(FORMATS)}, or all for the first {len(ALL_FORMATS)}; "
            "several with commas or repeated; default: txt, with -o all.",
            metavar="FORMAT",
            autocompletion=complete_format,
        ),
    ] = None
    overwrite: Annotated[
        bool,
        _output("--overwrite", "Transcribe again, also what has its files in the folder already."),
    ] = False
    skip_existing: Annotated[
        bool,
        _output("--skip-existing", "Skip what has files of its name, whatever they were made of."),
    ] = False
    timestamps: Annotated[bool, _output("Print times before the text.")] = True
    max_line_width: Annotated[
        int | None, _output("Maximum characters per line of subtitles.", min=1)
    ] = None
    max_line_count: Annotated[
        int | None, _output("Maximum lines per subtitle; needs --max-line-width.", min=1)
    ] = None
    highlight_words: Annotated[
        bool, _output("--highlight-words", "Underline the spoken word; includes --word-timestamps.")
    ] = False
    quiet: Annotated[bool, _output("--quiet", "-q", "Report errors only.")] = False
    verbose: Annotated[bool, _output("--verbose", "-v", "With -o: print the text as well.")] = False
    model: Annotated[
        str | None,
        _model(CHECKPOINT_HELP, metavar="CHECKPOINT", autocompletion=complete_checkpoint),
    ] = None
    device: Annotated[str, _model("auto, cpu, cuda or cuda:N.", autocompletion=complete_device)] = (
        "auto"
    )
    compute_type: Annotated[ComputeType, _model("Data type of weights and computation.")] = "auto"
    threads: Annotated[
        int | None, _model("CPU threads of the model; default: all CPUs.", min=1)
    ] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RecognitionOptions:
    """Options of `transcribe` that set a key, by its name; None is the default of the settings."""

    language: Language = None
    task: Annotated[
        str | None, _text("transcribe, or translate into English.", autocompletion=complete_task)
    ] = None
    strategy: Annotated[
        str | None,
        _text(
            "sequential, or chunked: faster for long recordings, with more errors.",
            autocompletion=complete_strategy,
        ),
    ] = None
    beam_size: Annotated[
        int | None,
        _text(f"Beams at temperature 0; default: {_DECODING.beam_size}, which is greedy."),
    ] = None
    temperature: Annotated[
        str | None,
        _text(
            "One, or several to try in order: 0,0.2,0.4; default: 0 to 1 in 0.2.", metavar="NUMBERS"
        ),
    ] = None
    initial_prompt: Annotated[
        str | None, _text("Text to continue, for its style and spelling.")
    ] = None
    hotwords: Annotated[str | None, _text("Names and terms to expect.")] = None
    word_timestamps: Annotated[bool | None, _text("Compute the times of words.", **_UNSET)] = None
    condition_on_prev_tokens: Annotated[
        bool | None, _text("Prompt each window with the text before it.", **_UNSET)
    ] = None
    clip_timestamps: Annotated[
        str | None, _text("Only these clips: start,end,start,end...", **_SECONDS)
    ] = None
    channels: Annotated[
        str | None,
        _speech(
            "mix, each: a transcript per channel, or one's number from 0; "
            f"default: {_AUDIO.channels}.",
            metavar="CHANNELS",
        ),
    ] = None
    vad_filter: Annotated[
        bool | None,
        _speech(
            "--vad-filter/--no-vad-filter",
            " /--no-vad",
            "Skip what Silero finds no speech in; default: on.",
            **_UNSET,
        ),
    ] = None
    vad_threshold: Annotated[
        float | None,
        _speech(f"Probability at which speech begins; default: {_AUDIO.vad_threshold}."),
    ] = None
    vad_min_speech_s: Annotated[
        float | None,
        _speech(
            "--vad-min-speech",
            f"A shorter sound is no speech; default: {_AUDIO.vad_min_speech_s}.",
            **_SECONDS,
        ),
    ] = None
    vad_min_silence_s: Annotated[
        float | None,
        _speech(
            "--vad-min-silence",
            f"Silence that ends speech; default: {_AUDIO.vad_min_silence_s}.",
            **_SECONDS,
        ),
    ] = None
    vad_pad_s: Annotated[
        float | None,
        _speech(
            "--vad-pad",
            f"Audio kept before and after speech; default: {_AUDIO.vad_pad_s}.",
            **_SECONDS,
        ),
    ] = None
    diarize: Annotated[
        bool,
        _speakers(
            "--diarize", "Find who speaks, S1 and so on; includes --word-timestamps, to split "
            "segments where the speaker changes.",
        ),
    ] = False  # fmt: skip
    num_speakers: Annotated[int | None, _speakers("Exact number, if it is known.", min=1)] = None
    min_speakers: Annotated[int | None, _speakers("Minimum; default: 1.", min=1)] = None
    max_speakers: Annotated[int | None, _speakers("Maximum; default: 12.", min=1)] = None


def with_groups(command: Callable[..., None]) -> Callable[..., None]:
    """Return a command for Typer, to which each field of a dataclass is a parameter of its own.

    `command` has a parameter for each such group of options.
    """
    given = inspect.signature(command).parameters
    groups: dict[str, Any] = {
        name: each.annotation for name, each in given.items() if is_dataclass(each.annotation)
    }
    parameters = []
    for name, each in given.items():
        flat = [each.replace(name=f.name, default=f.default, annotation=f.type)
                for f in fields(groups[name])] if name in groups else [each]  # fmt: skip
        parameters += [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in flat]

    @functools.wraps(command)
    def called(**values: Any) -> None:
        for name, group in groups.items():
            values[name] = group(**{each.name: values.pop(each.name) for each in fields(group)})
        command(**values)

    # What Typer looks at.
    called.__dict__["__signature__"] = inspect.Signature(parameters)
    called.__annotations__ = {each.name: each.annotation for each in parameters}
    return called
