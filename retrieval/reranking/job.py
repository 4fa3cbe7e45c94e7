"""The job of training a re-ranker: pure data, checked before anything compiles."""

import dataclasses
import hashlib
from pathlib import Path
from typing import Any, Self

import jax

from jaxscale import typed_json
from jaxscale.errors import UsageError
from jaxscale.mesh import MeshSpec
from jaxscale.train.batch_shapes import check_divides
from jaxscale.train.job import Operation, TrainingIdentity
from jaxscale.train.planned_step import PlannedStep
from jaxscale.train.randomness import named_key
from retrieval.reranking.batches import make_batches, planned_batch
from retrieval.reranking.cross_encoder import CrossEncoderConfig
from retrieval.reranking.data import RerankerData
from retrieval.reranking.dev import make_dev_candidates, metric_names
from retrieval.reranking.loss import GroupLoss
from retrieval.reranking.objective import RerankerObjective
from retrieval.reranking.start import RerankerModel, Start, planned_reranker, start_reranker
from retrieval.towers.negatives_folder import negatives_file
from retrieval.towers.pair_table import make_table
from retrieval.towers.pairs import PairSource, read_source


@dataclasses.dataclass(frozen=True, kw_only=True)
class RerankerJob:
    """All that says what a training run of a re-ranker is, and how it is operated.

    Attributes:
      model: the cross-encoder.
      data: queries, relevant documents and negatives.
      training: seed, steps, batch, optimizer: with the above, what the run is.
      operation: mesh, checkpoints, logging: how it is run.
    """

    model: RerankerModel
    data: RerankerData
    training: TrainingIdentity
    operation: Operation

    def check(self, mesh: MeshSpec) -> None:
        """Checks what no field can check alone.

        Args:
          mesh: the resolved mesh the job will run on.

        Raises:
          UsageError: naming the field, what it is and what it may be.
        """
        self.training.check_one_size("re-rankers")
        if not self.data.folder:
            raise UsageError("data.folder is not given; add `--data.folder DIR`, a BEIR folder with the pairs")
        self.model.check()
        check_divides(self.training.global_batch_size, self.training.grad_accum, mesh)
        self.operation.check_best_metric(metric_names(self.data))

    def starting_from(self, path: str) -> Self:
        """The job with the transformer, tokenizer and weights of the folder at `path` to start from."""
        return dataclasses.replace(self, model=dataclasses.replace(self.model, init_from=path, transformer=None))

    def objective(self) -> RerankerObjective:
        """Reads the data and the starting weights and returns what is trained.

        Raises:
          DataError: the data or the starting model is missing or malformed.
          UsageError: a path is not given, or the starting model does not fit the job.
        """
        data = self.data
        source = read_source(Path(data.folder), data.split, data.dev_split)
        start = start_reranker(self.model, data.max_length, source.training_texts(), self.training.seed)
        hard_negatives = Path(data.hard_negatives) if data.hard_negatives else None
        table = make_table(source, hard_negatives, data.num_negatives)
        return RerankerObjective(
            computation=self._computation(start.model.config),
            groups=make_batches(source, table, data, start.model, self.training),
            dev=make_dev_candidates(source, data, start.model),
            tokenizer=start.model.tokenizer,
            starting_params=start.params,
            identity=self._identity(source, start),
        )

    def planned_step(self) -> PlannedStep:
        """The training step on shapes alone, its texts as long as the last bucket. Reads no data.

        Where the re-ranker starts from a model, the model is opened for its shapes.

        Raises:
          DataError: the starting model is missing or malformed.
          UsageError: the job says of no model, or its parts do not fit each other.
        """
        self.model.check()
        training, config = self.training, planned_reranker(self.model, self.data.max_length)
        computation = self._computation(config)
        batch = planned_batch(self.data, training.global_batch_size, has_types=config.has_types)
        return PlannedStep(
            loss=lambda params, batch: computation.loss(params, batch, named_key(training.seed, "loss"))[0],
            params=jax.eval_shape(lambda: computation.init_params(named_key(training.seed, "params"))),
            batch=batch,
            optimizer=training.optimizer.transformation(),
            num_tokens=batch["tokens"].size,
            grad_accum=training.grad_accum,
            part_weight=computation.part_weight if computation.averages_parts else None,
        )

    def _computation(self, config: CrossEncoderConfig) -> GroupLoss:
        return GroupLoss(config=config, compute_dtype=self.training.compute_dtype, remat=self.model.remat)

    def _identity(self, source: PairSource, start: Start) -> dict[str, Any]:
        """The job without `operation`, with hashes of what lies at its paths in their place."""
        data, model = typed_json.encode(self.data), typed_json.encode(self.model)
        del data["folder"], model["transformer"]
        data["corpus"] = source.sha256
        if self.data.hard_negatives:
            data["hard_negatives"] = _sha256(negatives_file(Path(self.data.hard_negatives)))
        if self.data.dev_run:
            data["dev_run"] = _sha256(Path(self.data.dev_run))
        model["init_from"] = start.sha256
        model["cross_encoder"] = typed_json.encode(start.model.config)
        model["tokenizer"] = start.model.tokenizer.fingerprint
        return {"type": "RerankerJob", "model": model, "data": data, "training": typed_json.encode(self.training)}


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
