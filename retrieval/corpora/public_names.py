"""The names under which users know what private modules define: `jax._src.numpy.sorting.sort` is `jax.numpy.sort`."""

from collections.abc import Iterator, Mapping

from retrieval.corpora.docstrings import Import, ParsedModule

Origin = tuple[str, str]  # the defining module, and the name in it


def is_private(dotted_name: str) -> bool:
    """Whether a part of a dotted name starts with an underscore.

    >>> is_private("jax._src.api"), is_private("jax.numpy")
    (True, False)
    """
    return any(part.startswith("_") for part in dotted_name.split("."))


def reexports(module: ParsedModule) -> Iterator[Import]:
    """The imports by which a module means to offer a name as its own.

    Those are a package's imports, `import name as name` (PEP 484), what `__all__` names, and a star.
    """
    for found in module.imports:
        explicit = (found.has_as and found.name == found.local_name) or found.local_name in module.exported
        if (module.is_package or explicit or found.name == "*") and not found.local_name.startswith("_"):
            yield found


def public_names(modules: Mapping[str, ParsedModule]) -> dict[Origin, str]:
    """The public name of every function and class that has one.

    A definition in a public module keeps its own name, unless a package above it re-exports it; one in a private
    module has a name only where a public module re-exports it. Of several the one with fewest parts is taken, then the
    shortest, then the first in the alphabet.

    Args:
      modules: name -> module, those of one distribution. Of the private ones only those are asked for to which a
        re-export leads, so a mapping may parse them as late as that.

    Returns:
      (module, name) of a top-level definition -> its public dotted name.
    """
    resolver = _Resolver(modules)
    candidates: dict[Origin, list[str]] = {}
    for name in (name for name in modules if not is_private(name)):
        for local in sorted(modules[name].names):
            if not local.startswith("_"):
                candidates.setdefault((name, local), []).append(f"{name}.{local}")
        for local in sorted(resolver.offered(name)):
            origin = resolver.origin(name, local)
            if origin and origin[0] != name and (is_private(origin[0]) or origin[0].startswith(f"{name}.")):
                candidates.setdefault(origin, []).append(f"{name}.{local}")
    return {origin: min(names, key=lambda n: (n.count("."), len(n), n)) for origin, names in candidates.items()}


class _Resolver:
    """Follows imports from module to module; remembers what it found."""

    def __init__(self, modules: Mapping[str, ParsedModule]) -> None:
        self._modules = modules
        self._starred: dict[str, frozenset[str]] = {}
        self._origins: dict[Origin, Origin | None] = {}

    def offered(self, name: str) -> set[str]:
        """The public names that a module re-exports."""
        offered: set[str] = set()
        for found in reexports(self._modules[name]):
            offered |= self._star(found.module) if found.name == "*" else {found.local_name}
        return {local for local in offered if not local.startswith("_")}

    def origin(self, name: str, local: str) -> Origin | None:
        """The module that defines what `local` is in the module `name`, and its name there."""
        if name not in self._modules:
            return None
        key = name, local
        if key not in self._origins:
            self._origins[key] = None  # what a circle of imports finds
            self._origins[key] = self._follow(name, local)
        return self._origins[key]

    def _follow(self, name: str, local: str) -> Origin | None:
        module = self._modules[name]
        if local in module.names:
            return name, local
        for found in module.imports:
            origin = None
            if found.local_name == local:
                origin = self.origin(found.module, found.name)
            elif found.name == "*" and local in self._star(found.module):
                origin = self.origin(found.module, local)
            if origin:
                return origin
        return None

    def _star(self, name: str) -> frozenset[str]:
        """What `from name import *` brings: `__all__` where it is written out, else all public names.

        Names that come by a star themselves are among them: a package often adds its parts' `__all__` to its own.
        """
        if name not in self._modules:
            return frozenset()
        if name not in self._starred:
            self._starred[name] = frozenset()  # what a circle of imports finds
            module = self._modules[name]
            own = {*module.names, *(i.local_name for i in module.imports if i.name != "*")}
            public = frozenset(local for local in own if not local.startswith("_"))
            chained = (self._star(found.module) for found in module.imports if found.name == "*")
            self._starred[name] = (module.exported or public).union(*chained)
        return self._starred[name]
