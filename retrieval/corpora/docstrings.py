"""Python source text -> what it documents and what it re-exports, by `ast` alone: nothing is ever imported."""

import ast
import contextlib
import gc
import inspect
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from jaxscale.errors import DataError

_Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef

# A sentence ends at a full stop before space, but not after an abbreviation or a single letter.
_SENTENCE_END = re.compile(r"(?<!\be\.g)(?<!\bi\.e)(?<!\bvs)(?<!\betc)(?<!\bcf)(?<!\b[A-Z])[.!?](?=\s|$)")
_CALL = re.compile(r"(?:\w+\.)*(\w+)\(")
_COMMENT = re.compile(r"\s#\s.*")


@dataclass(frozen=True, slots=True)
class Documented:
    """Something with a docstring.

    Attributes:
      name: its dotted name inside its module; empty for the module itself.
      signature: how it is called, as the source has it; empty for a module.
      summary: the docstring's first sentence, on one line.
      body: the rest of the docstring.
    """

    name: str
    signature: str
    summary: str
    body: str


@dataclass(frozen=True, slots=True)
class Import:
    """`from module import name as local_name`, or an assignment that does the same; both names are `*` for a star.

    `has_as` tells `import name as name`, which offers the name to others, from `import name`, which need not.
    """

    module: str
    name: str
    local_name: str
    has_as: bool


@dataclass(frozen=True, slots=True)
class ParsedModule:
    """What one source file says.

    Attributes:
      name: the module's dotted name.
      is_package: whether the file is an `__init__.py`.
      documented: in the order of the file.
      added: what it documents for another module, with that module's name.
      names: the functions and classes defined at its top level.
      imports: the names it takes from other modules.
      exported: its `__all__`, as far as it is written out.
    """

    name: str
    is_package: bool
    documented: tuple[Documented, ...]
    added: tuple[tuple[str, Documented], ...]
    names: frozenset[str]
    imports: tuple[Import, ...]
    exported: frozenset[str]


def parse_module(name: str, source: str, *, is_package: bool) -> ParsedModule:
    """Reads one source file.

    Private names (a leading underscore) and functions within functions are left out.

    Args:
      name: the module's dotted name.
      source: its text.
      is_package: whether it is an `__init__.py`.

    Raises:
      DataError: the source is not Python of this interpreter's version.
    """
    try:
        with warnings.catch_warnings(), _no_cyclic_garbage():
            warnings.simplefilter("ignore")  # old escapes in other people's strings
            tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError) as error:
        raise DataError(f"{name}: not Python of this version: {error}") from None
    lines = source.splitlines()
    statements = list(_top_level(tree.body))
    return ParsedModule(
        name=name,
        is_package=is_package,
        documented=(*_documented_here("", "", tree), *_definitions(statements, "", lines)),
        added=tuple(_added_docs(statements)),
        names=frozenset(s.name for s in statements if isinstance(s, _Definition)),
        imports=tuple(_imports(statements, name, is_package)),
        exported=frozenset(_exported(statements)),
    )


def split_docstring(docstring: str, name: str = "") -> tuple[str, str]:
    """The first sentence of a docstring, on one line, and what follows it.

    A first paragraph that is the call's signature is passed over.

    Args:
      docstring: as written; its indentation is removed.
      name: what it documents, to recognise a signature.

    >>> split_docstring("Add two numbers, e.g. 1 and 2. Fast.\\n\\nNever fails.")
    ('Add two numbers, e.g. 1 and 2.', 'Fast.\\n\\nNever fails.')
    >>> split_docstring("add(a, b)\\n\\nAdd two\\nnumbers.", "add")
    ('Add two numbers.', '')
    """
    text = inspect.cleandoc(docstring).strip()
    first, _, rest = text.partition("\n\n")
    call = _CALL.match(first)
    if name and call and call[1] == name:
        first, _, rest = rest.strip().partition("\n\n")
    end = _SENTENCE_END.search(first)
    sentence, remainder = (first[: end.end()], first[end.end() :]) if end else (first, "")
    body = "\n\n".join(part for part in (remainder.strip(), rest.strip()) if part)
    return " ".join(sentence.split()), body


@contextlib.contextmanager
def _no_cyclic_garbage() -> Iterator[None]:
    """Holds the garbage collector back while a tree grows: it would look through millions of live nodes in vain."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _top_level(statements: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements, and those under `if`, `try` and `with`."""
    for statement in statements:
        yield statement
        for field in ("body", "orelse", "finalbody"):
            if isinstance(statement, (ast.If, ast.Try, ast.With)):
                yield from _top_level(getattr(statement, field, []))


def _definitions(statements: list[ast.stmt], prefix: str, lines: list[str]) -> Iterator[Documented]:
    for node in statements:
        if isinstance(node, _Definition) and not node.name.startswith("_"):
            name = f"{prefix}{node.name}"
            yield from _documented_here(name, _signature(node, lines), node)
            if isinstance(node, ast.ClassDef):
                yield from _definitions(list(_top_level(node.body)), f"{name}.", lines)


def _documented_here(name: str, signature: str, node: _Definition | ast.Module) -> Iterator[Documented]:
    first = node.body[0] if node.body else None
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
        yield Documented(name, signature, *split_docstring(first.value.value, name.rpartition(".")[2]))


def _signature(node: _Definition, lines: list[str]) -> str:
    """The text between a definition's first line and its body, on one line; a class takes that of its `__init__`."""
    if isinstance(node, ast.ClassDef):
        starts = (n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__")
        start = next(starts, None)
        return node.name + ("" if start is None else _signature(start, lines).removeprefix("__init__"))
    text = " ".join(_COMMENT.sub("", line).strip() for line in lines[node.lineno - 1 : node.body[0].lineno - 1])
    if node.body[0].lineno == node.lineno:
        text = lines[node.lineno - 1]
    return text.strip().removeprefix("async ").removeprefix("def ").rpartition(":")[0].strip()


def _added_docs(statements: list[ast.stmt]) -> Iterator[tuple[str, Documented]]:
    """What numpy says of its functions written in C: `add_newdoc('numpy._core.multiarray', 'array', text)`."""
    for statement in statements:
        call = statement.value if isinstance(statement, ast.Expr) else None
        if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "add_newdoc"):
            continue
        words = [a.value for a in call.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
        if len(words) == 3 and len(call.args) == 3 and not words[1].startswith("_"):
            yield words[0], Documented(words[1], words[1], *split_docstring(words[2], words[1]))


def _imports(statements: list[ast.stmt], module: str, is_package: bool) -> Iterator[Import]:
    modules: dict[str, str] = {}  # local name -> full name
    for statement in statements:
        if isinstance(statement, ast.ImportFrom):
            source = _absolute(statement, module, is_package)
            for alias in statement.names:
                local_name = alias.asname or alias.name
                modules[local_name] = f"{source}.{alias.name}"
                yield Import(source, alias.name, local_name, alias.asname is not None)
        elif isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
            source, _, name = _imported(statement.value, modules).rpartition(".")
            if source:
                yield Import(source, name, statement.targets[0].id, True)


def _imported(value: ast.expr, modules: Mapping[str, str]) -> str:
    """The full name of `x` or `x.y` where `x` was imported, else an empty string."""
    if isinstance(value, ast.Attribute) and isinstance(value.value, ast.Name) and value.value.id in modules:
        return f"{modules[value.value.id]}.{value.attr}"
    return modules[value.id] if isinstance(value, ast.Name) and value.id in modules else ""


def _exported(statements: list[ast.stmt]) -> Iterator[str]:
    for statement in statements:
        if isinstance(statement, ast.Assign):
            targets, value = statement.targets, statement.value
        elif isinstance(statement, ast.AugAssign):
            targets, value = [statement.target], statement.value
        else:
            continue
        if isinstance(targets[0], ast.Name) and targets[0].id == "__all__" and isinstance(value, (ast.List, ast.Tuple)):
            yield from (e.value for e in value.elts if isinstance(e, ast.Constant) and isinstance(e.value, str))


def _absolute(statement: ast.ImportFrom, module: str, is_package: bool) -> str:
    if not statement.level:
        return statement.module or ""
    num_dropped = statement.level - is_package
    parents = module.split(".")[: -num_dropped or None]
    return ".".join([*parents, *([statement.module] if statement.module else [])])
