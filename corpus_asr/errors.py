"""Exception hierarchy. Each class documents when to catch it.

    CorpusAsrError
    ├─ ConfigError       the YAML or command line is invalid; exit code 2
    │  └─ LockedError    another run holds the output folder's lock
    ├─ CheckpointError   the model folder is unusable
    │  └─ WeightsError   missing, unexpected or wrongly shaped keys
    ├─ ItemError         one recording failed: it becomes a failure row, the run continues
    │  ├─ AlignmentError  its given text cannot be aligned
    │  ├─ DecodeError    bad or empty audio; a retry would not help
    │  └─ FetchError     the store failed; a retry may help
    └─ EngineError       a worker is unusable: the run ends with exit code 3, commits are kept
       ├─ ClosedError    the object was closed, perhaps by another thread
       └─ ForkedError    the object belongs to the parent process of this fork

A message states the action, its target, what was found and expected, and what to do. Attributes are
keyword-only with defaults: Ray rebuilds exceptions from `args` alone, and a class for which that
fails arrives without its type.
"""

import os
import re
import shlex

# A library's message may contain megabytes of its input.
MAX_MESSAGE_CHARACTERS = 4_000


def encodable(text: str) -> str:
    r"""Return a text that is valid UTF-8: lone surrogates become escapes such as `\udcff`.

    File names, server headers and JSON may contain them; tables, logs and messages reject them.
    """
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def install_words(extra: str) -> str:
    """Return how to install the packages of an extra; no index has a package named corpus-asr."""
    from importlib.metadata import PackageNotFoundError, requires

    try:
        requirements = requires("corpus-asr") or ()
    except PackageNotFoundError:  # run from source
        requirements = ()
    packages = [
        re.split(r"[\s<>=!~;]", requirement, maxsplit=1)[0]
        for requirement in requirements
        if re.search(rf"extra == ['\"]{extra}['\"]", requirement)
    ]
    wanted = shlex.join(packages) if packages else f"-e '.[{extra}]' in a clone"
    return f"pip install {wanted} (extra {extra})"


class CorpusAsrError(Exception):
    """Base class of this package's exceptions; the message is valid UTF-8."""

    def __init__(self, *args: object) -> None:
        super().__init__(
            *(encodable(argument) if isinstance(argument, str) else argument for argument in args)
        )


class ConfigError(CorpusAsrError):
    """The configuration or command line is invalid; nothing has been done yet."""


class LockedError(ConfigError):
    """Another run holds the output folder's lock; nothing has been done."""


class CheckpointError(CorpusAsrError, OSError):
    """A model folder cannot be loaded; the message names the file and the keys.

    Also an OSError, which programs for transformers catch for a missing checkpoint.
    """


class WeightsError(CheckpointError, RuntimeError):
    """Weights do not fit the network; also a RuntimeError, as in torch and transformers."""


class ItemError(CorpusAsrError):
    """One recording failed; becomes that recording's outcome row.

    `kind` is a name in `failure_kinds`; `retryable` is whether a retry may succeed.
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
        message = encodable(message)  # may become longer
        if len(message) > MAX_MESSAGE_CHARACTERS:
            message = f"{message[:MAX_MESSAGE_CHARACTERS]}..."
        super().__init__(message)
        self.uri = uri
        self.kind = kind or self.default_kind
        self.retryable = self.default_retryable if retryable is None else retryable

    # Exceptions are pickled by `args` alone, which holds the message but no keywords.
    def __reduce__(self) -> tuple[object, ...]:
        state = {"uri": self.uri, "kind": self.kind, "retryable": self.retryable}
        return (type(self), self.args, state)


class DecodeError(ItemError):
    """The data were read but contain no usable audio."""

    default_kind = "decode"


class AlignmentError(ItemError):
    """A recording's given text is missing, or does not match the audio."""

    default_kind = "text_not_found"


class FetchError(ItemError):
    """The store did not return the data, after its retries."""

    default_kind = "fetch"
    default_retryable = True


class EngineError(CorpusAsrError):
    """The run cannot continue: device lost, out of memory, a worker that does not start."""


class ClosedError(EngineError):
    """The object was closed, before the call or during it."""


class ForkedError(EngineError):
    """The object has threads or child processes, which exist only in the process that made it."""


def check_same_process(doing: str, thing: str, *, made_in: int) -> None:
    """Raise an error in a fork of the process that made `thing`, where it would block forever.

    Raises:
        ForkedError: this is another process.
    """
    if os.getpid() != made_in:
        raise ForkedError(
            f"{doing}: this {thing} was made in process {made_in}, and process {os.getpid()} is a "
            f"fork without its threads; make the {thing} after the fork, in this process"
        )
