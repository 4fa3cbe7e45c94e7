"""The job of training a language model: a decoder's next token, or an encoder's masked tokens."""

import dataclasses
from collections.abc import Mapping
from typing import Self

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32, Key

from jaxscale import typed_json
from jaxscale.data.text_data import TextData
from jaxscale.data.tokenizer import Tokenizer
from jaxscale.errors import UsageError
from jaxscale.mesh import MeshSpec
from jaxscale.nn.config import Remat, TransformerConfig
from jaxscale.nn.functional import Params
from jaxscale.nn.model_folder import load_model
from jaxscale.nn.shrink import shrink
from jaxscale.train.batch_shapes import check_divides
from jaxscale.train.job import Operation, TrainingIdentity
from jaxscale.train.masking import Masking, MaskingConfig
from jaxscale.train.planned_step import PlannedStep
from jaxscale.train.predictions import part_weight
from jaxscale.train.randomness import named_key
from jaxscale.train.text_source import TextSource, check_best_metric, identity_of, starting_model
from jaxscale.train.token_objective import LEAVES, TokenObjective
from jaxscale.train.token_prediction import TokenPrediction

# What stands for a hidden token in the vocabularies of the BERT family.
MASK_TOKEN = "[MASK]"


@dataclasses.dataclass(frozen=True, kw_only=True)
class LanguageModelJob:
    """All that says what a language model's training step is: a decoder's next token, or an encoder's masked tokens.

    Attributes:
      transformer: the model.
      sequence_length: tokens per example.
      training: seed, steps, batch, optimizer, number format.
      operation: mesh, checkpoints, logging.
      z_loss: weight of the squared logarithm of the softmax's denominator; 0 for none.
      load_balance_loss: weight of the experts' load balance; 0 for none, and without experts.
      router_z_loss: weight of the squared logarithm of the router's softmax's denominator; the same.
      remat: what of each layer the backward pass computes again rather than keep it: nothing (False), all (True), or
        all but the results of matmuls with weights ("matmuls").
      data: the text; `explain`, `plan` and `tune` need none.
      masking: which tokens of an encoder are hidden; not used by a decoder.
      loss_chunk_tokens: of a batch or a microbatch, the most tokens whose scores of the vocabulary exist at once; None
        for all. Devices that share the examples add up the output weights' gradient once per chunk.
      initial_model: a model folder with the same transformer, to begin from its weights; empty for fresh ones.
    """

    transformer: TransformerConfig
    sequence_length: int
    training: TrainingIdentity
    operation: Operation
    z_loss: float = 0.0
    load_balance_loss: float = 0.0
    router_z_loss: float = 0.0
    remat: Remat = True
    data: TextData = typed_json.added(TextData())  # noqa: RUF009
    masking: MaskingConfig = typed_json.added(MaskingConfig())  # noqa: RUF009
    initial_model: str = typed_json.added("")
    loss_chunk_tokens: int | None = typed_json.added(None)

    def __post_init__(self) -> None:
        if not 1 <= self.sequence_length <= self.transformer.max_positions:
            raise UsageError(
                f"sequence_length={self.sequence_length} must be between 1 and the transformer's "
                f"max_positions={self.transformer.max_positions}"
            )
        if self.loss_chunk_tokens is not None and self.loss_chunk_tokens < 1:
            raise UsageError(f"loss_chunk_tokens={self.loss_chunk_tokens} must be at least 1, or None for no chunks")
        for name in ("z_loss", "load_balance_loss", "router_z_loss"):
            if not getattr(self, name) >= 0.0:
                raise UsageError(f"{name}={getattr(self, name)} must be at least 0")
        if self.transformer.experts is None and (self.load_balance_loss or self.router_z_loss):
            raise UsageError(
                f"load_balance_loss={self.load_balance_loss} and router_z_loss={self.router_z_loss} are of experts, "
                "which the transformer has none of; use 0"
            )

    def check(self, mesh: MeshSpec) -> None:
        """Checks what no field can check alone.

        Args:
          mesh: the resolved mesh the job will run on.

        Raises:
          UsageError: naming the field, what it is and what it may be.
        """
        for size in self.training.batch_sizes.distinct:
            check_divides(size, self.training.grad_accum, mesh)
        names = ("loss", "perplexity") + (("bits_per_byte",) if self.transformer.kind == "decoder" else ())
        check_best_metric(self.operation, self.data, names)

    def starting_from(self, path: str) -> Self:
        """The job with the transformer and the weights of the folder at `path`."""
        return dataclasses.replace(self, initial_model=path, transformer=load_model(path).transformer)

    def objective(self) -> TokenObjective:
        """Opens the data and the starting weights and returns what is trained.

        Raises:
          DataError: a dataset or the starting model is absent.
          UsageError: they do not fit the job, or each other.
          VerificationError: one is damaged.
        """
        source = TextSource.open(self.data, vocab_size=self.transformer.vocab_size)
        tokenizer, training = source.tokenizer, self.training
        start = starting_model(self.initial_model, self.transformer, tokenizer) if self.initial_model else None
        is_decoder = self.transformer.kind == "decoder"
        masking = None if is_decoder else self._masking(tokenizer)
        return TokenObjective(
            computation=self.computation,
            data=source.mixture(self.sequence_length, training.seed),
            lengths=dict.fromkeys(self._leaves, self.sequence_length),
            sizes=training.batch_sizes,
            corruption=masking,
            held_out=source.held_out_text(self.sequence_length, corruption=masking),
            tokenizer=tokenizer,
            starting_params=None if start is None else start.params,
            identity=identity_of(self, "LanguageModelJob", source, start),
            provenance={"source": "trained", "tokenizer": tokenizer.fingerprint},
        )

    def planned_step(self) -> PlannedStep:
        """The training step on shapes alone.

        Its batch is `tokens` and `targets`, int32 [B S]. A decoder's target is the token that follows, an encoder's the
        token that was there before it was masked; `NO_TARGET` stands where none is predicted. Where there is data whose
        documents share rows, `segments` and `positions` say which tokens are of one document.
        """
        training, dims = self.training, (self.training.global_batch_size, self.sequence_length)
        return PlannedStep(
            loss=lambda params, batch: self.loss(params, batch, named_key(training.seed, "loss")),
            params=jax.eval_shape(lambda: self.computation.init_params(named_key(training.seed, "params"))),
            batch={name: jax.ShapeDtypeStruct(dims, jnp.int32) for name in self._leaves},
            optimizer=training.optimizer.transformation(),
            num_tokens=dims[0] * dims[1],
            grad_accum=training.grad_accum,
            part_weight=part_weight(self.computation),
        )

    def loss(self, params: Params, batch: Mapping[str, jax.Array], key: Key[Array, ""]) -> Float32[Array, ""]:
        """The mean loss of a batch or a microbatch, in float32.

        Args:
          params: as `functional.init_params` makes them.
          batch: as `planned_step` describes it.
          key: for dropout.
        """
        return self.computation.loss(params, batch, key)[0]

    @property
    def computation(self) -> TokenPrediction:
        """First parameters and loss."""
        return TokenPrediction(
            transformer=self.transformer,
            z_loss=self.z_loss,
            load_balance_loss=self.load_balance_loss,
            router_z_loss=self.router_z_loss,
            remat=self.remat,
            compute_dtype=self.training.compute_dtype,
            chunk_tokens=self.loss_chunk_tokens,
        )

    @property
    def _leaves(self) -> tuple[str, ...]:
        is_packed = bool(self.data.datasets) and self.data.rows == "packed"
        return LEAVES if is_packed else LEAVES[:2]

    def _masking(self, tokenizer: Tokenizer) -> Masking:
        mask_id = tokenizer.token_id(MASK_TOKEN)
        if mask_id is None:
            raise UsageError(
                f"the datasets' tokenizer has no {MASK_TOKEN}, which stands for a hidden token; use one that has"
            )
        return Masking(
            config=self.masking,
            mask_id=mask_id,
            vocab_size=self.transformer.vocab_size,
            seed=self.training.seed,
        )

    def shrunk(self, *, num_layers: int = 2, sequence_length: int = 16, global_batch_size: int = 16) -> Self:
        """A job of the same structure that any machine can run, in float32; see `jaxscale.nn.shrink`.

        Args:
          num_layers: of the small model.
          sequence_length: tokens per example.
          global_batch_size: examples per step.
        """
        return dataclasses.replace(
            self,
            transformer=shrink(self.transformer, num_layers=num_layers, max_positions=sequence_length),
            sequence_length=sequence_length,
            training=dataclasses.replace(
                self.training, global_batch_size=global_batch_size, batch_ramp=(), compute_dtype="float32"
            ),
        )
