"""`corpus-asr view`: its options, and a server until Ctrl-C."""

import ipaddress
from typing import TYPE_CHECKING, Annotated

import typer

from corpus_asr.cli.failures import readable_errors, say
from corpus_asr.cli.options import OutputUri
from corpus_asr.errors import ConfigError

if TYPE_CHECKING:
    from corpus_asr.view.answers import Answers
    from corpus_asr.view.server import ViewServer

USUAL_PORT = 8765


def view(
    output_uri: OutputUri,
    port: Annotated[
        int | None,
        typer.Option(help=f"Where to listen; default: {USUAL_PORT}, or any if that is taken."),
    ] = None,
    host: Annotated[
        str, typer.Option(help="The address to listen at; other machines reach others than this.")
    ] = "127.0.0.1",
    no_browser: Annotated[
        bool, typer.Option("--no-browser", help="Print the address, and open nothing.")
    ] = False,
    audio: Annotated[
        list[str] | None,
        typer.Option(
            metavar="BEFORE=NOW",
            help="Recordings whose addresses begin with BEFORE lie at NOW; may be repeated.",
        ),
    ] = None,
    endpoint_url: Annotated[
        str | None, typer.Option(help="S3 endpoint of the output, where it is not Amazon's.")
    ] = None,
    audio_endpoint_url: Annotated[
        str | None, typer.Option(help="S3 endpoint of the recordings; default: the run's.")
    ] = None,
) -> None:
    """Search a run's transcripts in a browser, click a word and hear it."""
    with readable_errors():
        import asyncio
        from contextlib import ExitStack, closing

        from corpus_asr.runtime.stopping import ended_by_sigterm
        from corpus_asr.storage.run_state.tables import OutputStore
        from corpus_asr.view.answers import Answers
        from corpus_asr.view.catalogue import Library, Transcripts
        from corpus_asr.view.sound import Sounds

        store = OutputStore(output_uri, endpoint_url=endpoint_url)
        with ExitStack() as opened, ended_by_sigterm():
            library = opened.enter_context(closing(Library(store)))
            sounds = Sounds(store, moved=_moved(audio or ()), endpoint_url=audio_endpoint_url)
            opened.enter_context(closing(sounds))
            answers = Answers(library, Transcripts(store), sounds)
            server = opened.enter_context(closing(_server(answers, host=host, port=port)))
            library.current()  # reading begins before anybody asks
            _tell(server.url, host=host)
            if not no_browser:
                typer.launch(server.url)
            try:
                asyncio.run(server.serve())
            except KeyboardInterrupt:
                typer.echo("\nstopped")


def _moved(pairs: "tuple[str, ...] | list[str]") -> list[tuple[str, str]]:
    from corpus_asr.storage.stores.uri import normalise

    found = []
    for pair in pairs:
        before, _, now = pair.partition("=")
        if not before or not now:
            raise ConfigError(
                f"reading --audio {pair}: expected BEFORE=NOW, such as /mnt/corpus=/data/corpus"
            )
        slash = "/" if before.endswith("/") else ""
        found.append((normalise(before).rstrip("/") + slash, normalise(now).rstrip("/") + slash))
    return found


def _server(answers: "Answers", *, host: str, port: int | None) -> "ViewServer":
    from corpus_asr.view.server import ViewServer

    for number in (USUAL_PORT, 0) if port is None else (port,):
        try:
            return ViewServer(answers, host=host, port=number)
        except OSError as error:
            reason = error
    raise ConfigError(
        f"listening at {host}, port {port or USUAL_PORT}: {reason}, expected a free port of this "
        "machine; choose another --port or --host"
    )


def _tell(url: str, *, host: str) -> None:
    typer.echo(f"{url}\nCtrl-C ends it")
    try:
        here_only = ipaddress.ip_address(host).is_loopback
    except ValueError:
        here_only = host == "localhost"
    if not here_only:
        say(
            f"warning: --host {host} lets other machines in: whoever has the address above can "
            "read all transcripts and hear all recordings of this run, over a connection that is "
            "not encrypted"
        )
