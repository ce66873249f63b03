"""Parameters of a class or method, held against those of its counterpart in a reference."""

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

Parameters = Mapping[str, inspect.Parameter]
_SPREAD = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)


def parameters(owner: Any, method: str = "") -> Parameters:
    return inspect.signature(getattr(owner, method) if method else owner).parameters


def absent(ours: Parameters, theirs: Parameters) -> Iterator[str]:
    """What theirs has and ours has not; where ours has both, defaults have to be the same."""
    kinds = {one.kind for one in ours.values()}
    for name, one in theirs.items():
        if one.kind in _SPREAD:
            if one.kind not in kinds:
                yield str(one).split(":")[0]
        elif name not in ours:
            yield name
        else:
            assert ours[name].default == one.default, name


def by_position(found: Parameters, other: Parameters) -> list[str]:
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    return [name for name, one in found.items() if one.kind == kind and name in other]
