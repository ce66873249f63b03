"""Mutants of a module: its source with one small fault each, made from the syntax tree.

In: the source. Out: mutants with their place and operator, in an order that a seed decides. What
changes no behavior stays as it is: annotations, decorators, assertions, log lines and messages of
errors.
"""

import ast
import copy
import functools
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

_COMPARISONS: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}
_ARITHMETIC: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
}
_OPPOSITES = {"min": "max", "max": "min", "ascending": "descending", "descending": "ascending"}
_LOGS = {"logger", "_LOG", "logging", "warnings"}
# They guard against bugs, save copies, or are text for people.
_IDLE_KEYWORDS = {
    "strict", "zero_copy_only", "copy", "stacklevel", "encoding", "description", "metadata",
    "indent",
}  # fmt: skip
_SYMMETRIC = {"min", "max", "np.minimum", "np.maximum"}
_LARGE = 1000  # from here on a number bounds memory or time: one more is the same


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutant:
    """One fault: its line, its operator, what stands there and what takes its place."""

    line: int
    operator: str
    before: str
    after: str
    scope: str
    """Class and function around it."""
    source: Callable[[], str]
    """Makes the module with the fault."""

    def __str__(self) -> str:
        before, after = self.before.partition("\n")[0], self.after.partition("\n")[0]
        return f"{self.line}: {self.operator}: {before} -> {after}"

    def rank(self, seed: int, file: str) -> bytes:
        """Return a key to sort by that depends neither on other faults nor on the line."""
        named = (seed, file, self.scope, self.operator, self.before, self.after)
        return hashlib.sha256(repr(named).encode()).digest()


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a node hangs in the tree: in a field of its parent, or in a list there."""

    node: ast.AST
    parent: ast.AST
    field: str
    index: int | None

    def put(self, node: ast.AST) -> None:
        if self.index is None:
            setattr(self.parent, self.field, node)
        else:
            getattr(self.parent, self.field)[self.index] = node


def mutants(source: str) -> Iterator[Mutant]:
    """Yield every mutant of a module; each makes its source when it is called for."""
    tree = ast.parse(source)
    for place, scope in _places(tree, ()):
        for operator, replacements in _OPERATORS.items():
            for replacement in replacements(place.node):
                yield Mutant(
                    line=place.node.lineno,  # type: ignore[attr-defined]
                    operator=operator,
                    before=ast.unparse(place.node),
                    after=ast.unparse(replacement),
                    scope=".".join(scope),
                    source=functools.partial(_with, tree, place, replacement),
                )


def _with(tree: ast.Module, place: _Place, replacement: ast.AST) -> str:
    place.put(replacement)
    try:
        return ast.unparse(ast.fix_missing_locations(tree))
    finally:
        place.put(place.node)


def _places(parent: ast.AST, scope: tuple[str, ...]) -> Iterator[tuple[_Place, tuple[str, ...]]]:
    for field, value in ast.iter_fields(parent):
        if field in ("annotation", "returns", "decorator_list", "type_params"):
            continue
        for index, node in enumerate(value) if isinstance(value, list) else [(None, value)]:
            if not isinstance(node, ast.AST) or _is_idle(node):
                continue
            if isinstance(node, ast.expr | ast.stmt):
                yield _Place(node, parent, field, index), scope
            if isinstance(node, ast.Raise):
                continue  # its message
            inner = (*scope, node.name) if isinstance(node, _SCOPES) else scope
            yield from _places(node, inner)


_SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


def _is_idle(node: ast.AST) -> bool:
    """Whether a fault in here would change nothing that a test should hold."""
    match node:
        case ast.Assert() | ast.Import() | ast.ImportFrom():
            return True
        case ast.keyword(arg=name):
            return name in _IDLE_KEYWORDS
        case ast.FunctionDef(name="__repr__" | "__str__"):
            return True
        case ast.If(test=ast.Name(id="TYPE_CHECKING")):
            return True
        case ast.Expr(value=ast.Constant()):
            return True
        case ast.Call(func=ast.Attribute(value=ast.Name(id=name))):
            return name in _LOGS
        case ast.Call(func=ast.Name(id="event")):
            return True  # a line of the log
        case ast.Expr(value=ast.Call() as call):
            return _is_idle(call)
    return False


def _comparison(node: ast.AST) -> Iterator[ast.AST]:
    if isinstance(node, ast.Compare):
        for at, found in enumerate(node.ops):
            for other in _COMPARISONS[type(found)]:
                ops = [*node.ops[:at], other(), *node.ops[at + 1 :]]
                yield ast.Compare(node.left, ops, node.comparators)


def _boolean(node: ast.AST) -> Iterator[ast.AST]:
    match node:
        case ast.BoolOp(op=ast.And(), values=values):
            yield ast.BoolOp(ast.Or(), values)
        case ast.BoolOp(op=ast.Or(), values=values):
            yield ast.BoolOp(ast.And(), values)
        case ast.UnaryOp(op=ast.Not() | ast.Invert(), operand=operand):
            yield operand


def _arithmetic(node: ast.AST) -> Iterator[ast.AST]:
    match node:
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _ARITHMETIC:
            if not {type(left), type(right)} & {ast.JoinedStr, ast.List, ast.Tuple} and not any(
                isinstance(side, ast.Constant) and isinstance(side.value, str | bytes)
                for side in (left, right)
            ):
                yield ast.BinOp(left, _ARITHMETIC[type(op)](), right)
        case ast.AugAssign(target=target, op=op, value=value) if type(op) in _ARITHMETIC:
            yield ast.AugAssign(target, _ARITHMETIC[type(op)](), value)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            yield operand


def _constant(node: ast.AST) -> Iterator[ast.AST]:
    match node:
        case ast.Constant(value=bool(value)):
            yield ast.Constant(not value)
        case ast.Constant(value=int(value)) if value < _LARGE:
            yield ast.Constant(value + 1)
        case ast.Constant(value=float(value)):
            yield ast.Constant(value * 2 or 1.0)


def _returned(node: ast.AST) -> Iterator[ast.AST]:
    match node:
        case ast.Return(value=ast.expr() as value) if ast.unparse(value) != "None":
            yield ast.Return(ast.Constant(None))


def _argument(node: ast.AST) -> Iterator[ast.AST]:
    if not isinstance(node, ast.Call):
        return
    match node.args:
        case [ast.expr() as first, ast.expr() as second, *others]:
            starred = isinstance(first, ast.Starred) or isinstance(second, ast.Starred)
            same = ast.dump(first) == ast.dump(second) or ast.unparse(node.func) in _SYMMETRIC
            if not (starred or same):
                yield ast.Call(node.func, [second, first, *others], node.keywords)
    for each in node.keywords:
        if each.arg is not None and not _is_idle(each):
            yield ast.Call(node.func, node.args, [one for one in node.keywords if one is not each])


def _condition(node: ast.AST) -> Iterator[ast.AST]:
    match node:
        case ast.If(test=test, body=body, orelse=orelse) if not isinstance(test, ast.Constant):
            yield ast.If(ast.Constant(True), body, orelse)
            yield ast.If(ast.Constant(False), body, orelse)
        case ast.IfExp(body=body, orelse=orelse):
            yield body
            yield orelse
        case ast.While(body=body, orelse=orelse):
            yield ast.While(ast.Constant(False), body, orelse)
        case ast.ListComp() | ast.SetComp() | ast.DictComp() | ast.GeneratorExp():
            for at, found in enumerate(node.generators):
                if found.ifs:
                    every = ast.comprehension(found.target, found.iter, [], found.is_async)
                    changed = copy.copy(node)
                    changed.generators = [*node.generators]
                    changed.generators[at] = every
                    yield changed


def _statement(node: ast.AST) -> Iterator[ast.AST]:
    match node:
        case ast.Expr(value=ast.Call() | ast.Await() | ast.Yield() | ast.YieldFrom()):
            yield ast.Pass()
        case ast.AugAssign() | ast.Delete() | ast.Continue() | ast.Break() | ast.Raise():
            yield ast.Pass()
        case ast.Assign(targets=[ast.Attribute() | ast.Subscript()]):
            yield ast.Pass()


def _order(node: ast.AST) -> Iterator[ast.AST]:
    match node:
        case ast.Name(id=name) if name in _OPPOSITES:
            yield ast.Name(_OPPOSITES[name])
        case ast.Constant(value=str(text)) if text in _OPPOSITES:
            yield ast.Constant(_OPPOSITES[text])
        case ast.Call(func=ast.Name(id="sorted" | "reversed"), args=[values]):
            yield ast.Call(ast.Name("list"), [values], [])
        case ast.Call(func=ast.Attribute(attr="lexsort") as sort, args=[ast.Tuple(elts=keys)]):
            yield ast.Call(sort, [ast.Tuple(keys[::-1])], node.keywords)
        case ast.Lambda(args=given, body=ast.Tuple(elts=[first, second, *others])):
            yield ast.Lambda(given, ast.Tuple([second, first, *others]))


_OPERATORS: dict[str, Callable[[ast.AST], Iterator[ast.AST]]] = {
    "comparison": _comparison,
    "boolean": _boolean,
    "arithmetic": _arithmetic,
    "constant": _constant,
    "returned value": _returned,
    "argument": _argument,
    "condition": _condition,
    "statement": _statement,
    "order": _order,
}
