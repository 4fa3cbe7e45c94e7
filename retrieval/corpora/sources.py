"""The Python source files of installed distributions, found without importing them and parsed when first asked for."""

import importlib.util
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from jaxscale.errors import DataError
from retrieval.corpora.docstrings import Documented, ParsedModule, parse_module

STANDARD_LIBRARY = "stdlib"

# Tests, vendored copies and whole programs: their docstrings are not what a user looks for.
_SKIPPED_FOLDERS = frozenset(
    (
        *("__pycache__", "_vendor", "dist-packages", "distutils", "ensurepip", "f2py", "idlelib", "lib2to3"),
        *("pydoc_data", "site-packages", "sphinxext", "test", "testing", "tests", "turtledemo"),
    )
)
_SKIPPED_STEMS = frozenset(("__main__", "conftest", "setup"))

# Here numpy documents what it has written in C.
_ADDED_DOCS_STEM = "_add_newdocs"


class DistributionSources(Mapping[str, ParsedModule]):
    """The modules of one distribution: dotted name -> what its source says, parsed at the first access.

    Attributes:
      name: the top-level package, or `stdlib`.
      unreadable: modules that this interpreter can't parse, met so far; they count as empty.
    """

    def __init__(self, name: str) -> None:
        """Finds the distribution's files.

        Args:
          name: a top-level package's name, or `stdlib`.

        Raises:
          DataError: it is not installed, or has no source files.
        """
        self.name = name
        self.unreadable: list[str] = []
        self._files = dict(_standard_library_files() if name == STANDARD_LIBRARY else _package_files(name))
        if not self._files:
            raise DataError(f"the package {name!r} has no Python source files")
        self._parsed: dict[str, ParsedModule] = {}
        self._added: dict[str, list[Documented]] = {}
        for module_name in [n for n in self._files if n.rpartition(".")[2] == _ADDED_DOCS_STEM]:
            for target, documented in self[module_name].added:
                self._added.setdefault(target, []).append(documented)

    def __getitem__(self, name: str) -> ParsedModule:
        if name not in self._parsed:
            self._parsed[name] = self._parse(name)
        return self._parsed[name]

    def __contains__(self, name: object) -> bool:
        return name in self._files

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)

    def _parse(self, name: str) -> ParsedModule:
        path = self._files[name]
        is_package = path.stem == "__init__"
        try:
            module = parse_module(name, path.read_text(encoding="utf-8-sig"), is_package=is_package)
        except (DataError, UnicodeDecodeError):
            self.unreadable.append(name)
            return parse_module(name, "", is_package=is_package)
        added = self._added.get(name, [])
        documented = (*module.documented, *added)
        return replace(module, documented=documented, names=module.names | {d.name for d in added})


def is_installed(package: str) -> bool:
    """Whether a top-level package can be found; it is not imported."""
    return package == STANDARD_LIBRARY or importlib.util.find_spec(package) is not None


def _standard_library_files() -> Iterator[tuple[str, Path]]:
    root = Path(sysconfig.get_path("stdlib"))
    for name, path in _files_below(root, ()):
        if name.partition(".")[0] in sys.stdlib_module_names:
            yield name, path


def _package_files(package: str) -> Iterator[tuple[str, Path]]:
    spec = importlib.util.find_spec(package)
    if spec is None:
        raise DataError(f"the package {package!r} is not installed")
    for location in spec.submodule_search_locations or ():
        yield from _files_below(Path(location), (package,))
    if not spec.submodule_search_locations and spec.origin and spec.origin.endswith(".py"):
        yield package, Path(spec.origin)


def _files_below(folder: Path, parents: tuple[str, ...]) -> Iterator[tuple[str, Path]]:
    """Yields (module name, file), sorted within each folder, so that the order is the same on every machine."""
    for path in sorted(folder.iterdir()):
        if path.suffix == ".py" and path.stem not in _SKIPPED_STEMS and "test" not in path.stem.split("_"):
            parts = parents if path.stem == "__init__" else (*parents, path.stem)
            if parts:
                yield ".".join(parts), path
        elif path.is_dir() and path.name.isidentifier() and path.name not in _SKIPPED_FOLDERS:
            yield from _files_below(path, (*parents, path.name))
