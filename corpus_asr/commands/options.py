"""What commands that read a run have in common on the command line.

In: nothing. Out: types of parameters for typer. Imports nothing that `--help` would have to wait
for.
"""

from typing import Annotated

import typer

OutputUri = Annotated[
    str, typer.Argument(metavar="OUTPUT_URI", help="The output.uri of a run, done or not.")
]
EndpointUrl = Annotated[str | None, typer.Option(help="S3 endpoint, where it is not Amazon's.")]
Languages = Annotated[
    list[str] | None, typer.Option(help="Only segments in this language, such as en.")
]
Uris = Annotated[
    list[str] | None,
    typer.Option(metavar="PATTERN", help="Only recordings whose address matches, as '*.mp3'."),
]
DropKnownHallucinations = Annotated[
    bool,
    typer.Option(
        "--drop-known-hallucinations",
        help='Without segments that say "Thanks for watching!" or its like and nothing else.',
    ),
]
MinConfidence = Annotated[
    float, typer.Option(help="Only segments of this confidence or more, 0-1.")
]
