"""Command options.

Options of `transcribe` are grouped by help panel. Typer derives an option's name from its field,
unless one is given here. Options that set a key have its name, with hyphens and without its unit.
"""

import functools
import inspect
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from corpus_asr.cli.failures import note
from corpus_asr.config.decoding import (
    PACKAGED_CHECKPOINT,
    AudioSettings,
    ComputeType,
    DecodingSettings,
    default_model_notice,
)
from corpus_asr.errors import ConfigError
from corpus_asr.formats.options import CUE_LIMITS, CueRules, ExportFormat, SubtitlePreset
from corpus_asr.logs import speaks_json

if TYPE_CHECKING:
    from corpus_asr.config.run import RunConfig
    from corpus_asr.config.storage_options import StorageOptions
    from corpus_asr.storage.stores.filesystem import StoreOptions


def store_options(output_uri: str, context: typer.Context) -> "StoreOptions":
    """Return the store options of an output folder, from the global `--storage-option`."""
    from corpus_asr.config.load import options_of_store
    from corpus_asr.storage.stores.filesystem import StoreOptions

    storage = options_of_store(context.obj or (), [output_uri], name="--storage-option")
    return StoreOptions(storage=storage)


def audio_options(storage_option: list[str] | None) -> "StorageOptions":
    """Return options for the store of a run's recordings."""
    from corpus_asr.config.load import options_of_store

    return options_of_store(storage_option or (), [], name="--audio-storage-option")


def config_file(example: str) -> Any:
    """Return the argument CONFIG."""
    return typer.Argument(metavar="CONFIG", help=f"A YAML file, {example}.")


def overrides_of(words: str) -> Any:
    """Return the option --set."""
    return typer.Option("--set", metavar="KEY=VALUE", help=words)


Config = Annotated[str, config_file("such as configs/podcasts.yaml")]
Overrides = Annotated[list[str] | None, overrides_of("Override a key, such as extract.part_s=300.")]
Local = Annotated[bool, typer.Option("--local", help="Run in this process, without Ray.")]
Redo = Annotated[
    str | None,
    typer.Option(
        "--redo",
        metavar="WHERE",
        help=(
            "Process recordings again with the current settings: a condition in SQL, such as "
            '"confidence < 0.5", or all; old results stay until new ones are complete.'
        ),
    ),
]
StealLock = Annotated[
    bool, typer.Option("--steal-lock", help="Take over a lock whose heartbeat stopped 90 s ago.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
OutputUri = Annotated[
    str, typer.Argument(metavar="OUTPUT_URI", help="The output.uri of a run, finished or not.")
]
StorageOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=VALUE",
        envvar="CORPUS_ASR_STORAGE_OPTIONS",
        help="Option of the store of OUTPUT_URI, as in output.storage_options: 'key=${NAME}'.",
    ),
]
AudioStorageOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=VALUE",
        help="Option of the recordings' store; default: those of the run that are not secret.",
    ),
]
Languages = Annotated[
    list[str] | None, typer.Option(help="Only segments in this language, such as en.")
]
Uris = Annotated[
    list[str] | None,
    typer.Option(metavar="PATTERN", help="Only recordings whose URI matches, as '*.mp3'."),
]
Speakers = Annotated[
    list[str] | None,
    typer.Option("--speaker", metavar="NAME", help="Only segments of this speaker, such as S1."),
]
DropKnownHallucinations = Annotated[
    bool,
    typer.Option(
        "--drop-known-hallucinations",
        help='Exclude segments of known hallucinations, such as "Thanks for watching!".',
    ),
]
NoCorrections = Annotated[
    bool,
    typer.Option("--no-corrections", help="The model's text, without corrections made in `view`."),
]
MinConfidence = Annotated[float, typer.Option(help="Minimum confidence of a segment, from 0 to 1.")]
MinSnr = Annotated[
    float | None,
    typer.Option(metavar="DB", help="Minimum decibels of a segment above the noise around it."),
]


def progress_lines() -> TextIO | None:
    """Return the stream of progress lines; None if stderr is JSON only."""
    return None if speaks_json() else sys.stderr


def print_result(data: object, words: str, *, as_json: bool) -> None:
    """Print a command's result, for people or as JSON."""
    typer.echo(json.dumps(data, indent=2, ensure_ascii=False) if as_json else words)


LARGER_OPTION = "--model small or large-v3"
CHECKPOINT_HELP = (
    "A name such as base, small, medium, turbo or large-v3, OWNER/NAME of the hub, a folder or a "
    f"URI; default to transcribe: {PACKAGED_CHECKPOINT}, of the package."
)
Model = Annotated[
    str | None,
    typer.Option(metavar="CHECKPOINT", help=CHECKPOINT_HELP),
]


def model_or_default(model: str | None, *, quiet: bool = False) -> str:
    """Return the given model, or the packaged one with a note."""
    if model is None and not quiet:
        note(default_model_notice(LARGER_OPTION))
    return model or PACKAGED_CHECKPOINT


def note_model_of(config: "RunConfig") -> None:
    """Print a note about the default model of a job without one."""
    if not config.model.is_named and config.model.recognizer is None:
        note(default_model_notice("model.checkpoint: small or large-v3"))


# Formats of `all`; jsonl is not an export format.
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
_subtitles = _in_panel("Subtitles")
_text = _in_panel("Text")
_speech = _in_panel("Speech and channels")
_speakers = _in_panel("Speakers")
_model = _in_panel("Model and machine")
_SECONDS = {"metavar": "SECONDS"}
# Yes, no, or the default of the settings.
_UNSET = {"show_default": False}

Files = Annotated[
    list[str] | None,
    typer.Argument(metavar="FILE", help="Files, folders, globs, URIs; - for standard input."),
]
FileOverrides = Annotated[
    list[str] | None,
    overrides_of(
        "Any other key of the sections decoding and extract, such as vad_threshold=0.3; "
        "num_speakers, min_speakers, max_speakers; slots, revision, calibration, allow_hosts; "
        f"limits of subtitles: {', '.join(CUE_LIMITS)}."
    ),
]


Preset = Annotated[
    SubtitlePreset | None,
    _subtitles(
        "Limits of a guide: netflix, netflix-children or bbc; none: one subtitle per segment; "
        "those of --set replace its own. Default: two lines of 42 characters, 7 s.",
        metavar="PRESET",
        case_sensitive=False,
    ),
]


def rules_of(preset: SubtitlePreset | None, keys: dict[str, Any]) -> CueRules:
    """Remove subtitle limits from the keys of --set, and return them as rules.

    Raises:
        ConfigError: they leave no room for text.
    """
    return CueRules(preset=preset, **{name: keys.pop(name) for name in CUE_LIMITS if name in keys})


def check_names(keys: Mapping[str, Any], names: Sequence[str]) -> None:
    """Reject keys of --set that are not in `names`.

    Raises:
        ConfigError: a key is unknown; suggests a known one.
    """
    from corpus_asr.config.load import name_hint

    for key in keys:
        if key not in names:
            hint = name_hint(key, names) or f"known here: {', '.join(names)}"
            raise ConfigError(f"reading --set {key}: unknown key; {hint}")


@dataclass(frozen=True, slots=True, kw_only=True)
class FileOptions:
    """Options of `transcribe` that are not setting keys."""

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
        ),
    ] = None
    overwrite: Annotated[
        bool,
        _output("--overwrite", "Transcribe recordings again that have their files in the folder."),
    ] = False
    subtitle_preset: Preset = None
    timestamps: Annotated[bool, _output("Print times before the text.")] = True
    highlight_words: Annotated[
        bool, _output("--highlight-words", "Underline the spoken word; includes --word-timestamps.")
    ] = False
    quiet: Annotated[bool, _output("--quiet", "-q", "Report errors only.")] = False
    verbose: Annotated[bool, _output("--verbose", "-v", "With -o: print the text as well.")] = False
    model: Annotated[
        str | None,
        _model(CHECKPOINT_HELP, metavar="CHECKPOINT"),
    ] = None
    align_model: Annotated[
        str | None,
        _model(
            "Parakeet CTC or Qwen3-ForcedAligner for word times; includes --word-timestamps.",
            metavar="CHECKPOINT",
        ),
    ] = None
    device: Annotated[str, _model("auto, cpu, cuda or cuda:N.")] = "auto"
    compute_type: Annotated[ComputeType, _model("Data type of weights and computation.")] = "auto"
    threads: Annotated[
        int | None, _model("CPU threads of the model; default: all CPUs.", min=1)
    ] = None
    text: Annotated[
        str | None,
        _text(
            "Text of the one FILE, to align: a text file, or - for standard input.",
            metavar="TEXT",
        ),
    ] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RecognitionOptions:
    """Options of `transcribe` that set a key of the same name; None means the default."""

    language: Annotated[
        str | None,
        _text("Language: de, German or Deutsch, or candidates: en,de; default: detected."),
    ] = None
    task: Annotated[str | None, _text("transcribe, or translate into English.")] = None
    strategy: Annotated[
        str | None,
        _text(
            "chunked (independent windows), sequential, or auto: chunked, or sequential with "
            "--condition-on-prev-tokens.",
        ),
    ] = None
    quality: Annotated[
        str | None, _text("fast, balanced or accurate: presets of the options below.")
    ] = None
    beam_size: Annotated[
        str | None,
        _text("Beams at temperature 0; 1 is greedy; default: auto, 5 where the text is uncertain."),
    ] = None
    temperature: Annotated[
        str | None,
        _text(
            "One, or several in order: 0,0.2,0.4; default: 0 to 1 in steps of 0.2.",
            metavar="NUMBERS",
        ),
    ] = None
    initial_prompt: Annotated[
        str | None, _text("Text to continue, for its style and spelling.")
    ] = None
    hotwords: Annotated[
        str | None, _text("Names and terms to prefer: A,B, or @FILE of one per line.")
    ] = None
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
            "mix, each (a transcript per channel), or the number of one from 0; default: "
            f"{_AUDIO.channels}.",
            metavar="CHANNELS",
        ),
    ] = None
    track: Annotated[
        str | None,
        _speech(
            "--audio-track",
            "Audio track, as of films: number from 1, language, or all; default: the default "
            "track, or another if that has no speech.",
            metavar="TRACK",
        ),
    ] = None
    vad_filter: Annotated[
        bool | None,
        _speech(
            "--vad-filter/--no-vad-filter",
            " /--no-vad",
            "Skip audio without speech (Silero VAD); default: on.",
            **_UNSET,
        ),
    ] = None
    diarize: Annotated[
        bool,
        _speakers(
            "--diarize", "Identify speakers, S1 and so on; includes --word-timestamps, to split "
            "segments where the speaker changes.",
        ),
    ] = False  # fmt: skip
    num_speakers: Annotated[
        int | None,
        _speakers("--num-speakers", "Number of speakers of each file, where it is known.", min=1),
    ] = None


def with_groups(command: Callable[..., None]) -> Callable[..., None]:
    """Return a Typer command in which each field of a dataclass is a parameter.

    `command` has one parameter per group of options.
    """
    command_parameters = inspect.signature(command).parameters
    groups: dict[str, Any] = {
        name: parameter.annotation
        for name, parameter in command_parameters.items()
        if is_dataclass(parameter.annotation)
    }
    parameters = []
    for name, parameter in command_parameters.items():
        flat = [parameter.replace(name=f.name, default=f.default, annotation=f.type)
                for f in fields(groups[name])] if name in groups else [parameter]  # fmt: skip
        parameters += [option.replace(kind=inspect.Parameter.KEYWORD_ONLY) for option in flat]

    @functools.wraps(command)
    def called(**values: Any) -> None:
        for name, group in groups.items():
            values[name] = group(
                **{option.name: values.pop(option.name) for option in fields(group)}
            )
        command(**values)

    # Typer reads these attributes.
    called.__dict__["__signature__"] = inspect.Signature(parameters)
    called.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return called
