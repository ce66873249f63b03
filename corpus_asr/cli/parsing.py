"""How a command line is read: spellings of other tools, names that nobody knows, and help.

Underscores in an option are hyphens, and a flag may be followed by True or False, as argparse has
it: `--word_timestamps True`. Knows no command.
"""

import functools
import inspect
import re
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

from typer.core import TyperCommand, TyperGroup

_TRUTH = {"true": True, "false": False}
# How whisper.cpp asks for a format. -o with a value would take it for a folder named `srt`.
_FORMAT_SWITCH = re.compile(r"-o(txt|srt|vtt|csv|json|lrc|wts|j|jf)")


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


class Command(TyperCommand):
    """A command whose help shows an example, given as its epilog."""

    def get_help_option(self, ctx: Any) -> Any:
        """Return `--help`."""
        return _without_type(super().get_help_option(ctx))

    def get_params(self, ctx: Any) -> list[Any]:
        """Return all parameters."""
        return [_without_type(each) for each in super().get_params(ctx)]

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the words of a command line; an unknown option is answered with what is meant."""
        if ctx.resilient_parsing or ctx.ignore_unknown_options:
            return super().parse_args(ctx, args)
        params = self.get_params(ctx)
        words = list(_with_plain_flags(args, params))
        try:
            _refuse_format_switches(ctx, words, params)
            return super().parse_args(ctx, words)
        except Exception as error:
            # By its attributes: of which package the class is changes with Typer's version.
            refused: Any = error
            if hasattr(refused, "option_name") and hasattr(refused, "possibilities"):
                unknown = _as_typed(refused.option_name, args)
                refused.message = f"No such option: {unknown}. {_meant(unknown, self.name, params)}"
                refused.possibilities = None
            raise


class Group(TyperGroup):
    """The commands of the program."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        # Commands take it over from the group.
        self.context_settings.setdefault("token_normalize_func", _with_hyphens)

    def get_help_option(self, ctx: Any) -> Any:
        """Return `--help`."""
        return _without_type(super().get_help_option(ctx))

    def get_params(self, ctx: Any) -> list[Any]:
        """Return all parameters."""
        return [_without_type(each) for each in super().get_params(ctx)]


def _with_hyphens(name: str) -> str:
    return name.replace("_", "-")


def _without_type(param: Any) -> Any:
    # Typer shows `<bool>` behind a flag, which takes no value, and `<list[str]>` behind FILE.
    if getattr(param, "is_flag", False):
        param.metavar = ""
    elif getattr(param, "param_type_name", None) == "argument":
        param.display_type_rich = lambda ctx: None
    return param


def _names(param: Any) -> list[str]:
    return [name for name in (*param.opts, *param.secondary_opts) if name.startswith("--")]


def _with_plain_flags(args: Sequence[str], params: Sequence[Any]) -> Iterator[str]:
    # Flags that True or False follows as flags alone; all other words as they are.
    flags = {name: each for each in params if getattr(each, "is_flag", False) for name in each.opts}
    words = deque(args)
    while words:
        word = words.popleft()
        name, equals, value = word.partition("=")
        flag = flags.get(_with_hyphens(name))
        if word == "--":
            yield word
            break
        if flag is None:
            yield word
            continue
        if not equals and words and words[0].lower() in _TRUTH:
            value = words.popleft()
        truth = _TRUTH.get(value.lower())
        if truth is None or truth:
            yield word if truth is None else name
        elif flag.secondary_opts:
            yield flag.secondary_opts[0]
    yield from words


def _refuse_format_switches(ctx: Any, args: Sequence[str], params: Sequence[Any]) -> None:
    if not any("--output-dir" in each.opts for each in params):
        return
    for word in args:
        switch = _FORMAT_SWITCH.fullmatch(word)
        if switch:
            ctx.fail(f"No such option: {word}. Did you mean --format {switch[1]} --output-dir .?")
        if word == "--":
            return


def _as_typed(option: str, args: Sequence[str]) -> str:
    names = (word.partition("=")[0] for word in args)
    return next((name for name in names if _with_hyphens(name) == option), option)


def _meant(unknown: str, command: str | None, params: Sequence[Any]) -> str:
    from corpus_asr.config.foreign_names import name_hint

    known = [name for param in params for name in _names(param)]
    # Keys without an option of their own.
    keys: list[str] = []
    if command == "transcribe":
        from corpus_asr.config.options import OPTION_NAMES

        own = {param.name for param in params}
        keys = [key for key in OPTION_NAMES if key not in own]
    hint = name_hint(unknown, known, keys)
    for key in keys:
        hint = hint.replace(f" {key}?", f" --set {key}=...?")
    return hint[:1].upper() + hint[1:] or "See --help for all of them."
