"""The names under which users know what private modules define: `jax._src.numpy.sorting.sort` is `jax.numpy.sort`."""

from collections.abc import Iterable, Iterator, Mapping

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

    Those are a package's imports, `import name as name` (PEP 484), and a star.
    """
    for found in module.imports:
        explicit = found.has_as and found.name == found.local_name
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
    candidates: dict[Origin, list[str]] = {}
    for name in (name for name in modules if not is_private(name)):
        for local in sorted(modules[name].names):
            if not local.startswith("_"):
                candidates.setdefault((name, local), []).append(f"{name}.{local}")
        for local in _offered(modules[name], modules):
            origin = _origin(name, local, modules, frozenset())
            if origin and origin[0] != name and (is_private(origin[0]) or origin[0].startswith(f"{name}.")):
                candidates.setdefault(origin, []).append(f"{name}.{local}")
    return {origin: min(names, key=lambda n: (n.count("."), len(n), n)) for origin, names in candidates.items()}


def _offered(module: ParsedModule, modules: Mapping[str, ParsedModule]) -> Iterable[str]:
    for found in reexports(module):
        names = _all_names(found.module, modules, frozenset()) if found.name == "*" else {found.local_name}
        yield from sorted(name for name in names if not name.startswith("_"))


def _all_names(name: str, modules: Mapping[str, ParsedModule], above: frozenset[str]) -> set[str]:
    """What a star import of a module brings, as far as the source tells."""
    if name not in modules or name in above:
        return set()
    names = set(modules[name].names)
    for found in modules[name].imports:
        names |= _all_names(found.module, modules, above | {name}) if found.name == "*" else {found.local_name}
    return names


def _origin(name: str, local: str, modules: Mapping[str, ParsedModule], above: frozenset[Origin]) -> Origin | None:
    """Follows imports to the module that defines `local` of the module `name`."""
    if name not in modules or (name, local) in above:
        return None
    module, above = modules[name], above | {(name, local)}
    if local in module.names:
        return name, local
    for found in module.imports:
        if found.name == "*" or found.local_name == local:
            origin = _origin(found.module, local if found.name == "*" else found.name, modules, above)
            if origin:
                return origin
    return None
