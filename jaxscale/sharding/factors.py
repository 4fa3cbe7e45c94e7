"""Factors: the pieces of array dims that must be split together, found by linking dims that meet in an operation.

A dim of size n is a product of factors, most significant first: a fused dim of 12 heads of width 64 is one factor of
768 until a reshape takes it apart, and then the two factors 12 and 64 wherever that factor stands. Two dims that meet
(in an addition, in a contraction) are linked: they have the same factors from then on. Factors of size 1 are not kept.
"""

import math

# The factors of one dim, most significant first; () for a dim of size 1.
Dim = tuple[int, ...]
# The factors of every dim of an array.
Dims = tuple[Dim, ...]


class Factors:
    """A union-find of factors in which a class can also be split in two, for all its members at once."""

    def __init__(self) -> None:
        self._sizes: list[int] = []
        self._parents: list[int] = []
        self._halves: dict[int, tuple[int, int]] = {}

    def new_dim(self, size: int) -> Dim:
        """A dim of `size` that is linked to nothing yet."""
        if size == 1:
            return ()
        self._sizes.append(size)
        self._parents.append(len(self._parents))
        return (len(self._parents) - 1,)

    def new_dims(self, shape: tuple[int, ...]) -> Dims:
        """Dims of `shape` that are linked to nothing yet."""
        return tuple(self.new_dim(size) for size in shape)

    def size(self, factor: int) -> int:
        """The size of a factor."""
        return self._sizes[factor]

    def dim_size(self, dim: Dim) -> int:
        """The size of a dim: the product of its factors."""
        return math.prod(self._sizes[factor] for factor in dim)

    def resolve(self, dim: Dim) -> Dim:
        """The dim in today's factors: representatives of their classes, none of them split."""
        resolved: list[int] = []
        pending = list(reversed(dim))
        while pending:
            root = self._root(pending.pop())
            halves = self._halves.get(root)
            if halves is None:
                resolved.append(root)
            else:
                pending += reversed(halves)
        return tuple(resolved)

    def link(self, left: Dim, right: Dim) -> bool:
        """Makes two dims of the same size one; False where their factors do not fit each other (12*64 with 64*12).

        What could be linked before the misfit stays linked.
        """
        lefts, rights = list(reversed(left)), list(reversed(right))
        while lefts and rights:
            a, b = self._pop(lefts), self._pop(rights)
            size_a, size_b = self._sizes[a], self._sizes[b]
            if size_a == size_b:
                self._parents[max(a, b)] = min(a, b)
                continue
            small, large = min(size_a, size_b), max(size_a, size_b)
            if large % small:
                return False
            self._split(a if size_a > size_b else b, small)
            lefts.append(a)
            rights.append(b)
        return not lefts and not rights

    def take(self, dim: Dim, size: int) -> tuple[Dim, Dim] | None:
        """The dim cut in two, the first part of `size`; None where its factors do not allow it."""
        pending, taken = list(reversed(dim)), []
        while size > 1:
            if not pending:
                return None
            factor = self._pop(pending)
            if size % self._sizes[factor] == 0:
                taken.append(factor)
                size //= self._sizes[factor]
            elif self._sizes[factor] % size == 0:
                self._split(factor, size)
                pending.append(factor)
            else:
                return None
        return tuple(taken), tuple(reversed(pending))

    def _root(self, factor: int) -> int:
        while self._parents[factor] != factor:
            self._parents[factor] = self._parents[self._parents[factor]]
            factor = self._parents[factor]
        return factor

    def _pop(self, pending: list[int]) -> int:
        """Takes the first factor, put in today's terms, off a reversed list."""
        first, *rest = self.resolve((pending.pop(),))
        pending += reversed(rest)
        return first

    def _split(self, root: int, major_size: int) -> None:
        (major,), (minor,) = self.new_dims((major_size, self._sizes[root] // major_size))
        self._halves[root] = (major, minor)
