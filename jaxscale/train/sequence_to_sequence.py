"""The job of training an encoder-decoder: the spans that are cut out of a text, given the rest of it."""

import dataclasses
from collections.abc import Mapping
from typing import Self

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32, Key

from jaxscale import typed_json
from jaxscale.data.sentinels import FIRST_SENTINEL, sentinel_names
from jaxscale.data.span_corruption import CutSpans, SpanCorruption
from jaxscale.data.text_data import TextData
from jaxscale.data.tokenizer import Tokenizer
from jaxscale.errors import UsageError
from jaxscale.mesh import MeshSpec
from jaxscale.nn.config import EncoderDecoderConfig, Remat
from jaxscale.nn.functional import Params
from jaxscale.nn.model_folder import load_card
from jaxscale.nn.shrink import shrink_encoder_decoder
from jaxscale.nn.text import end_of_text_id
from jaxscale.train.batch_shapes import check_divides
from jaxscale.train.job import Operation, TrainingIdentity
from jaxscale.train.planned_step import PlannedStep
from jaxscale.train.predictions import part_weight
from jaxscale.train.randomness import named_key
from jaxscale.train.target_prediction import TargetPrediction
from jaxscale.train.text_source import TextSource, check_best_metric, identity_of, starting_model
from jaxscale.train.token_loss import NO_TARGET
from jaxscale.train.token_objective import TokenObjective


@dataclasses.dataclass(frozen=True, kw_only=True)
class SequenceToSequenceJob:
    """All that says what an encoder-decoder's training step is.

    Attributes:
      transformer: the model, without experts.
      source_length: tokens of a source.
      target_length: tokens of a target.
      training: seed, steps, batch, optimizer, number format.
      operation: mesh, checkpoints, logging.
      z_loss: weight of the squared logarithm of the softmax's denominator; 0 for none.
      remat: what of each layer the backward pass computes again rather than keep it: nothing (False), all (True), or
        all but the results of matmuls with weights ("matmuls").
      data: the text, in concatenated rows; `explain`, `plan` and `tune` need none.
      spans: how much of a row is cut out, and in how many pieces. A row has as many tokens as make a full source.
      initial_model: a model folder with the same transformer, to begin from its weights; empty for fresh ones.
    """

    transformer: EncoderDecoderConfig
    source_length: int
    target_length: int
    training: TrainingIdentity
    operation: Operation
    z_loss: float = 0.0
    remat: Remat = True
    data: TextData = typed_json.added(TextData(rows="concatenated"))  # noqa: RUF009
    spans: SpanCorruption = typed_json.added(SpanCorruption())  # noqa: RUF009
    initial_model: str = typed_json.added("")

    def __post_init__(self) -> None:
        for name, config in (("source", self.transformer.encoder), ("target", self.transformer.decoder)):
            length = getattr(self, f"{name}_length")
            if not 1 <= length <= config.max_positions:
                raise UsageError(
                    f"{name}_length={length} must be between 1 and the {config.kind}'s "
                    f"max_positions={config.max_positions}"
                )
            if config.experts is not None:
                raise UsageError(f"transformer.{config.kind}.experts must be None: their losses are not in this job's")
        if not self.z_loss >= 0.0:
            raise UsageError(f"z_loss={self.z_loss} must be at least 0")

    def check(self, mesh: MeshSpec) -> None:
        """Checks what no field can check alone.

        Args:
          mesh: the resolved mesh the job will run on.

        Raises:
          UsageError: naming the field, what it is and what it may be.
        """
        for size in self.training.batch_sizes.distinct:
            check_divides(size, self.training.grad_accum, mesh)
        if self.data.rows != "concatenated":
            raise UsageError(f"data.rows={self.data.rows!r} must be 'concatenated': spans are cut out of full rows")
        needed = self.spans.target_length(self._row_length)
        if needed > self.target_length:
            raise UsageError(
                f"target_length={self.target_length} must be at least {needed}, what is cut out of a row of "
                f"{self._row_length} tokens"
            )
        check_best_metric(self.operation, self.data, ("loss", "perplexity"))

    def starting_from(self, path: str) -> Self:
        """The job with the transformer and the weights of the folder at `path`.

        Raises:
          UsageError: the folder's model is no encoder-decoder.
        """
        config = load_card(path).config
        if not isinstance(config, EncoderDecoderConfig):
            raise UsageError(f"{path} is a {config.kind}, expected an encoder-decoder")
        return dataclasses.replace(self, initial_model=path, transformer=config)

    def objective(self) -> TokenObjective:
        """Opens the data and the starting weights and returns what is trained.

        Raises:
          DataError: a dataset or the starting model is absent.
          UsageError: they do not fit the job, or each other.
          VerificationError: one is damaged.
        """
        flags = [f"--transformer.{stack}.vocab-size" for stack in ("encoder", "decoder")]
        source = TextSource.open(self.data, vocab_size=self.transformer.decoder.vocab_size, flags=flags)
        tokenizer, training = source.tokenizer, self.training
        start = starting_model(self.initial_model, self.transformer, tokenizer) if self.initial_model else None
        corruption = self._corruption(tokenizer)
        return TokenObjective(
            computation=self.computation,
            data=source.mixture(self._row_length, training.seed),
            lengths=self._lengths,
            sizes=training.batch_sizes,
            corruption=corruption,
            held_out=source.held_out_text(self._row_length, corruption=corruption),
            tokenizer=tokenizer,
            starting_params=None if start is None else start.params,
            identity=identity_of(self, "SequenceToSequenceJob", source, start),
            provenance={"source": "trained", "tokenizer": tokenizer.fingerprint},
        )

    def planned_step(self) -> PlannedStep:
        """The training step on shapes alone.

        Its batch is int32 `sources` [B T], `tokens` and `targets` [B S]: what the decoder has read so far, and the
        token that follows it, `NO_TARGET` where none is predicted.
        """
        training, num_examples = self.training, self.training.global_batch_size
        return PlannedStep(
            loss=lambda params, batch: self.loss(params, batch, named_key(training.seed, "loss")),
            params=jax.eval_shape(lambda: self.computation.init_params(named_key(training.seed, "params"))),
            batch={name: jax.ShapeDtypeStruct((num_examples, n), jnp.int32) for name, n in self._lengths.items()},
            optimizer=training.optimizer.transformation(),
            num_tokens=num_examples * (self.source_length + self.target_length),
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
    def computation(self) -> TargetPrediction:
        """First parameters and loss."""
        return TargetPrediction(
            transformer=self.transformer,
            z_loss=self.z_loss,
            remat=self.remat,
            compute_dtype=self.training.compute_dtype,
        )

    @property
    def _lengths(self) -> dict[str, int]:
        """Of a row of every leaf of a batch."""
        return {"sources": self.source_length, "tokens": self.target_length, "targets": self.target_length}

    @property
    def _row_length(self) -> int:
        return self.spans.row_length(source_length=self.source_length)

    def _corruption(self, tokenizer: Tokenizer) -> CutSpans:
        """Spans cut out with the sentinels of `jaxscale.data.sentinels`."""
        end = end_of_text_id(tokenizer)
        if end is None:
            raise UsageError("the datasets' tokenizer has no token that ends a text; use one that has, such as </s>")
        num_spans = self.spans.num_spans(self._row_length)
        vocab_size = self.transformer.decoder.vocab_size
        sentinels = list(sentinel_names(tokenizer, vocab_size))[:num_spans]
        if len(sentinels) < num_spans and tokenizer.token_id(FIRST_SENTINEL) is not None:
            raise UsageError(
                f"a row of {self._row_length} tokens is cut in {num_spans} spans, each with a token of its own, and "
                f"the tokenizer names {len(sentinels)} ({FIRST_SENTINEL}, ...); use a shorter source_length, longer "
                "spans, or a tokenizer that names more"
            )
        if len(sentinels) < num_spans:
            raise UsageError(
                f"a row of {self._row_length} tokens is cut in {num_spans} spans, each with a token of its own, and "
                f"the model's vocab_size={vocab_size} has {len(sentinels)} beyond the tokenizer's "
                f"{tokenizer.vocab_size}; use a larger vocab_size of both, encoder and decoder, or a smaller tokenizer"
            )
        return CutSpans(
            config=self.spans,
            sentinel_ids=tuple(sentinels),
            start_id=tokenizer.pad_id,
            end_id=end,
            seed=self.training.seed,
            target_length=self.target_length,
            no_target=NO_TARGET,
        )

    def shrunk(self, *, num_layers: int = 2, sequence_length: int = 16, global_batch_size: int = 16) -> Self:
        """A job of the same structure that any machine can run, in float32; see `jaxscale.nn.shrink`.

        Args:
          num_layers: of the small encoder, and of the decoder.
          sequence_length: tokens of a source; a target has half of it.
          global_batch_size: examples per step.
        """
        return dataclasses.replace(
            self,
            transformer=shrink_encoder_decoder(self.transformer, num_layers=num_layers, max_positions=sequence_length),
            source_length=sequence_length,
            target_length=sequence_length // 2,
            training=dataclasses.replace(self.training, global_batch_size=global_batch_size, compute_dtype="float32"),
        )
