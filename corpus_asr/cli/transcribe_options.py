"""The options of `corpus-asr transcribe`, by the panels of its help.

Those that set a key have its name, with hyphens and without its unit; their defaults, None, are the
settings' own.
"""

from collections.abc import Callable
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
from corpus_asr.config import default_model
from corpus_asr.formats.names import ExportFormat

# What `all` stands for; jsonl alone is no format of exports.
ALL_FORMATS = ("txt", "srt", "vtt", "tsv", "json", "jsonl", "lrc")
FORMATS = (*ALL_FORMATS, *(name.value for name in ExportFormat if name not in ALL_FORMATS))
ALL = "all"


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
OutputDir = Annotated[
    str | None,
    _output(
        "--output-dir", "-o", "Write files to this folder or URI; default: print the text.",
        metavar="DIR",
    ),
]  # fmt: skip
Formats = Annotated[
    list[str] | None,
    _output(
        "--format", "-f",
        f"{', '.join(FORMATS)}, or all for the first {len(ALL_FORMATS)}; "
        "several with commas or repeated; default: txt, with -o all.",
        metavar="FORMAT", autocompletion=complete_format,
    ),
]  # fmt: skip
Overwrite = Annotated[
    bool, _output("--overwrite", "Transcribe again, also what has its files in the folder already.")
]
SkipExisting = Annotated[
    bool,
    _output("--skip-existing", "Skip what has files of its name, whatever they were made of."),
]
Timestamps = Annotated[
    bool, _output("--timestamps/--no-timestamps", "Print times before the text.")
]
MaxLineWidth = Annotated[
    int | None, _output("--max-line-width", "Maximum characters per line of subtitles.", min=1)
]
MaxLineCount = Annotated[
    int | None,
    _output("--max-line-count", "Maximum lines per subtitle; needs --max-line-width.", min=1),
]
HighlightWords = Annotated[
    bool,
    _output("--highlight-words", "Underline the spoken word; includes --word-timestamps."),
]
Quiet = Annotated[bool, _output("--quiet", "-q", "Report errors only.")]
Verbose = Annotated[bool, _output("--verbose", "-v", "With -o: print the text as well.")]

Language = Annotated[
    str | None,
    _text(
        "--language", "Language: en or English, or candidates: en,de; default: detected.",
        autocompletion=complete_language,
    ),
]  # fmt: skip
Task = Annotated[
    str | None,
    _text("--task", "transcribe, or translate into English.", autocompletion=complete_task),
]
WordTimestamps = Annotated[
    bool | None,
    _text("--word-timestamps/--no-word-timestamps", "Compute the times of words.", **_UNSET),
]
InitialPrompt = Annotated[
    str | None, _text("--initial-prompt", "Text to continue, for its style and spelling.")
]
Hotwords = Annotated[str | None, _text("--hotwords", "Names and terms to expect.")]
BeamSize = Annotated[
    int | None, _text("--beam-size", "Beams at temperature 0; default: 1, which is greedy.")
]
Temperature = Annotated[
    str | None,
    _text(
        "--temperature", "One, or several to try in order: 0,0.2,0.4; default: 0 to 1 in 0.2.",
        metavar="NUMBERS",
    ),
]  # fmt: skip
ConditionOnPrevTokens = Annotated[
    bool | None,
    _text(
        "--condition-on-prev-tokens/--no-condition-on-prev-tokens",
        "Prompt each window with the text before it.", **_UNSET,
    ),
]  # fmt: skip
Strategy = Annotated[
    str | None,
    _text(
        "--strategy", "sequential, or chunked: faster for long recordings, with more errors.",
        autocompletion=complete_strategy,
    ),
]  # fmt: skip
ClipTimestamps = Annotated[
    str | None,
    _text("--clip-timestamps", "Only these clips: start,end,start,end...", **_SECONDS),
]

Channels = Annotated[
    str | None,
    _speech(
        "--channels", "mix, each: a transcript per channel, or one's number from 0; default: mix.",
        metavar="CHANNELS",
    ),
]  # fmt: skip
VadFilter = Annotated[
    bool | None,
    _speech(
        "--vad-filter/--no-vad-filter", " /--no-vad", "Skip what Silero finds no speech in; "
        "default: on.", **_UNSET,
    ),
]  # fmt: skip
VadThreshold = Annotated[
    float | None,
    _speech("--vad-threshold", "Probability at which speech begins; default: 0.5."),
]
VadMinSpeech = Annotated[
    float | None,
    _speech("--vad-min-speech", "A shorter sound is no speech; default: 0.25.", **_SECONDS),
]
VadMinSilence = Annotated[
    float | None,
    _speech("--vad-min-silence", "Silence that ends speech; default: 0.5.", **_SECONDS),
]
VadPad = Annotated[
    float | None,
    _speech("--vad-pad", "Audio kept before and after speech; default: 0.4.", **_SECONDS),
]

Diarize = Annotated[
    bool,
    _speakers(
        "--diarize", "Find who speaks, S1 and so on; includes --word-timestamps, to split segments "
        "where the speaker changes.",
    ),
]  # fmt: skip
NumSpeakers = Annotated[
    int | None, _speakers("--num-speakers", "Exact number, if it is known.", min=1)
]
MinSpeakers = Annotated[int | None, _speakers("--min-speakers", "Minimum; default: 1.", min=1)]
MaxSpeakers = Annotated[int | None, _speakers("--max-speakers", "Maximum; default: 12.", min=1)]

Model = Annotated[
    str | None,
    _model("--model", CHECKPOINT_HELP, metavar="CHECKPOINT", autocompletion=complete_checkpoint),
]
Device = Annotated[
    str, _model("--device", "auto, cpu, cuda or cuda:N.", autocompletion=complete_device)
]
ComputeType = Annotated[
    default_model.ComputeType, _model("--compute-type", "Data type of weights and computation.")
]
Threads = Annotated[
    int | None, _model("--threads", "CPU threads of the model; default: all CPUs.", min=1)
]
Overrides = Annotated[
    list[str] | None,
    overrides_of(
        "Any other key of the sections decoding and extract, slots, revision or calibration.",
        complete_option_override,
    ),
]
