"""Reading source text: summaries, signatures, what is private, what is re-exported."""

import textwrap

import pytest

from jaxscale.errors import DataError
from retrieval.corpora.docstrings import Documented, Import, ParsedModule, parse_module, split_docstring

SOURCE = textwrap.dedent(
    '''
    """What the module is for.

    More of it."""
    import sys
    from os.path import join as join, split
    from . import sibling
    from .sibling import thing as other
    from ..cousin.deep import *
    alias = sibling.function
    renamed = other
    __all__ = ["public"]
    __all__ += ("late",)

    def public(a: int,  # the first
               b=("x:y", 2), *, c) -> dict[str, int]:
        """Do it. Twice.

        Then rest.
        """
        def inner():
            """Hidden."""

    def _private():
        """Hidden."""

    if sys.platform == "win32":
        async def conditional(): """One line."""
    else:
        def undocumented(): pass

    @decorator
    class Thing(Base):
        """A thing."""

        def __init__(self, size, *parts):
            """Hidden."""

        @property
        def size(self):
            r"""Its \\size."""

        class Inner:
            """Nested."""
            def method(self): """Deep."""
    '''
)


@pytest.fixture(scope="module")
def module() -> ParsedModule:
    return parse_module("pkg.sub.mod", SOURCE, is_package=False)


def test_what_is_documented(module: ParsedModule) -> None:
    assert list(module.documented) == [
        Documented("", "", "What the module is for.", "More of it."),
        Documented("public", 'public(a: int, b=("x:y", 2), *, c) -> dict[str, int]', "Do it.", "Twice.\n\nThen rest."),
        Documented("conditional", "conditional()", "One line.", ""),
        Documented("Thing", "Thing(self, size, *parts)", "A thing.", ""),
        Documented("Thing.size", "size(self)", "Its \\size.", ""),
        Documented("Thing.Inner", "Inner", "Nested.", ""),
        Documented("Thing.Inner.method", "method(self)", "Deep.", ""),
    ]


def test_names_and_exports(module: ParsedModule) -> None:
    assert module.names == {"public", "_private", "conditional", "undocumented", "Thing"}
    assert module.exported == {"public", "late"}


def test_imports_are_made_absolute(module: ParsedModule) -> None:
    assert list(module.imports) == [
        Import("os.path", "join", "join", True),
        Import("os.path", "split", "split", False),
        Import("pkg.sub", "sibling", "sibling", False),
        Import("pkg.sub.sibling", "thing", "other", True),
        Import("pkg.cousin.deep", "*", "*", False),
        Import("pkg.sub.sibling", "function", "alias", True),
        Import("pkg.sub.sibling", "thing", "renamed", True),
    ]


def test_a_package_counts_its_dots_from_itself() -> None:
    source = "from . import a\nfrom .b import c\nfrom .. import d\n"
    found = parse_module("pkg.sub", source, is_package=True).imports
    assert [(i.module, i.name) for i in found] == [("pkg.sub", "a"), ("pkg.sub.b", "c"), ("pkg", "d")]


def test_docs_that_numpy_adds_for_others() -> None:
    source = textwrap.dedent(
        '''
        add_newdoc('numpy._core.multiarray', 'zeros', """
            zeros(shape, dtype=float)

            Return zeros.

            Parameters and more.
            """)
        add_newdoc('numpy._core.multiarray', 'ndarray', ('sum', """Skipped."""))
        add_newdoc('numpy._core.multiarray', '_hidden', """Skipped.""")
        '''
    )
    (added,) = parse_module("numpy._core._add_newdocs", source, is_package=False).added
    assert added == ("numpy._core.multiarray", Documented("zeros", "zeros", "Return zeros.", "Parameters and more."))


@pytest.mark.parametrize(
    ("docstring", "summary", "body"),
    [
        ("Return x.", "Return x.", ""),
        ("Return\n    x\n    now. And y.\n\n    Rest.", "Return x now.", "And y.\n\nRest."),
        ("No full stop\n\nRest.", "No full stop", "Rest."),
        ("Use a.b(c), i.e. this or etc. that. Rest", "Use a.b(c), i.e. this or etc. that.", "Rest"),
        ("Is it so? Yes.", "Is it so?", "Yes."),
        ("By J. Doe of v1.5 fame. Rest.", "By J. Doe of v1.5 fame.", "Rest."),
        ("name(a, b)\n\nDo it.\n\nRest.", "Do it.", "Rest."),
        ("module.name(a[, b]) -> c\n\nDo it.", "Do it.", ""),
        ("rename(a) is another thing.", "rename(a) is another thing.", ""),
        ("", "", ""),
    ],
)
def test_split_docstring(docstring: str, summary: str, body: str) -> None:
    assert split_docstring(docstring, "name") == (summary, body)


@pytest.mark.parametrize("source", ["def f(:", "x = '\x00'", "print 'old'"])
def test_refuses_what_is_not_python(source: str) -> None:
    with pytest.raises(DataError, match="mod: not Python of this version"):
        parse_module("mod", source, is_package=False)


def test_old_escapes_raise_no_warning() -> None:
    assert parse_module("mod", '"""A \\d."""', is_package=False).documented[0].summary == "A \\d."
