"""The exception tree. Every class says when a caller would catch it.

    CorpusAsrError
    ├─ ConfigError       the YAML or command line is wrong; exit code 2
    │  └─ LockedError    another run is at work on the output folder
    ├─ CheckpointError   the model folder is unusable
    │  └─ WeightsError   missing, unexpected or wrongly shaped keys
    ├─ ItemError         one recording failed: it becomes a failure row, the run goes on
    │  ├─ AlignmentError  its given text cannot be placed in it
    │  ├─ DecodeError    bad or empty audio; trying again would not help
    │  └─ FetchError     the store failed; trying again may help
    └─ EngineError       a worker is unusable: the run ends with exit code 3, commits are kept
       ├─ ClosedError    the object was closed, perhaps by another thread
       └─ ForkedError    the object was made in the process of which this one is a fork

A message says what was being done, to which thing, what was found against what was expected, and
what to do. Attributes are keyword-only with defaults: Ray rebuilds exceptions from `args` alone,
and a class that cannot be rebuilt so arrives without its type.
"""

import os
import re
import shlex

# A library's message may hold what it read: megabytes of it.
MAX_MESSAGE_CHARACTERS = 4_000


def encodable(text: str) -> str:
    r"""Return a text that UTF-8 can write: lone surrogates become escapes such as `\udcff`.

    Names of files, headers of servers and JSON bring them; tables, logs and messages refuse them.
    """
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def install_words(extra: str) -> str:
    """Say how to install the packages of an extra; no index has one named corpus-asr."""
    from importlib.metadata import PackageNotFoundError, requires

    try:
        requirements = requires("corpus-asr") or ()
    except PackageNotFoundError:  # the source alone
        requirements = ()
    packages = [
        re.split(r"[\s<>=!~;]", requirement, maxsplit=1)[0]
        for requirement in requirements
        if re.search(rf"extra == ['\"]{extra}['\"]", requirement)
    ]
    wanted = shlex.join(packages) if packages else f"-e '.[{extra}]' in a clone"
    return f"pip install {wanted} (extra {extra})"


class CorpusAsrError(Exception):
    """Anything this package raises on purpose; its message is one that UTF-8 can write."""

    def __init__(self, *args: object) -> None:
        super().__init__(*(encodable(each) if isinstance(each, str) else each for each in args))


class ConfigError(CorpusAsrError):
    """The configuration or command line cannot be used; nothing has been done yet."""


class LockedError(ConfigError):
    """Another run holds the output folder's lock; nothing has been done."""


class CheckpointError(CorpusAsrError, OSError):
    """A model folder cannot be loaded; the message names the file and the keys.

    It is an OSError, too, by which programs for transformers catch a checkpoint that is not there.
    """


class WeightsError(CheckpointError, RuntimeError):
    """Weights do not fit the network; a RuntimeError, too, as torch and transformers raise."""


class ItemError(CorpusAsrError):
    """One recording failed; becomes that recording's outcome row.

    `kind` is a name in `failure_kinds`; `retryable` tells whether another try may succeed.
    """

    default_kind = "item"
    default_retryable = False

    def __init__(
        self,
        message: str = "",
        *,
        uri: str | None = None,
        kind: str | None = None,
        retryable: bool | None = None,
    ) -> None:
        message = encodable(message)  # which may make it longer
        if len(message) > MAX_MESSAGE_CHARACTERS:
            message = f"{message[:MAX_MESSAGE_CHARACTERS]}..."
        super().__init__(message)
        self.uri = uri
        self.kind = kind or self.default_kind
        self.retryable = self.default_retryable if retryable is None else retryable

    # Exceptions are pickled by `args` alone, which has the message and no keyword.
    def __reduce__(self) -> tuple[object, ...]:
        state = {"uri": self.uri, "kind": self.kind, "retryable": self.retryable}
        return (type(self), self.args, state)


class DecodeError(ItemError):
    """The bytes were read but hold no usable audio."""

    default_kind = "decode"


class AlignmentError(ItemError):
    """The text given for a recording is missing, or is not what is said in it."""

    default_kind = "text_not_found"


class FetchError(ItemError):
    """The store did not give the bytes; retried inside storage before it gets here."""

    default_kind = "fetch"
    default_retryable = True


class EngineError(CorpusAsrError):
    """The run cannot go on: device lost, out of memory, a worker that will not start."""


class ClosedError(EngineError):
    """The object was closed, before the call or while it was at work."""


class ForkedError(EngineError):
    """The object has threads or child processes, which are in the process that made it alone."""


def check_same_process(doing: str, thing: str, *, made_in: int) -> None:
    """Refuse to work in a fork of the process that made `thing`, where it would wait forever.

    Raises:
        ForkedError: this process is another one.
    """
    if os.getpid() != made_in:
        raise ForkedError(
            f"{doing}: this {thing} was made in process {made_in}, and process {os.getpid()} is a "
            f"fork, which has neither its threads nor its child processes; make the {thing} in "
            "this process, after the fork"
        )
