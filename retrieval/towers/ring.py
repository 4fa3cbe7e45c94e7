"""InfoNCE with the queries passed from device to device: every product is of two devices' examples.

Each device keeps its documents, of which there are as many as queries or, with hard negatives, more. Its queries go
round the ring of all devices that split the batch, and at every stop meet the documents there; what is summed up over
the documents of a query travels with it, what is summed up over the queries of a document stays. After as many steps as
there are devices, all queries are back home. The backward pass goes round once more, with each query's gradient
travelling beside it. So no device ever holds the vectors of all, nor more scores than one device's queries have with
another's documents; what is computed is `info_nce`, to rounding.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from jaxscale.mesh import MeshSpec, abstract_mesh
from jaxscale.sharding.specs import BATCH_AXES, num_parts
from retrieval.towers.in_batch import Asked, Offered, Relations
from retrieval.towers.loss import Contrastive, scores_of


class _Sums(NamedTuple):
    """What is known of each of n queries after some of the documents, or of n documents after some of the queries.

    Attributes:
      top: the highest score.
      total: the sum of exp(score - top).
      positive: the sum of the scores of positives.
      num_positives: how many these were.
      top_positive: the highest of these scores.
    """

    top: Float[Array, "n"]
    total: Float[Array, "n"]
    positive: Float[Array, "n"]
    num_positives: Float[Array, "n"]
    top_positive: Float[Array, "n"]

    @property
    def logsumexp(self) -> Float[Array, "n"]:
        """Of all scores that were not excluded; there is at least one, that of a query and its own document."""
        return self.top + jnp.log(self.total)

    @property
    def norms(self) -> "_Norms":
        """What the gradient needs of them."""
        return _Norms(self.logsumexp, self.num_positives)

    @property
    def losses(self) -> Float[Array, "n"]:
        """The cross-entropy of each."""
        return self.logsumexp - self.positive / self.num_positives


class _Norms(NamedTuple):
    """What the gradient needs of `_Sums`."""

    logsumexp: Float[Array, "n"]
    num_positives: Float[Array, "n"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ring:
    """The loss on one mesh.

    Attributes:
      mesh: with every size resolved.
      contrastive: masks, positives, and whether documents look for their queries too.
    """

    mesh: MeshSpec
    contrastive: Contrastive

    @property
    def axes(self) -> tuple[str, ...]:
        """The axes that examples are split over."""
        return tuple(axis for axis in BATCH_AXES if self.mesh.sizes[axis] > 1)

    @property
    def num_devices(self) -> int:
        """In the ring."""
        return num_parts(self.mesh, self.axes)

    def info_nce(
        self,
        queries: Float[Array, "B E"],
        documents: Float[Array, "B P E"],
        temperature: Float[Array, ""],
        asked: Asked,
        offered: Offered,
    ) -> tuple[Float[Array, ""], Float[Array, "B"]]:
        """As `retrieval.towers.loss.info_nce`; the batch must be split over `axes` without a remainder."""
        # Divided before and not after the product, so that the temperature's gradient is none of the ring's business.
        return _ring_loss(self, queries / temperature, documents, asked, offered)

    def sum_up(
        self, queries: Float[Array, "Q E"], documents: Float[Array, "Q P E"], asked: Asked, offered: Offered
    ) -> tuple[Float[Array, ""], Float[Array, "Q"], _Norms, _Norms | None]:
        """The loss of all devices, and of this one's examples the hits and the norms by query and by document."""
        of_queries = _nothing(queries.shape[0])
        of_documents = _nothing(documents.shape[0]) if self.contrastive.symmetric else None

        def meet(of_documents: _Sums | None, visiting: Any) -> tuple[_Sums | None, Any]:
            queries, asked, of_queries = visiting
            scores, related = scores_of(queries, documents), self.contrastive.relations(asked, offered)
            if of_documents is not None:
                of_documents = _with(of_documents, scores[:, :, 0], _of_first(related), (0,))
            return of_documents, (queries, asked, _with(of_queries, scores, related, (1, 2)))

        of_documents, (_, _, of_queries) = self._round(meet, of_documents, (queries, asked, of_queries))
        losses = of_queries.losses
        if of_documents is not None:
            losses = 0.5 * (losses + of_documents.losses)
        return (
            jax.lax.psum(jnp.sum(losses), self.axes) / (losses.shape[0] * self.num_devices),
            (of_queries.top_positive >= of_queries.top).astype(jnp.float32),
            of_queries.norms,
            None if of_documents is None else of_documents.norms,
        )

    def gradients(
        self,
        queries: Float[Array, "Q E"],
        documents: Float[Array, "Q P E"],
        asked: Asked,
        offered: Offered,
        of_queries: _Norms,
        of_documents: _Norms | None,
        slope: Float[Array, ""],
    ) -> tuple[Float[Array, "Q E"], Float[Array, "Q P E"]]:
        """The gradients of this device's vectors; `slope` is what the loss of all is multiplied with."""
        num_examples = queries.shape[0] * self.num_devices
        share = slope * (0.5 if self.contrastive.symmetric else 1.0) / num_examples

        def meet(of_documents_here: Array, visiting: Any) -> tuple[Array, Any]:
            queries, asked, norms, gradient = visiting
            scores, related = scores_of(queries, documents), self.contrastive.relations(asked, offered)
            slopes = _slopes(scores, related, norms, (1, 2))
            if of_documents is not None:
                slopes = slopes.at[:, :, 0].add(_slopes(scores[:, :, 0], _of_first(related), of_documents, (0,)))
            slopes = share * slopes
            there = _product("qnp,npe->qe", slopes, documents)
            here = _product("qnp,qe->npe", slopes, queries)
            return of_documents_here + here, (queries, asked, norms, gradient + there)

        visiting = (queries, asked, of_queries, jnp.zeros_like(queries))
        of_documents_here, (*_, of_visitors) = self._round(meet, jnp.zeros_like(documents), visiting)
        return of_visitors, of_documents_here

    def _round(self, meet: Callable[[Any, Any], tuple[Any, Any]], staying: Any, visiting: Any) -> tuple[Any, Any]:
        """Lets what visits meet every device, and brings it home."""
        steps = [(device, (device + 1) % self.num_devices) for device in range(self.num_devices)]

        def step(state: tuple[Any, Any], _: None) -> tuple[tuple[Any, Any], None]:
            staying, visiting = meet(*state)
            return (staying, jax.tree.map(lambda x: jax.lax.ppermute(x, self.axes, steps), visiting)), None

        state, _ = jax.lax.scan(step, (staying, visiting), None, length=self.num_devices)
        return state


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _ring_loss(
    ring: Ring, queries: Float[Array, "B E"], documents: Float[Array, "B P E"], asked: Asked, offered: Offered
) -> tuple[Float[Array, ""], Float[Array, "B"]]:
    (loss, hits), _ = _forward(ring, queries, documents, asked, offered)
    return loss, hits


def _forward(ring: Ring, *arguments: Any) -> tuple[tuple[Array, Array], Any]:
    split = P(ring.axes)
    loss, hits, of_queries, of_documents = _island(ring, ring.sum_up, (split,) * 4, (P(), split, split, split))(
        *arguments
    )
    return (loss, hits), (*arguments, of_queries, of_documents)


def _backward(ring: Ring, kept: Any, slopes: tuple[Array, Array]) -> tuple[Any, ...]:
    split = P(ring.axes)
    gradients = _island(ring, ring.gradients, ((split,) * 6 + (P(),)), (split, split))(*kept, slopes[0])
    return (*gradients, None, None)


_ring_loss.defvjp(_forward, _backward)


def _island(ring: Ring, function: Callable[..., Any], in_specs: Any, out_specs: Any) -> Callable[..., Any]:
    # What is on the mesh's other axes is the same everywhere, which jax need not check: no derivative is taken of it.
    return jax.shard_map(
        function, mesh=abstract_mesh(ring.mesh), in_specs=in_specs, out_specs=out_specs, check_vma=False
    )


def _of_first(related: Relations) -> Relations:
    """Of each query's own documents, which look for their queries."""
    return Relations(*(of_all[:, :, 0] for of_all in related))


def _nothing(num: int) -> _Sums:
    zeros, lowest = jnp.zeros(num, jnp.float32), jnp.full(num, jnp.finfo(jnp.float32).min, jnp.float32)
    return _Sums(top=lowest, total=zeros, positive=zeros, num_positives=zeros, top_positive=lowest)


def _with(sums: _Sums, scores: Float[Array, "*dims"], related: Relations, axes: tuple[int, ...]) -> _Sums:
    """The sums with more scores, summed up over `axes`."""
    kept = jnp.where(related.excluded, -jnp.inf, scores)
    top = jnp.maximum(sums.top, jnp.max(kept, axis=axes))
    more = jnp.sum(jnp.exp(kept - jnp.expand_dims(top, axes)), axis=axes)
    top_positive = jnp.max(jnp.where(related.positive, scores, -jnp.inf), axis=axes)
    return _Sums(
        top=top,
        total=sums.total * jnp.exp(sums.top - top) + more,
        positive=sums.positive + jnp.sum(jnp.where(related.positive, scores, 0.0), axis=axes),
        num_positives=sums.num_positives + jnp.sum(related.positive, axis=axes, dtype=jnp.float32),
        top_positive=jnp.maximum(sums.top_positive, top_positive),
    )


def _slopes(
    scores: Float[Array, "*dims"], related: Relations, norms: _Norms, axes: tuple[int, ...]
) -> Float[Array, "*dims"]:
    """The derivative of the cross-entropies over `axes`: the softmax, less the share of each positive."""
    softmax = jnp.exp(scores - jnp.expand_dims(norms.logsumexp, axes))
    shares = jnp.where(related.positive, 1.0 / jnp.expand_dims(norms.num_positives, axes), 0.0)
    return jnp.where(related.excluded, 0.0, softmax) - shares


def _product(subscripts: str, left: Array, right: Array) -> Array:
    return jnp.einsum(subscripts, left, right, precision=jax.lax.Precision.HIGHEST, preferred_element_type=jnp.float32)
