"""What a dual tower's training step computes: its parameters, and the contrastive loss of a batch of pairs."""

import dataclasses
import functools
import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxscale.mesh import MeshSpec
from jaxscale.nn.config import Remat
from jaxscale.nn.functional import Params
from jaxscale.nn.keys import named_key
from jaxscale.sharding.specs import BATCH_AXES, num_parts
from retrieval.towers.chunks import check_chunks, in_chunks
from retrieval.towers.encoder import Side, TowerPair, apply_encoder, init_towers, normalize
from retrieval.towers.in_batch import Asked, Offered, parts_of
from retrieval.towers.loss import Contrastive, info_nce
from retrieval.towers.ring import Ring
from retrieval.towers.taught import taught_loss
from retrieval.towers.trained import apart, whole

Metrics = dict[str, Float[Array, ""]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairLoss:
    """The loss of two towers as a function of their parameters and a batch.

    Attributes:
      towers: the two encoders.
      contrastive: the loss.
      compute_dtype: of the transformers' products.
      remat: what of each of their layers the backward pass computes again.
      mesh: whose devices pass queries round, where `contrastive.negatives` says so; None computes the same loss
        without saying how queries and documents meet.
    """

    towers: TowerPair
    contrastive: Contrastive
    compute_dtype: str
    remat: Remat = False
    mesh: MeshSpec | None = None

    def init_params(self, key: Array) -> Params:
        """Fresh weights: `{"towers": ..., "log_temperature": []}`, the latter only where it is learned.

        What LoRA does not train is below `frozen` instead; see `trained.apart`.
        """
        params: Params = {"towers": init_towers(self.towers, key)}
        if self.contrastive.learn_temperature:
            params["log_temperature"] = jnp.asarray(math.log(self.contrastive.temperature), jnp.float32)
        return apart(self.towers, params)

    def on(self, mesh: MeshSpec) -> "PairLoss":
        """The same loss, computed on a mesh as `contrastive.negatives` says."""
        return dataclasses.replace(self, mesh=mesh)

    def loss(self, params: Params, batch: Mapping[str, jax.Array], key: Array) -> tuple[Float[Array, ""], Metrics]:
        """InfoNCE over the global batch (under gradient accumulation: over the microbatch), and what is distilled.

        Of Matryoshka vectors it is the weighted sum over their prefixes, each of length 1 where whole vectors are.

        Args:
          params: as `init_params` makes them.
          batch: described at `PairBatches.batch`.
          key: for dropout.

        Raises:
          UsageError: the batch can't be encoded in so many chunks on this mesh, or Matryoshka dims don't fit.

        Reference: Kusupati et al. 2022, Matryoshka Representation Learning, section 3, https://arxiv.org/abs/2205.13147
        """
        params = whole(params)
        prefixes = self.contrastive.prefixes(self.towers.query.num_dims)
        queries, documents = self._vectors(params, batch, key)
        asked, offered = parts_of(batch)
        temperature = self._temperature(params)
        vectors = [(self._prefix(queries, num_dims), self._prefix(documents, num_dims)) for num_dims, _ in prefixes]
        parts = [self._info_nce(*of_prefix, temperature, asked, offered) for of_prefix in vectors]
        loss = sum((weight * part for (_, weight), (part, _) in zip(prefixes, parts, strict=True)), jnp.float32(0))
        metrics = {"in_batch_accuracy": jnp.mean(parts[-1][1]), "temperature": temperature}
        contrastive = self.contrastive
        if contrastive.distill != "none":
            taught = batch["taught_scores"] / contrastive.distill_temperature
            of_prefixes = (taught_loss(*of, temperature, taught, kind=contrastive.distill) for of in vectors)
            distilled = sum((w * part for (_, w), part in zip(prefixes, of_prefixes, strict=True)), jnp.float32(0))
            loss, metrics = loss + contrastive.distill_weight * distilled, metrics | {"distilled": distilled}
        return loss, metrics

    def _info_nce(
        self,
        queries: Float[Array, "B E"],
        documents: Float[Array, "B P E"],
        temperature: Float[Array, ""],
        asked: Asked,
        offered: Offered,
    ) -> tuple[Float[Array, ""], Float[Array, "B"]]:
        if self.contrastive.negatives == "ring" and self.mesh is not None:
            ring = Ring(mesh=self.mesh, contrastive=self.contrastive)
            if ring.num_devices > 1:
                return ring.info_nce(queries, documents, temperature, asked, offered)
        related = self.contrastive.relations(asked, offered)
        return info_nce(queries, documents, temperature, related, symmetric=self.contrastive.symmetric)

    def _prefix(self, vectors: Float[Array, "*dims E"], num_dims: int) -> Float[Array, "*dims e"]:
        """The leading dims of vectors, of length 1 where the whole ones are."""
        if num_dims == vectors.shape[-1]:
            return vectors
        leading = vectors[..., :num_dims]
        return normalize(leading) if self.towers.query.normalize else leading

    def _vectors(
        self, params: Params, batch: Mapping[str, jax.Array], key: Array
    ) -> tuple[Float[Array, "B E"], Float[Array, "B P E"]]:
        """The vectors of a batch, encoded in chunks."""
        num_queries, num_passages, _ = batch["document_tokens"].shape
        num_chunks = self.contrastive.cache_chunks
        check_chunks(num_queries, num_chunks, 1 if self.mesh is None else num_parts(self.mesh, BATCH_AXES))

        def encode(chunk: Mapping[str, jax.Array]) -> tuple[Float[Array, "b E"], Float[Array, "b P E"]]:
            of_query = chunk["numbers"]
            of_document = of_query[:, None] * num_passages + jnp.arange(num_passages, dtype=jnp.int32)[None, :]
            tokens, mask = (
                chunk[name].reshape(-1, chunk[name].shape[-1]) for name in ("document_tokens", "document_mask")
            )
            queries = self._encode("query", params, chunk["query_tokens"], chunk["query_mask"], of_query, key)
            documents = self._encode("document", params, tokens, mask, of_document.reshape(-1), key)
            return queries, documents.reshape(*of_document.shape, -1)

        texts = {name: leaf for name, leaf in batch.items() if name.endswith(("_tokens", "_mask"))}
        return in_chunks(encode, num_chunks, {**texts, "numbers": jnp.arange(num_queries, dtype=jnp.int32)})

    def _encode(
        self,
        side: Side,
        params: Params,
        tokens: Int[Array, "N S"],
        mask: Bool[Array, "N S"],
        numbers: Int[Array, "N"],
        key: Array,
    ) -> Float[Array, "N E"]:
        """The vectors of texts; what dropout takes of each depends on its number in the whole batch alone."""
        apply = functools.partial(
            apply_encoder,
            self.towers.config(side),
            self.towers.params(params["towers"], side),
            compute_dtype=jnp.dtype(self.compute_dtype),
            remat=self.remat,
        )
        if self.towers.config(side).transformer.dropout_rate == 0:
            return apply(tokens, mask)

        def encode_one(tokens: Int[Array, "S"], mask: Bool[Array, "S"], number: Int[Array, ""]) -> Float[Array, "E"]:
            dropout_key = jax.random.fold_in(named_key(key, side), number)
            vectors: Float[Array, "1 E"] = apply(tokens[None], mask[None], dropout_key=dropout_key)
            return vectors[0]

        return jax.vmap(encode_one)(tokens, mask, numbers)

    def _temperature(self, params: Params) -> Float[Array, ""]:
        if self.contrastive.learn_temperature:
            return jnp.exp(params["log_temperature"])
        return jnp.asarray(self.contrastive.temperature, jnp.float32)
