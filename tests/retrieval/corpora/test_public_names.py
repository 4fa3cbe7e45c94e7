"""Public names of what private modules define."""

import textwrap

from retrieval.corpora.docstrings import parse_module
from retrieval.corpora.public_names import public_names


def names_of(**sources: str) -> dict[str, str]:
    """Sources by module (`__` for a dot, a trailing `__init` for a package) -> `module.name` -> public name."""
    modules = {}
    for key, source in sources.items():
        name = key.removesuffix("__init").replace("__", ".")
        modules[name] = parse_module(name, textwrap.dedent(source), is_package=key.endswith("__init"))
    return {f"{module}.{name}": public for (module, name), public in public_names(modules).items()}


def test_a_public_module_keeps_its_names() -> None:
    assert names_of(pkg__init="", pkg__mod="def f(): pass\ndef _g(): pass") == {"pkg.mod.f": "pkg.mod.f"}


def test_a_package_above_names_what_it_imports() -> None:
    found = names_of(pkg__init="from .mod import f\nfrom .mod import g as h", pkg__mod="def f(): pass\ndef g(): pass")
    assert found == {"pkg.mod.f": "pkg.f", "pkg.mod.g": "pkg.h"}


def test_private_modules_have_names_only_by_reexport() -> None:
    found = names_of(
        pkg__init="",
        pkg___src="def f(): pass\ndef g(): pass\ndef h(): pass\ndef used(): pass",
        pkg__api="from pkg._src import f as f, h as ours\nfrom pkg._src import used\n__all__ = ['ours']",
    )
    assert found == {"pkg._src.f": "pkg.api.f", "pkg._src.h": "pkg.api.ours"}


def test_follows_stars_and_chains() -> None:
    found = names_of(
        pkg__init="from ._core import *",
        pkg___core__init="from .numeric import *\nfrom . import numeric\n__all__ = ['numeric']",
        pkg___core__numeric="from .multi import array, helper\ndef ones(): pass\n__all__ = ['ones', 'array']",
        pkg___core__multi="def array(): pass\ndef helper(): pass",
    )
    assert found == {"pkg._core.numeric.ones": "pkg.ones", "pkg._core.multi.array": "pkg.array"}


def test_assignments_reexport_too() -> None:
    found = names_of(
        pkg__init="from pkg import _alias\nfrom pkg._alias import g as _g\nclip = _alias.clip\ng = _g",
        pkg___alias="def clip(): pass\ndef g(): pass",
    )
    assert found == {"pkg._alias.clip": "pkg.clip", "pkg._alias.g": "pkg.g"}


def test_another_modules_use_gives_no_name() -> None:
    """`inspect` imports `dedent` from `textwrap`; nobody knows it as `inspect.dedent`."""
    found = names_of(textwrap="def dedent(): pass", a="from textwrap import dedent as dedent\n__all__ = ['dedent']")
    assert found == {"textwrap.dedent": "textwrap.dedent"}


def test_takes_the_shortest_then_the_first_of_the_alphabet() -> None:
    found = names_of(
        pkg__init="",
        pkg__long__init="from pkg._src import f",
        pkg__b__init="from pkg._src import f",
        pkg__a__init="from pkg._src import f",
        pkg__a__deep__init="from pkg._src import f",
        pkg___src="def f(): pass",
    )
    assert found == {"pkg._src.f": "pkg.a.f"}


def test_circles_end() -> None:
    found = names_of(
        pkg__init="from .a import *\nfrom .b import x",
        pkg__a="from .b import *\nfrom .b import x\ndef f(): pass",
        pkg__b="from .a import *\nfrom .a import x",
    )
    assert found == {"pkg.a.f": "pkg.f"}


def test_only_the_private_modules_that_are_led_to_are_read() -> None:
    class Watched(dict):
        def __getitem__(self, key: str):
            read.append(key)
            return super().__getitem__(key)

    read: list[str] = []
    sources = {"pkg": "from ._used import f", "pkg._used": "from ._unused import g\ndef f(): pass", "pkg._unused": ""}
    public_names(Watched({n: parse_module(n, s, is_package=n == "pkg") for n, s in sources.items()}))
    assert set(read) == {"pkg", "pkg._used"}
