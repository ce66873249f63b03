"""`corpus-asr view`: a server for the transcripts of a run, for one person or for colleagues.

Imports nothing that `--help` would have to wait for.
"""

import ipaddress
from typing import TYPE_CHECKING, Annotated

import typer

from corpus_asr.cli.failures import readable_errors, say
from corpus_asr.cli.options import OutputUri
from corpus_asr.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from corpus_asr.view.server import ViewServer

USUAL_PORT = 8765
_PANEL = "For colleagues"


def view(
    output_uri: OutputUri,
    port: Annotated[
        int | None,
        typer.Option(
            help=f"Port to bind to; default: {USUAL_PORT}, or without a password a free one if it "
            "is in use."
        ),
    ] = None,
    host: Annotated[
        str,
        typer.Option(
            help="Network interface to bind to; any but the default accepts connections from "
            "other hosts."
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
            help="Folder of this machine, or http(s) host, whose recordings may be played "
            "although no run of this user here read them; may be repeated.",
        ),
    ] = None,
    password_file: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Ask for the password in this file, and keep the same URL at each start.",
            rich_help_panel=_PANEL,
        ),
    ] = None,
    public_url: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="URL that people open, if it is not that of the host and port: behind a proxy.",
            rich_help_panel=_PANEL,
        ),
    ] = None,
    read_only: Annotated[
        bool,
        typer.Option("--read-only", help="Accept no corrections.", rich_help_panel=_PANEL),
    ] = False,
    endpoint_url: Annotated[
        str | None, typer.Option(help="S3 endpoint of the output; default: Amazon's.")
    ] = None,
    audio_endpoint_url: Annotated[
        str | None, typer.Option(help="S3 endpoint of the recordings; default: the run's.")
    ] = None,
) -> None:
    """Search the transcripts of a run in a browser, play the audio and correct the text."""
    with readable_errors():
        import asyncio
        from contextlib import ExitStack, closing

        from corpus_asr.runtime.shutdown import ended_by_sigterm
        from corpus_asr.storage.run_state.tables import OutputStore
        from corpus_asr.storage.stores.uri import scheme_of
        from corpus_asr.view.access import PublicUrl, read_password
        from corpus_asr.view.answers import Answers
        from corpus_asr.view.catalogue import Library, Transcripts
        from corpus_asr.view.server import ViewServer
        from corpus_asr.view.sound import Sounds
        from corpus_asr.view.waveform import Waveforms

        password = None if password_file is None else read_password(password_file)
        public = None if public_url is None else PublicUrl.parse(public_url)
        store = OutputStore(output_uri, endpoint_url=endpoint_url)
        with ExitStack() as opened, ended_by_sigterm():
            library = opened.enter_context(closing(Library(store)))
            sounds = Sounds(
                store,
                moved=_moved(audio or ()),
                endpoint_url=audio_endpoint_url,
                folders=audio_folder or (),
            )
            opened.enter_context(closing(sounds))
            answers = Answers(
                library,
                Transcripts(store),
                sounds,
                Waveforms(sounds),
                editable=not read_only and scheme_of(store.uri) not in ("http", "https"),
            )

            def listen(number: int) -> ViewServer:
                return ViewServer(answers, host=host, port=number, password=password, public=public)

            # A free port, chosen by the system, would be another URL than the one bookmarked.
            usual = (USUAL_PORT,) if password is not None else (USUAL_PORT, 0)
            server = _listening(listen, host, usual if port is None else (port,))
            opened.enter_context(closing(server))
            # Reading begins while the browser starts.
            library.current()
            _tell(
                server.url, host=host, has_password=password is not None, editable=answers.editable
            )
            if not no_browser:
                typer.launch(server.url)
            try:
                asyncio.run(server.serve())
            except KeyboardInterrupt:
                typer.echo("\nstopped")


def _moved(pairs: "Sequence[str]") -> list[tuple[str, str]]:
    from corpus_asr.storage.stores.uri import normalize

    found = []
    for pair in pairs:
        before, _, now = pair.partition("=")
        if not before or not now:
            raise ConfigError(
                f"reading --audio {pair}: expected BEFORE=NOW, such as /mnt/corpus=/data/corpus"
            )
        slash = "/" if before.endswith("/") else ""
        found.append((normalize(before).rstrip("/") + slash, normalize(now).rstrip("/") + slash))
    return found


def _listening(
    listen: "Callable[[int], ViewServer]", host: str, ports: "Sequence[int]"
) -> "ViewServer":
    for number in ports:
        try:
            return listen(number)
        except OSError as error:
            reason = error
    raise ConfigError(
        f"listening at {host}, port {ports[0]}: {reason}, expected a free port of this "
        "machine; choose another --port or --host, or stop the program that uses it"
    )


def _tell(url: str, *, host: str, has_password: bool, editable: bool) -> None:
    typer.echo(f"{url}\nCtrl-C stops it")
    try:
        here_only = ipaddress.ip_address(host).is_loopback
    except ValueError:
        here_only = host == "localhost"
    if here_only:
        return
    who = "the password" if has_password else "the URL above"
    may = "read, play and correct" if editable else "read and play"
    say(
        f"warning: --host {host} accepts connections from other hosts: anyone with {who} can {may} "
        "all transcripts and recordings of this run, over a connection that is not encrypted"
    )
