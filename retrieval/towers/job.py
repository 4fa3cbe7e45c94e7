"""The job of training a dual tower: pure data, checked before anything compiles."""

import dataclasses
import hashlib
from pathlib import Path
from typing import Any, Self

import jax

from jaxscale import typed_json
from jaxscale.errors import UsageError
from jaxscale.mesh import MeshSpec
from jaxscale.sharding.specs import BATCH_AXES, num_parts
from jaxscale.train.batch_shapes import check_divides
from jaxscale.train.job import Operation, TrainingIdentity
from jaxscale.train.planned_step import Loss, PlannedStep
from jaxscale.train.randomness import named_key
from retrieval.towers.batches import make_batches, planned_batch
from retrieval.towers.chunks import check_chunks
from retrieval.towers.dev import make_dev_set, metric_names
from retrieval.towers.encoder import TowerPair
from retrieval.towers.loss import Contrastive
from retrieval.towers.negatives_folder import negatives_file
from retrieval.towers.negatives_traffic import NegativesTraffic
from retrieval.towers.objective import DualTowerObjective
from retrieval.towers.pair_loss import PairLoss
from retrieval.towers.pair_table import make_table
from retrieval.towers.pairs import PairData, PairSource, read_source
from retrieval.towers.sources import clusters_sha256
from retrieval.towers.start import Start, Towers, planned_towers, start_towers


@dataclasses.dataclass(frozen=True, kw_only=True)
class DualTowerJob:
    """All that says what a training run of two towers is, and how it is operated.

    Attributes:
      towers: the encoders.
      data: the pairs.
      contrastive: the loss.
      training: seed, steps, batch, optimizer: with the above, what the run is.
      operation: mesh, checkpoints, logging: how it is run.
    """

    towers: Towers
    data: PairData
    contrastive: Contrastive
    training: TrainingIdentity
    operation: Operation

    def check(self, mesh: MeshSpec) -> None:
        """Checks what no field can check alone.

        Args:
          mesh: the resolved mesh the job will run on.

        Raises:
          UsageError: naming the field, what it is and what it may be.
        """
        self.training.check_one_size("towers")
        _given(self.data.folder)
        self._check_model()
        if self.towers.lora is not None and not self.towers.init_from:
            raise UsageError(
                "towers.lora leaves the weights started from as they are, but towers.init_from is not given; add "
                "`--towers.init-from DIR`"
            )
        self._check_lengths()
        self._check_batch()
        self._check_taught()
        check_divides(self.training.global_batch_size, self.training.grad_accum, mesh)
        check_chunks(self._microbatch, self.contrastive.cache_chunks, num_parts(mesh, BATCH_AXES))
        self.operation.check_best_metric(metric_names(sampled=self.data.dev_sampled))

    def starting_from(self, path: str) -> Self:
        """The job with the transformer, tokenizer and weights of the folder at `path` to start from."""
        return dataclasses.replace(self, towers=dataclasses.replace(self.towers, init_from=path, transformer=None))

    def objective(self) -> DualTowerObjective:
        """Reads the data and the starting weights and returns what is trained.

        Raises:
          DataError: the data or the starting model is missing or malformed.
          UsageError: a path is not given, or the starting model does not fit the job.
        """
        data, training = self.data, self.training
        source = read_source(_given(data.folder), data.split, data.dev_split)
        start = start_towers(self.towers, data.max_lengths, source.training_texts(), training.seed)
        hard_negatives = Path(data.hard_negatives) if data.hard_negatives else None
        if data.crops_per_document and not start.one_tokenizer:
            raise UsageError(
                f"data.crops_per_document={data.crops_per_document}: crops are tokens of documents, and those of "
                f"queries are others in towers.{self._query_model}; use 0"
            )
        table = make_table(source, hard_negatives, data.num_hard_negatives, needs_scores=self._is_taught)
        objective = DualTowerObjective(
            computation=self._computation(start.towers),
            pairs=make_batches(source, table, data, start, training),
            dev=make_dev_set(source, data, start),
            tokenizer=start.tokenizer,
            query_tokenizer=start.query_tokenizer,
            starting_params=None,
            identity=self._identity(source, start),
        )
        return objective.starting_from(start.params)

    def planned_step(self) -> PlannedStep:
        """The training step on shapes alone, its texts as long as the last buckets. Reads no data.

        Where the towers start from a model, the model is opened for its shapes.

        Raises:
          DataError: the starting model is missing or malformed.
          UsageError: the job says of no model, or its parts do not fit each other.
        """
        self._check_model()
        self._check_lengths()
        self._check_batch()
        self._check_taught()
        training = self.training
        computation = self._computation(planned_towers(self.towers, self.data.max_lengths))
        batch = planned_batch(self.data, training.global_batch_size, taught=self._is_taught)

        def loss_of(computation: PairLoss) -> Loss:
            return lambda params, batch: computation.loss(params, batch, named_key(training.seed, "loss"))[0]

        def loss_on(mesh: MeshSpec) -> tuple[Loss, tuple[str, ...]]:
            return loss_of(computation.on(mesh)), (self._negatives_note(computation.towers, mesh),)

        return PlannedStep(
            loss=loss_of(computation),
            loss_on=loss_on,
            params=jax.eval_shape(lambda: computation.init_params(named_key(training.seed, "params"))),
            batch=batch,
            optimizer=training.optimizer.transformation(),
            num_tokens=batch["query_tokens"].size + batch["document_tokens"].size,
            grad_accum=training.grad_accum,
        )

    def _computation(self, towers: TowerPair) -> PairLoss:
        self.contrastive.prefixes(towers.query.num_dims)  # refuses dims that the vectors do not have
        return PairLoss(
            towers=towers,
            contrastive=self.contrastive,
            compute_dtype=self.training.compute_dtype,
            remat=self.towers.remat,
        )

    def _identity(self, source: PairSource, start: Start) -> dict[str, Any]:
        """The job without `operation`, with hashes of what lies at its paths in their place."""
        data = typed_json.encode(self.data)
        del data["folder"]
        data["corpus"] = source.sha256
        if self.data.hard_negatives:
            data["hard_negatives"] = _sha256(negatives_file(Path(self.data.hard_negatives)))
        if self.data.clusters:
            data["clusters"] = clusters_sha256(Path(self.data.clusters))
        towers = typed_json.encode(self.towers)
        del towers["transformer"]
        towers["init_from"] = start.sha256
        towers["encoders"] = typed_json.encode([start.towers.query, start.towers.document])
        towers["tokenizer"] = start.tokenizer.fingerprint
        # Only where queries have a model of their own: the identity of all others stays what it was.
        towers.pop("query_transformer", None)
        if start.query_sha256 is not None:
            towers["query_init_from"] = start.query_sha256
            towers["query_tokenizer"] = start.query_tokenizer.fingerprint
        return {
            "type": "DualTowerJob",
            "towers": towers,
            "data": data,
            "contrastive": typed_json.encode(self.contrastive),
            "training": typed_json.encode(self.training),
        }

    def _check_model(self) -> None:
        towers = self.towers
        if towers.query_init_from and not towers.init_from:
            raise UsageError(
                f"towers.query_init_from={towers.query_init_from!r} needs a model for documents too, but "
                f"towers.init_from={towers.init_from!r} names none; add `--towers.init-from DIR`"
            )
        if not towers.init_from and towers.transformer is None:
            raise UsageError("towers.init_from is not given; add `--towers.init-from DIR`, a model to start from")
        if towers.init_from and towers.transformer is not None:
            raise UsageError(
                f"towers.init_from={towers.init_from!r} brings its own transformer, but towers.transformer is given "
                "too; use one of them"
            )
        if towers.transformer is not None:
            # Of a model to start from, `_computation` asks the same.
            self.contrastive.prefixes(towers.projection_dim or towers.transformer.d_model)

    def _check_lengths(self) -> None:
        towers = self.towers
        for name, transformer, buckets in (
            ("query", towers.query_transformer or towers.transformer, self.data.query_buckets),
            ("document", towers.transformer, self.data.document_buckets),
        ):
            if transformer is not None and buckets[-1] > transformer.max_positions:
                raise UsageError(
                    f"data.{name}_buckets={buckets} goes beyond the transformer's max_positions="
                    f"{transformer.max_positions}; end it there or raise that"
                )

    @property
    def _query_model(self) -> str:
        """The field that names the model that queries start from, and its value."""
        name = "query_init_from" if self.towers.query_init_from else "init_from"
        return f"{name}={getattr(self.towers, name)!r}"

    @property
    def _microbatch(self) -> int:
        """Pairs that meet in one loss."""
        return self.training.global_batch_size // self.training.grad_accum

    def _negatives_note(self, towers: TowerPair, mesh: MeshSpec) -> str:
        traffic = NegativesTraffic(
            contrastive=self.contrastive,
            num_queries=self._microbatch,
            num_documents=1 + self.data.num_hard_negatives,
            num_dims=towers.query.num_dims,
            num_devices=num_parts(mesh, BATCH_AXES),
            groups=self.data.duplicate_jaccard is not None,
        )
        return f"{traffic.text} a microbatch" if self.training.grad_accum > 1 else traffic.text

    @property
    def _is_taught(self) -> bool:
        """Whether a re-ranker's scores are learned from."""
        return self.contrastive.distill != "none"

    def _check_taught(self) -> None:
        if self._is_taught and not self.data.num_hard_negatives:
            raise UsageError(
                f"contrastive.distill={self.contrastive.distill!r} learns a re-ranker's scores of hard negatives, but "
                "there are none; add `--data.hard-negatives DIR`, a folder that `jaxscale rerank --negatives` wrote, "
                "and `--data.num-hard-negatives N`"
            )

    def _check_batch(self) -> None:
        if self._microbatch == 1 and self.data.num_hard_negatives == 0:
            raise UsageError(
                f"global_batch_size={self.training.global_batch_size} with grad_accum={self.training.grad_accum} "
                "leaves 1 pair in a microbatch, which has no negatives; use at least 2 pairs, or hard negatives"
            )


def _given(folder: str) -> Path:
    if not folder:
        raise UsageError("data.folder is not given; add `--data.folder DIR`, a BEIR folder with the pairs")
    return Path(folder)


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
