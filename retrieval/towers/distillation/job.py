"""The job of distilling a query tower: pure data, checked before anything compiles."""

import dataclasses
from pathlib import Path
from typing import Any, Self

import jax

from jaxscale import typed_json
from jaxscale.data.batches import BatchSchedule
from jaxscale.errors import DataError, UsageError
from jaxscale.mesh import MeshSpec, mesh_from_text
from jaxscale.train.batch_shapes import check_divides
from jaxscale.train.job import Operation, TrainingIdentity
from retrieval.search.dense import comparable
from retrieval.towers.distillation.batches import FrozenPositives, make_batches, make_positives
from retrieval.towers.distillation.data import QueryData, QuerySource, read_source
from retrieval.towers.distillation.dev import make_dev_queries, metric_names
from retrieval.towers.distillation.loss import DistillationLoss, LossWeights
from retrieval.towers.distillation.objective import DistillationObjective
from retrieval.towers.distillation.student import Student, start_student
from retrieval.towers.distillation.teacher import (
    FrozenDocuments,
    Teacher,
    open_documents,
    open_teacher,
    rows_of_queries,
    teacher_vectors,
)
from retrieval.towers.encoder import Encoder
from retrieval.towers.fingerprint import encoder_sha256
from retrieval.towers.retriever_folder import LoadedTowers
from retrieval.vectors import Vectors


@dataclasses.dataclass(frozen=True, kw_only=True)
class DistillationJob:
    """All that says what a distillation of a query tower is, and how it is operated.

    Attributes:
      teacher: the query tower to learn from, and the frozen documents of its space.
      student: the small query tower.
      data: the queries.
      loss: the terms of the loss.
      training: seed, steps, batch, optimizer: with the above, what the run is.
      operation: mesh, checkpoints, logging: how it is run.
    """

    teacher: Teacher
    student: Student
    data: QueryData
    loss: LossWeights
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
        if not self.data.folder:
            raise UsageError("data.folder is not given; add `--data.folder DIR`, a BEIR folder with the queries")
        if not self.teacher.retriever:
            raise UsageError("teacher.retriever is not given; add `--teacher.retriever DIR`, whose query tower teaches")
        self.student.check()
        term = self.loss.document_term
        if term and not self.teacher.vectors:
            raise UsageError(f"{term} needs the documents' frozen vectors; add `--teacher.vectors DIR`")
        microbatch = self.training.global_batch_size // self.training.grad_accum
        if term and microbatch == 1:
            raise UsageError(
                f"{term} with 1 query in a microbatch meets 1 document, which teaches nothing; use at least 2"
            )
        check_divides(self.training.global_batch_size, self.training.grad_accum, mesh)
        self.operation.check_best_metric(
            metric_names(self.teacher, self.data),
            "nDCG@10 needs teacher.vectors or teacher.index; `sample_` where data.num_dev_queries is given",
        )

    def starting_from(self, path: str) -> Self:
        """The job with the query tower of the folder at `path` to start from."""
        student = dataclasses.replace(self.student, init_from=path, num_layers=None, layer_step=1)
        return dataclasses.replace(self, student=student)

    def beside(self, out: Path) -> Self:
        """The job with a place beside the run for the teacher's vectors; see `jaxscale.train.job.KeepsBeside`."""
        if self.teacher.query_vectors:
            return self
        out = out.absolute()  # `.` has no name
        path = out.with_name(f"{out.name}.teacher-queries")
        return dataclasses.replace(self, teacher=dataclasses.replace(self.teacher, query_vectors=str(path)))

    def frozen(self) -> dict[str, str]:
        """What a distillation must leave as it is, every byte read: the identities of its vectors and its index.

        Raises:
          DataError, UsageError, VerificationError: as `open_documents`.
        """
        return open_documents(self.teacher, open_teacher(self.teacher)).identities

    def objective(self) -> DistillationObjective:
        """Opens teacher and documents, reads the queries, has the teacher embed them, and returns what is trained.

        Raises:
          DataError: the data, the teacher or the student is missing or malformed.
          UsageError: a path is not given, or teacher, student and documents do not fit each other.
        """
        if jax.process_count() > 1:
            raise UsageError(f"num_processes={jax.process_count()} must be 1 for distilling; one may have all devices")
        if not self.teacher.query_vectors:
            raise UsageError(
                "teacher.query_vectors is not given; name a place for the teacher's vectors of the queries"
            )
        towers = open_teacher(self.teacher)
        documents = open_documents(self.teacher, towers)
        student = start_student(self.student, towers, self.data.max_length, self.training.seed)
        source = read_source(self.data)
        if self.loss.document_term:
            source = _judged_only(source, self.loss.document_term)
        schedule = BatchSchedule(
            num_examples=len(source.queries),
            global_batch_size=self.training.global_batch_size,
            seed=self.training.seed,
        )
        positives = self._positives(source, documents, towers)
        vectors = teacher_vectors(self.teacher, towers, source.all_queries, mesh_from_text(self.operation.mesh))
        rows = rows_of_queries(vectors, [*source.queries, *source.dev])
        trained, dev = rows[: len(source.queries)], rows[len(source.queries) :]
        names = metric_names(self.teacher, self.data)
        return DistillationObjective(
            computation=DistillationLoss(
                student=student.config,
                weights=self.loss,
                score=towers.contract.score,
                compute_dtype=self.training.compute_dtype,
            ),
            queries=make_batches(source, student, trained, positives, schedule, self.data),
            dev=make_dev_queries(source, student, dev, documents, towers.contract, names, self.data),
            student=student,
            teacher=towers,
            identity=self._identity(source, student, towers, documents, vectors),
        )

    def _positives(
        self, source: QuerySource, documents: FrozenDocuments, towers: LoadedTowers
    ) -> FrozenPositives | None:
        if not self.loss.document_term or documents.vectors is None:
            return None
        vectors = comparable(documents.vectors.read(), towers.contract)
        return make_positives(source.relevant, documents.vectors.read_ids(), vectors)

    def _identity(
        self,
        source: QuerySource,
        student: Encoder,
        towers: LoadedTowers,
        documents: FrozenDocuments,
        vectors: Vectors,
    ) -> dict[str, Any]:
        """The job without `operation`, with hashes of what lies at its paths in their place."""
        data, begun = typed_json.encode(self.data), typed_json.encode(self.student)
        del data["folder"], begun["init_from"]
        return {
            "type": "DistillationJob",
            "teacher": {
                "contract": typed_json.fingerprint(towers.contract),
                "query_vectors": vectors.manifest.identity,
                "documents": documents.identities,
            },
            "student": begun | {"encoder": encoder_sha256(student)},
            "data": data | {"queries": source.sha256},
            "loss": typed_json.encode(self.loss),
            "training": typed_json.encode(self.training),
        }


def _judged_only(source: QuerySource, term: str) -> QuerySource:
    """The queries to train on that have a relevant document."""
    kept = [i for i, relevant in enumerate(source.relevant) if relevant]
    if not kept:
        raise DataError(f"{term} needs relevant documents, but no query to train on has one")
    return dataclasses.replace(
        source, queries=[source.queries[i] for i in kept], relevant=[source.relevant[i] for i in kept]
    )
