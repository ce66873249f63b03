"""`corpus-asr plan`: what a run would do, how much audio it has, how long that takes and costs.

Imports nothing that `--help` would have to wait for.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from corpus_asr.cli.failures import readable_errors
from corpus_asr.cli.options import AsJson, Config, Overrides, note_model_of

if TYPE_CHECKING:
    from corpus_asr.activity import Estimate
    from corpus_asr.config.load import Setting
    from corpus_asr.config.run import RunConfig
    from corpus_asr.runtime.estimate import Outlook, Survey
    from corpus_asr.storage.run_state.plan import Plan
    from corpus_asr.storage.run_state.tables import OutputStore


def plan(
    config: Config,
    overrides: Overrides = None,
    check: Annotated[
        bool,
        typer.Option(
            "--check",
            help="Also decode and transcribe a recording, and check the output and the memory.",
        ),
    ] = False,
    speed: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[NAME=]RTFX",
            help="Speed of a machine in seconds of audio per second, such as l4=180.",
        ),
    ] = None,
    price: Annotated[
        list[str] | None,
        typer.Option(metavar="[NAME=]PRICE", help="Price of an hour of it, such as l4=0.8."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show what a run would do: the listing, its audio, duration and cost, then all settings."""
    from corpus_asr.config.load import load_config, settings_of
    from corpus_asr.runtime.estimate import (
        HERE,
        Machine,
        estimate_audio,
        given_machines,
        known_machines,
        outlooks,
        survey,
    )
    from corpus_asr.storage.run_state.tables import OutputStore

    with readable_errors():
        machines = given_machines(speed or (), price or ())
        settings = load_config(config, overrides or ())
        note_model_of(settings)
        store = OutputStore.of(settings.output)
        with _drawn(settings, store) as found:
            headers = survey(found.remaining.draw(), settings)
            audio = estimate_audio(found.remaining.strata, {}, headers.sums)
            machines += known_machines(settings, store)
            lines = list(_counts(found, store.uri))
            if check:
                from corpus_asr.pipelines.driver import prepare
                from corpus_asr.runtime.preflight import ReadyCheck

                prepare(settings)
                audio_s = None if audio is None else audio.value
                ready = ReadyCheck(settings, store, found, audio_s=audio_s)
                checked = [*ready.lines(), "ready"]
                if ready.rtfx is not None:
                    machines.append(Machine(name=HERE, rtfx=ready.rtfx))
            else:
                checked = []
            likely = [] if audio is None else outlooks(audio, machines)
        if as_json:
            data = _data(found, headers, audio, likely, checked, settings)
            typer.echo(json.dumps(data, indent=2, ensure_ascii=False))
            return
        lines += [_audio_words(found, headers, audio), *_outlook_words(found, likely), *checked]
        for line in lines:
            typer.echo(f"# {line}")
        typer.echo("")
        _print_settings(list(settings_of(settings)))


@contextmanager
def _drawn(settings: "RunConfig", store: "OutputStore") -> "Iterator[Plan]":
    """Make a plan, and remove it again: nobody will work it off."""
    from corpus_asr.runtime.checkpoints import fetch_checkpoints
    from corpus_asr.storage.run_state.plan import make_plan
    from corpus_asr.storage.run_state.tables import OUTCOMES_FOLDER

    # Weights are large; they matter here only where results of the same ones may lie.
    started = bool(store.names(OUTCOMES_FOLDER))
    checkpoint = fetch_checkpoints(settings, hashed=started)
    found = make_plan(settings, store, model_revision=checkpoint.fingerprint if started else None)
    try:
        yield found
    finally:
        # A report takes the newest plan for that of the last run.
        for name in list(store.all_names(found.name)):
            store.remove(name)


def _counts(found: "Plan", output_uri: str) -> Iterator[str]:
    from corpus_asr.units import counted

    unknown = f", {found.num_unknown_sizes:,} of unknown size" if found.num_unknown_sizes else ""
    yield f"listed     {counted(found.num_files, 'file')}, {_size(found.num_bytes)}{unknown}"
    yield f"excluded   {found.num_excluded:,} excluded, {found.num_duplicates:,} named twice"
    yield f"done       {counted(found.num_done, 'file')}, in {output_uri}"
    yield (
        f"to do      {counted(found.num_remaining, 'file')}, {_size(found.num_remaining_bytes)}, "
        f"in {counted(found.num_packs, 'pack')}"
    )


def _audio_words(found: "Plan", headers: "Survey", audio: "Estimate | None") -> str:
    from corpus_asr.units import counted

    left = [
        (headers.without_duration, "without a duration"),
        *((count, kind) for kind, count in headers.failures.items()),
    ]
    words = "".join(f"; {count:,} {what}" for count, what in left if count)
    of = f"of {counted(found.num_remaining, 'recording')}"
    if not found.num_remaining:
        return "audio      none to do"
    if audio is None:
        return f"audio      unknown: no header {of} says how long it is{words}"
    return f"audio      {audio.hours_words()}, by {counted(headers.read, 'header')} {of}{words}"


def _outlook_words(found: "Plan", likely: "list[Outlook]") -> Iterator[str]:
    if not found.num_remaining:
        return
    if not likely:
        yield (
            "takes      unknown: no speed was measured with this model; --check measures it "
            "here, --speed RTFX states it"
        )
    label = "takes"
    for each in likely:
        cost = ""
        if each.cost is not None:
            price = each.machine.price_per_hour
            cost = (
                f", costs {each.cost.value:,.2f} ({each.cost.low:,.2f}-{each.cost.high:,.2f}) "
                f"at {price:g} an hour"
            )
        yield (
            f"{label:<11}{each.duration_s.clock_words()} at RTFx {each.machine.rtfx:,.1f}{cost}: "
            f"{each.machine.name}"
        )
        label = ""


def _data(
    found: "Plan",
    headers: "Survey",
    audio: "Estimate | None",
    likely: "list[Outlook]",
    checked: list[str],
    settings: "RunConfig",
) -> dict[str, Any]:
    from dataclasses import asdict

    from corpus_asr.report.text import rounded
    from corpus_asr.storage.run_state.run_files import safe_config

    data: dict[str, Any] = rounded(
        {
            "plan": {
                name: value
                for name, value in found.as_data().items()
                if name not in ("uri", "name")
            },
            "audio_s": audio and asdict(audio),
            "headers": {
                "asked": headers.asked,
                "read": headers.read,
                "without_duration": headers.without_duration,
                "failures": headers.failures,
            },
            "outlooks": [asdict(each) for each in likely],
            "checked": checked,
            "settings": safe_config(settings),
        }
    )
    return data


def _print_settings(settings: "list[Setting]") -> None:
    from corpus_asr.config.load import yaml_value

    section = ""
    for setting in settings:
        above, _, name = setting.key.rpartition(".")
        if above != section:
            typer.echo(f"{above}:")
            section = above
        line = f"{'  ' if above else ''}{name}: {yaml_value(setting.value)}"
        if setting.is_default:
            line = typer.style(f"{line}  # default", dim=True)
        typer.echo(line)


def _size(num_bytes: int) -> str:
    if num_bytes < 1_000_000:
        return f"{num_bytes / 1e3:,.1f} kB"
    return f"{num_bytes / 1e6:,.1f} MB" if num_bytes < 1e9 else f"{num_bytes / 1e9:,.1f} GB"
