"""Commands for results: `status`, `report`, `show`, `export`, `correct`, `evaluate`, `view`.

No slow imports at the top, for a fast `--help`.
"""

import ipaddress
import json
import time
from typing import TYPE_CHECKING, Annotated

import typer

from corpus_asr.cli.failures import EXIT_SOME_FAILED, note, readable_errors, say
from corpus_asr.cli.options import (
    AsJson,
    AudioStorageOption,
    DropKnownHallucinations,
    Languages,
    MinConfidence,
    MinSnr,
    NoCorrections,
    OutputUri,
    Preset,
    Speakers,
    Uris,
    audio_options,
    check_names,
    print_result,
    rules_of,
    store_options,
)
from corpus_asr.errors import ConfigError
from corpus_asr.formats.options import CUE_LIMITS, ExportFormat, WordStyle
from corpus_asr.units import counted

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from corpus_asr.export.write import ExportSummary
    from corpus_asr.report.evaluation import Comparison
    from corpus_asr.storage.run_state.run_tables import RunTables
    from corpus_asr.view.server import ViewServer

# A run writes its state every 15 s; each poll is one small read from the store.
WATCH_EVERY_S = 5.0
_SUBTITLES, _COLLEAGUES = "Subtitles", "For colleagues"
USUAL_PORT = 8765


def status(
    context: typer.Context,
    output_uri: OutputUri,
    as_json: AsJson = False,
    watch: Annotated[
        bool, typer.Option("--watch", help="Refresh every 5 s until the run ends.")
    ] = False,
) -> None:
    """Show the state, progress, bottleneck and failures of a run."""
    from corpus_asr.cli.display import text_display
    from corpus_asr.report.status import as_data, load_status, render
    from corpus_asr.storage.run_state.run_files import open_run

    with readable_errors():
        store = open_run(output_uri, options=store_options(output_uri, context))
        with text_display(in_place=watch and not as_json) as show:
            while True:
                status = load_status(store)
                if as_json:
                    typer.echo(json.dumps(as_data(status), ensure_ascii=False))
                else:
                    show(render(status))
                if not watch or not status.alive:
                    return
                time.sleep(WATCH_EVERY_S)


def export(
    context: typer.Context,
    output_uri: OutputUri,
    to: Annotated[
        str, typer.Option("--to", metavar="FOLDER", help="Folder of the files: any URI.")
    ],
    formats: Annotated[
        list[ExportFormat], typer.Option("--format", help="Format of the files; may be repeated.")
    ],
    subtitle_preset: Preset = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help=f"Limit of subtitles: {', '.join(CUE_LIMITS)}.",
            rich_help_panel=_SUBTITLES,
        ),
    ] = None,
    single: Annotated[
        bool,
        typer.Option("--single", help="Write one file for all recordings; not for subtitles."),
    ] = False,
    language: Languages = None,
    uri: Uris = None,
    speaker: Speakers = None,
    min_confidence: MinConfidence = 0.0,
    min_snr_db: MinSnr = None,
    drop_known_hallucinations: DropKnownHallucinations = False,
    partial: Annotated[
        bool, typer.Option("--partial", help="Include unfinished recordings.")
    ] = False,
    words: Annotated[
        WordStyle,
        typer.Option(
            help="Style of the spoken word; needs word timestamps.", rich_help_panel=_SUBTITLES
        ),
    ] = WordStyle.plain,
    no_corrections: NoCorrections = False,
) -> None:
    """Write a run's transcripts as subtitles, text, tables, JSON or a manifest."""
    from corpus_asr.config.options import option_overrides
    from corpus_asr.export.recordings import Selection
    from corpus_asr.export.write import ExportOptions
    from corpus_asr.export.write import export as write_files
    from corpus_asr.storage.run_state.run_files import open_run

    with readable_errors(on_interrupt="run the same command again to replace it"):
        limits = option_overrides(overrides or ())
        check_names(limits, CUE_LIMITS)
        options = ExportOptions(
            formats=tuple(dict.fromkeys(formats)),
            single=single,
            rules=rules_of(subtitle_preset, limits),
            words=words,
            corrections=not no_corrections,
        )
        selection = Selection(
            languages=tuple(language or ()),
            uris=tuple(uri or ()),
            min_confidence=min_confidence,
            min_snr_db=min_snr_db,
            drop_known_hallucinations=drop_known_hallucinations,
            partial=partial,
            speakers=tuple(speaker or ()),
        )
        store = open_run(output_uri, options=store_options(output_uri, context))
        typer.echo(_words(write_files(store, to, options, selection)))


def _words(summary: "ExportSummary") -> str:
    done = (
        f"{summary.to}: {counted(summary.recordings, 'recording')}, "
        f"{counted(summary.segments, 'segment')} in {counted(summary.files, 'file')}"
    )
    if summary.corrected:
        done += f"; {counted(summary.corrected, 'segment')} corrected or checked by people"
    if summary.partly_failed:
        done += f"; {summary.partly_failed:,} with parts that failed"
    counts_left = [
        f"{count:,} {outcome}"
        for count, outcome in ((summary.failed, "failed"), (summary.unfinished, "not done yet"))
        if count
    ]
    if counts_left:
        done += f"\nomitted: {', '.join(counts_left)}"
    if summary.stale_corrections:
        stale = counted(summary.stale_corrections, "correction")
        done += (
            f"\nnot applied: {stale} that do not fit the transcript; `corpus-asr view` lists them"
        )
    return done


def correct(
    context: typer.Context,
    output_uri: OutputUri,
    edited: Annotated[
        list[str],
        typer.Argument(
            metavar="EDITED...", help="Files srt, vtt, eaf or csv of `export`, or folders of them."
        ),
    ],
) -> None:
    """Save what was edited in exported files as corrections, as `view` does."""
    from corpus_asr.export.correct import correct_from_files
    from corpus_asr.storage.run_state.run_files import open_run

    with readable_errors(on_interrupt="run the same command again to go on"):
        store = open_run(output_uri, options=store_options(output_uri, context))
        summary = correct_from_files(store, edited)
        words = "nothing new"
        if summary.corrections:
            words = f"{counted(summary.corrections, 'correction')} saved, of "
            words += counted(len(summary.recording_ids), "recording")
        typer.echo(f"{counted(summary.files, 'file')} read: {words}")


def evaluate(
    context: typer.Context,
    output_uri: OutputUri,
    references: Annotated[
        str,
        typer.Option(
            metavar="MANIFEST",
            help="Manifest of recordings, or parts of them, with text (docs/how-to/manifests.md).",
        ),
    ],
    against: Annotated[
        str | None,
        typer.Option(metavar="OUTPUT_URI", help="Output folder of a second run to compare with."),
    ] = None,
    max_wer: Annotated[
        float | None,
        typer.Option(
            min=0, max=1, help="Exit with code 1 above this word error rate, such as 0.12 (12 %)."
        ),
    ] = None,
    max_cer: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Exit with code 1 above this character error rate."),
    ] = None,
    not_worse: Annotated[
        bool,
        typer.Option("--not-worse", help="Exit with code 1 if significantly worse than --against."),
    ] = False,
    calibrate: Annotated[
        bool,
        typer.Option(
            "--calibrate", help="Fit confidence to this run, for later runs of the model."
        ),
    ] = False,
    language: Annotated[
        str | None, typer.Option(help="Language of references without a `language` field.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Compute word and character error rates of a run against references."""
    if not_worse and against is None:
        raise typer.BadParameter("--not-worse needs --against, the run to compare with")
    with readable_errors():
        from corpus_asr.pipelines.evaluate import calibrate as fit_calibration
        from corpus_asr.pipelines.evaluate import evaluate as evaluate_run
        from corpus_asr.report.calibration import calibration_data, render_calibration
        from corpus_asr.report.evaluation import as_data, render

        options = store_options(output_uri, context)
        evaluation = evaluate_run(
            output_uri, references, against=against, language=language, options=options
        )
        data = as_data(evaluation)
        if not as_json:
            typer.echo(render(evaluation))
        if calibrate:
            calibration = fit_calibration(
                output_uri, references, language=language, options=options
            )
            data["calibration"] = calibration_data(calibration)
            if not as_json:
                typer.echo(render_calibration(calibration))
        if as_json:
            typer.echo(json.dumps(data, indent=2, ensure_ascii=False))
        missed = [
            _above("word error rate", evaluation.everything.words.rate, "--max-wer", max_wer),
            _above(
                "character error rate", evaluation.everything.characters.rate, "--max-cer", max_cer
            ),
            _worse(evaluation.comparison) if not_worse else None,
        ]
        for words in missed:
            if words is not None:
                say(words)
        if any(missed):
            raise typer.Exit(EXIT_SOME_FAILED)


def _above(what: str, rate: float | None, option: str, bar: float | None) -> str | None:
    if bar is None or (rate is not None and rate <= bar):
        return None
    description = "unknown: the references have no words" if rate is None else f"{rate:.2%}"
    return f"the {what} is {description}, more than {option} allows ({bar:.2%})"


def _worse(beside: "Comparison | None") -> str | None:
    if beside is None:
        return (
            "the recordings of both runs have no reference words, so --not-worse cannot be decided"
        )
    if not beside.clearly_worse:
        return None
    return (
        f"the word error rate is {beside.wer:.2%}, clearly worse than that of {beside.other} "
        f"({beside.other_wer:.2%})"
    )


def report(
    context: typer.Context,
    output_uri: OutputUri,
    as_json: AsJson = False,
    page: Annotated[
        str | None,
        typer.Option(
            "--html", metavar="FILE", help="Write an HTML report with charts, samples and audio."
        ),
    ] = None,
    audio: Annotated[
        bool | None,
        typer.Option(
            "--audio/--no-audio",
            help="Embed clips of the samples; default: report.embed_audio of the run.",
        ),
    ] = None,
    audio_storage_option: AudioStorageOption = None,
) -> None:
    """Show the results, failures and file accounting of a run."""
    from corpus_asr.report.page import write_page
    from corpus_asr.report.run import as_data, load_report, render
    from corpus_asr.storage.run_state.run_files import open_run

    with readable_errors():
        store = open_run(output_uri, options=store_options(output_uri, context))
        report_path = (
            load_report(store)
            if page is None
            else write_page(
                store,
                page,
                embed_audio=audio,
                audio_options=audio_options(audio_storage_option),
            )
        )
        print_result(as_data(report_path), render(report_path), as_json=as_json)


def show(
    context: typer.Context,
    output_uri: OutputUri,
    uri: Uris = None,
    language: Languages = None,
    min_confidence: MinConfidence = 0.0,
    min_snr_db: MinSnr = None,
    drop_known_hallucinations: DropKnownHallucinations = False,
    speaker: Speakers = None,
    no_corrections: NoCorrections = False,
) -> None:
    """Print the transcripts of a run with timestamps."""
    from corpus_asr.edits.corrected_segments import SeenSegments
    from corpus_asr.edits.corrections import Corrections
    from corpus_asr.export.recordings import (
        TEXT_COLUMNS,
        WORD_COLUMNS,
        Selection,
        open_selection,
        recordings,
    )
    from corpus_asr.export.speakers import refuse_speakers, speakers_of
    from corpus_asr.formats.transcript import Transcript
    from corpus_asr.report.text import print_transcript
    from corpus_asr.segments import channel_name
    from corpus_asr.storage.run_state.run_files import open_run
    from corpus_asr.storage.stores.uri import redact_uri

    with readable_errors():
        selection = Selection(
            languages=tuple(language or ()),
            uris=tuple(uri or ()),
            min_confidence=min_confidence,
            min_snr_db=min_snr_db,
            drop_known_hallucinations=drop_known_hallucinations,
            partial=True,
            speakers=tuple(speaker or ()),
        )
        store = open_run(output_uri, options=store_options(output_uri, context))
        turns = speakers_of(store)
        corrections = None if no_corrections else Corrections.load(store)
        refuse_speakers(store, selection, turns, corrections)
        columns = TEXT_COLUMNS if turns is None else WORD_COLUMNS
        with open_selection(store, selection) as tables:
            seen = SeenSegments(store, tables, corrections)
            none = True
            for recording in recordings(seen, tables, selection, columns=columns, turns=turns):
                if selection.of_segments and not recording.segments:
                    continue
                none = False
                is_by_channel = recording.audio_tracks and recording.audio_track is None
                tracks = (
                    recording.by_channel()
                    if is_by_channel
                    else {recording.audio_track: recording.segments}
                )
                for number, segments in tracks.items():
                    name = redact_uri(recording.uri)
                    if recording.audio_tracks:
                        name += f", {channel_name(number, None, recording.audio_tracks)}"
                    transcript = Transcript(
                        uri=name,
                        segments=tuple(segments),
                        language=recording.language,
                        language_probability=None,
                        duration_s=recording.duration_s,
                    )
                    print_transcript(transcript)
            if none:
                note(_why_nothing(tables))


_MATCHING = """
select count(meant.recording_id), count(*),
  count(meant.recording_id) filter (failed and not succeeded)
from recordings left join meant using (recording_id)
"""


def _why_nothing(tables: "RunTables") -> str:
    [[matching, total, failed]] = tables.rows(_MATCHING)
    words = f"nothing to show: {matching:,} of {counted(total, 'recording')} with results match"
    if failed:
        words += f"; {failed:,} failed, see corpus-asr report"
    return words if matching == failed else f"{words}; their segments do not"


def view(
    context: typer.Context,
    output_uri: OutputUri,
    port: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=65_535,
            help=f"Port to bind to; default: {USUAL_PORT}, or a free one if it is in use.",
        ),
    ] = None,
    host: Annotated[
        str,
        typer.Option(
            help="Network interface to bind to; others than the default accept remote connections."
        ),
    ] = "127.0.0.1",
    no_browser: Annotated[
        bool, typer.Option("--no-browser", help="Print the URL; do not open a browser.")
    ] = False,
    audio: Annotated[
        list[str] | None,
        typer.Option(
            metavar="BEFORE=NOW",
            help="Replace the prefix BEFORE of recording URIs by NOW; may be repeated.",
        ),
    ] = None,
    audio_folder: Annotated[
        list[str] | None,
        typer.Option(
            metavar="DIR",
            help=(
                "Local folder or http(s) host with recordings that may be played although no run "
                "of this user read them; may be repeated."
            ),
        ),
    ] = None,
    public_url: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Public URL, if it differs from the host and port, as behind a proxy.",
            rich_help_panel=_COLLEAGUES,
        ),
    ] = None,
    read_only: Annotated[
        bool,
        typer.Option("--read-only", help="Accept no corrections.", rich_help_panel=_COLLEAGUES),
    ] = False,
    audio_storage_option: AudioStorageOption = None,
) -> None:
    """Search, play and correct transcripts in a browser: of a run, or a folder of `transcribe`."""
    with readable_errors():
        import asyncio
        from contextlib import ExitStack, closing

        from corpus_asr.storage.run_state.run_files import open_run
        from corpus_asr.storage.stores.uri import scheme_of
        from corpus_asr.view.answers import Answers
        from corpus_asr.view.catalogue import Library, Transcripts
        from corpus_asr.view.request import PublicUrl
        from corpus_asr.view.server import ViewServer
        from corpus_asr.view.sound import Sounds

        public = None if public_url is None else PublicUrl.parse(public_url)
        options = store_options(output_uri, context)
        store = open_run(output_uri, options=options)
        with ExitStack() as opened:
            library = opened.enter_context(closing(Library(store)))
            sounds = Sounds(
                store,
                moved=_moved(audio or ()),
                storage=audio_options(audio_storage_option),
                folders=audio_folder or (),
            )
            opened.enter_context(closing(sounds))
            answers = Answers(
                library,
                Transcripts(store),
                sounds,
                editable=not read_only and scheme_of(store.uri) not in ("http", "https"),
            )

            def listen(number: int) -> ViewServer:
                return ViewServer(answers, host=host, port=number, public=public)

            server = _listening(listen, host, (USUAL_PORT, 0) if port is None else (port,))
            opened.enter_context(closing(server))
            # Start reading while the browser starts.
            library.current()
            _tell(server.url, host=host, editable=answers.editable)
            if not no_browser:
                typer.launch(server.url)
            try:
                asyncio.run(server.serve())
            except KeyboardInterrupt:
                typer.echo("\nstopped")


def _moved(pairs: "Sequence[str]") -> list[tuple[str, str]]:
    from corpus_asr.storage.stores.uri import normalize

    moves = []
    for pair in pairs:
        source, _, target = pair.partition("=")
        if not source or not target:
            raise ConfigError(
                f"reading --audio {pair}: expected BEFORE=NOW, such as /mnt/corpus=/data/corpus"
            )
        slash = "/" if source.endswith("/") else ""
        moves.append((normalize(source).rstrip("/") + slash, normalize(target).rstrip("/") + slash))
    return moves


def _listening(
    listen: "Callable[[int], ViewServer]", host: str, ports: "Sequence[int]"
) -> "ViewServer":
    for number in ports:
        try:
            return listen(number)
        except OSError as error:
            reason = error
    raise ConfigError(
        f"listening at {host}, port {ports[0]}: {reason}, expected a free port; choose another "
        "--port or --host, or stop the program that uses it"
    )


def _tell(url: str, *, host: str, editable: bool) -> None:
    typer.echo(f"{url}\nCtrl-C stops it")
    try:
        here_only = ipaddress.ip_address(host).is_loopback
    except ValueError:
        here_only = host == "localhost"
    if here_only:
        return
    may = "read, play and correct" if editable else "read and play"
    say(
        f"warning: --host {host} accepts connections from other hosts: anyone with the URL above "
        f"can {may} all transcripts and recordings of this run, over a connection that is not "
        "encrypted"
    )
