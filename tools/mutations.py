"""Mutations of a module's source, for `tools/mutants.py`.

A mutation replaces one piece of a module's text. Not changed are docstrings, annotations, imports, decorators,
f-strings, assertions, `raise` statements, logging, defaults of settings (fields of a class), and the networks of
families and metrics, which are tested against references of other programs.
"""

import ast
import builtins
import re
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

SCOPE = {
    "zoo/[a-z]*.py": None,
    "zoo/metrics/*.py": None,
    "zoo/sampling/*.py": None,
    "zoo/sampling/*/*.py": None,
    "zoo/core/learner.py": None,
    "zoo/core/descent.py": None,
    "zoo/core/estimates.py": None,
    "zoo/core/random.py": None,
    "zoo/harness/evaluation.py": {"compile_evaluation", "evaluate_split"},
    "zoo/harness/trained.py": {"Trained.evaluate"},
    "zoo/data/text/masking.py": None,
    **{
        f"zoo/nn/{name}.py": None
        for name in (
            "losses", "likelihoods", "variational", "linear_cross_entropy", "spread_cross_entropy",
            "cpu/packed_cross_entropy", "cpu/vocabulary_chunk", "batch_norm", "aggressive_encoder",
        )
    },
}  # fmt: skip
"""Patterns of the files that are mutated and, if not all of a file is, of the functions."""

COMPARISONS = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
ARITHMETIC = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv, ast.Pow: ast.Mult, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
}  # fmt: skip
SWAPPED = {
    "min": "max", "minimum": "maximum", "argmin": "argmax", "any": "all", "sum": "mean", "cumsum": "cumprod",
    "floor": "ceil", "amin": "amax", "ones_like": "zeros_like", "ones": "zeros", "sin": "cos", "std": "var",
}  # fmt: skip
SWAPPED |= {b: a for a, b in SWAPPED.items()}
DROPPED = {
    "abs", "cumsum", "clip", "exp", "expm1", "flip", "log", "log1p", "log2", "log_softmax", "relu", "round", "sigmoid",
    "softmax", "sorted", "sqrt", "square", "stop_gradient", "tanh", "where",
}  # fmt: skip
"""Functions whose calls are replaced by an argument (`where`: by either of its values)."""
SYMMETRIC = {"maximum", "minimum", "max", "min", "logaddexp", "gcd", "add", "union", "multiply"}
LEFT = {"isinstance", "getattr", "setattr", "zip", "partial", "cast", *SYMMETRIC}
"""Functions whose arguments are neither omitted nor swapped."""
LEFT_FUNCTIONS = {"__post_init__", "__repr__", "describe", "check", "draw_weights"}
"""Not mutated: checks that raise errors, and display (names, and positions of letters in images)."""
PARENTHESISED = (ast.BinOp, ast.BoolOp, ast.Compare, ast.IfExp, ast.Lambda, ast.UnaryOp, ast.NamedExpr, ast.Await)


@dataclass(frozen=True)
class Mutation:
    """One change.

    Attributes:
        file: path relative to the repository.
        function: the qualified name of the innermost function or class around it; empty at module level.
        begin: offset of the replaced piece in the file's bytes.
        end: offset of its end.
        text: the replacement.
        line: number of the piece's first line.
        before: the lines around the piece, joined.
        after: these lines after the change.
    """

    file: str
    function: str
    begin: int
    end: int
    text: str
    line: int
    before: str
    after: str

    def apply(self, source: bytes) -> bytes:
        """The mutated source."""
        return source[: self.begin] + self.text.encode() + source[self.end :]


def files(root: Path) -> list[str]:
    """All files in scope that have a statement."""
    found = [path.relative_to(root).as_posix() for path in sorted(root.glob("zoo/**/*.py"))]
    return [file for file in found if _functions(file) is not False and (root / file).stat().st_size]


def mutations(root: Path, file: str) -> list[Mutation]:
    """All changes of a file, in the order of its text."""
    source, only = (root / file).read_bytes(), _functions(file)
    starts = [0, *(match.end() for match in re.finditer(b"\n", source))]
    found = {}
    for function, node, text in _Finder(file).changes(ast.parse(source)):
        if only and not any(f"{function}.".startswith(f"{name}.") for name in only):
            continue
        begin = starts[node.lineno - 1] + node.col_offset
        end = starts[node.end_lineno - 1] + node.end_col_offset
        text = f"({text})" if source[end : end + 1] == b"." and text[0].isdigit() else text
        if begin == end or source[begin:end].decode() == text:
            continue
        first, last = starts[node.lineno - 1], source.find(b"\n", end)
        before = source[first:last].decode()
        after = (source[first:begin] + text.encode() + source[end:last]).decode()
        change = Mutation(file, function, begin, end, text, node.lineno, _joined(before), _joined(after))
        found.setdefault((begin, end, text), change)
    return sorted(found.values(), key=lambda change: (change.begin, change.end, change.text))


def _functions(file: str) -> set[str] | bool | None:
    return next((only for pattern, only in SCOPE.items() if fnmatch(file, pattern) and _depth(file, pattern)), False)


def _depth(file: str, pattern: str) -> bool:
    return file.count("/") == pattern.count("/")


def _joined(text: str) -> str:
    return " ".join(text.split())


class _Finder:
    """Walks a module and yields (function, replaced node, replacement)."""

    def __init__(self, file: str):
        self.left_bases = {"Protocol"} if file.startswith("zoo/nn/") else {"Protocol", "nnx.Module"}

    def changes(self, node: ast.AST, function: str = "") -> Iterator[tuple[str, ast.AST, str]]:
        """Changes of a node and of its descendants."""
        if self._is_left(node, function):
            return
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            function = f"{function}.{node.name}".lstrip(".")
        elif isinstance(node, ast.Call) and _name(node.func) == "require":
            return
        for target, replacement in self.own(node):
            text = replacement if isinstance(replacement, str) else _text(replacement)
            yield function, target, text
        for child in self.children(node):
            yield from self.changes(child, function)

    def _is_left(self, node: ast.AST, function: str) -> bool:
        if isinstance(node, ast.Import | ast.ImportFrom | ast.Raise | ast.Assert | ast.JoinedStr):
            return True
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            return True  # a docstring
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            callee = ast.unparse(node.value.func)
            return callee.startswith(("log.", "logging.", "warnings.", "super()"))
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            return True
        if isinstance(node, ast.FunctionDef):
            return node.name in LEFT_FUNCTIONS
        return isinstance(node, ast.ClassDef) and any(ast.unparse(base) in self.left_bases for base in node.bases)

    def children(self, node: ast.AST) -> list[ast.AST]:
        """The children of a node that are searched: not annotations, decorators and defaults of settings."""
        if isinstance(node, ast.FunctionDef):
            return [*node.args.defaults, *filter(None, node.args.kw_defaults), *node.body]
        if isinstance(node, ast.ClassDef):
            return [child for child in node.body if isinstance(child, ast.FunctionDef)]
        if isinstance(node, ast.AnnAssign):
            return [node.value] if node.value else []
        if isinstance(node, ast.Assign) and re.match(r"Literal\[|Callable\[|dict\[|tuple\[", ast.unparse(node.value)):
            return []  # the name of a type
        if isinstance(node, ast.Call) and _name(node.func) in ("isinstance", "cast"):
            return []
        if isinstance(node, ast.keyword) and node.arg == "strict":
            return []
        return list(ast.iter_child_nodes(node))

    def own(self, node: ast.AST) -> Iterator[tuple[ast.AST, ast.AST | str]]:
        """Changes of a node itself: pairs of the replaced node and its replacement."""
        method = getattr(self, f"of_{type(node).__name__}", None)
        if method is not None:
            yield from method(node)

    def of_Compare(self, node):  # noqa: N802
        for i, operator in enumerate(node.ops):
            ops = [*node.ops[:i], COMPARISONS[type(operator)](), *node.ops[i + 1 :]]
            yield node, ast.Compare(node.left, ops, node.comparators)

    def of_BinOp(self, node):  # noqa: N802
        if isinstance(node.op, ast.BitOr) and isinstance(node.right, ast.Dict | ast.DictComp):
            yield node, node.left
        elif isinstance(node.op, ast.MatMult):
            yield node, ast.BinOp(node.right, node.op, node.left)
        else:
            yield node, ast.BinOp(node.left, ARITHMETIC[type(node.op)](), node.right)

    def of_BoolOp(self, node):  # noqa: N802
        yield node, ast.BoolOp(ast.Or() if isinstance(node.op, ast.And) else ast.And(), node.values)

    def of_UnaryOp(self, node):  # noqa: N802
        yield node, node.operand

    def of_Constant(self, node):  # noqa: N802
        if isinstance(node.value, bool):
            yield node, repr(not node.value)
        elif isinstance(node.value, int | float):
            yield node, repr(node.value + 1)
            if node.value == 1:
                yield node, repr(node.value - 1)

    def of_If(self, node):  # noqa: N802
        yield node.test, "False" if not node.orelse else f"not ({ast.unparse(node.test)})"

    def of_IfExp(self, node):  # noqa: N802
        yield node, node.body
        yield node, node.orelse

    def of_comprehension(self, node):
        for test in node.ifs:
            yield test, "True"

    def of_Break(self, node):  # noqa: N802
        yield node, "continue"

    def of_Continue(self, node):  # noqa: N802
        yield node, "break"

    def of_AugAssign(self, node):  # noqa: N802
        yield node, "pass"
        if not isinstance(node.op, ast.BitOr | ast.MatMult):
            yield node, ast.AugAssign(node.target, ARITHMETIC[type(node.op)](), node.value)

    def of_Assign(self, node):  # noqa: N802
        """Omits an assignment `x = f(x)`, so that the old value is kept."""
        used = {name.id for name in ast.walk(node.value) if isinstance(name, ast.Name)}
        if len(node.targets) == 1 and isinstance(node.targets[0], ast.Name) and node.targets[0].id in used:
            yield node, "pass"

    def of_Expr(self, node):  # noqa: N802
        if isinstance(node.value, ast.Call):
            yield node, "pass"

    def of_Slice(self, node):  # noqa: N802
        for part in ("lower", "upper", "step"):
            if getattr(node, part) is not None:
                parts = {name: None if name == part else getattr(node, name) for name in ("lower", "upper", "step")}
                yield node, ast.Slice(**parts)

    def of_Call(self, node):  # noqa: N802
        """Replaces the function, replaces the call by an argument, omits a keyword, swaps the first two arguments."""
        name, plain = _name(node.func), not any(isinstance(each, ast.Starred) for each in node.args)
        builtin = isinstance(node.func, ast.Name) and SWAPPED.get(name) not in vars(builtins)
        if name in SWAPPED and not builtin and not ast.unparse(node.func).startswith("parallel."):
            yield node.func, ast.unparse(node.func)[: -len(name)] + SWAPPED[name]
        if name in DROPPED and plain and node.args:
            for argument in node.args[1:] if name == "where" else node.args[:1]:
                yield node, argument
        for i, keyword in enumerate(node.keywords):
            if keyword.arg not in (None, "strict", "dtype") and name not in LEFT:
                yield node, ast.Call(node.func, node.args, [*node.keywords[:i], *node.keywords[i + 1 :]])
        text = any(isinstance(each, ast.Constant) and isinstance(each.value, str) for each in node.args[:2])
        if len(node.args) >= 2 and plain and not text and name not in LEFT:
            yield node, ast.Call(node.func, [node.args[1], node.args[0], *node.args[2:]], node.keywords)


def _name(function: ast.AST) -> str:
    """The last part of the name of a called function."""
    return ast.unparse(function).rsplit(".", 1)[-1]


def _text(node: ast.AST) -> str:
    text = ast.unparse(node)
    return f"({text})" if isinstance(node, PARENTHESISED) else text
