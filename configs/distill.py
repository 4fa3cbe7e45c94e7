"""Recipes of query towers distilled from a large one: documents and index stay as they are."""

import dataclasses

from jaxscale.train.job import Operation, TrainingIdentity
from jaxscale.train.optimizer import AdamWConfig, ScheduleConfig
from retrieval.towers.distillation.data import QueryData
from retrieval.towers.distillation.job import DistillationJob
from retrieval.towers.distillation.loss import LossWeights
from retrieval.towers.distillation.student import Student
from retrieval.towers.distillation.teacher import Teacher


def distill_query_tower() -> DistillationJob:
    """A query tower of three of the teacher's layers, on queries of at most 32 tokens, 128 a step.

    Command: jaxscale distill distill_query_tower --teacher.retriever RUN --teacher.vectors VECTORS --data.folder BEIR
      --out STUDENT
    Hardware: 2 CPU cores with bfloat16 dot products; 2,000 steps are 6 passes over 41,000 queries. The buckets are for
      questions of 13 tokens in the mean, 99 % of them of at most 25.
    Time: 14 minutes for 3 layers of 384 dims, 9 for 2 and 6 for 1.
    Expected: of a fine-tuned MiniLM on wikinews-qa, with --loss.ranking 0.5: docs/benchmarks/students.md (3 layers keep
      96.9 % of nDCG@10). Without that term not measured.
    Batch and rate: 51,000 queries in batches of 256 and of 128, at 1e-3, brought the teacher's first three layers to a
      cosine of .838 and .872 on dev (nDCG@10 .550 and .577); evenly spread layers .874 (.580) in batches of 256.
    """
    return DistillationJob(
        teacher=Teacher(),
        student=Student(num_layers=3, layer_step=None),
        data=QueryData(query_buckets=(12, 16, 20, 32)),
        loss=LossWeights(),
        training=TrainingIdentity(
            num_steps=2000,
            global_batch_size=128,
            optimizer=AdamWConfig(
                schedule=ScheduleConfig(kind="cosine", peak_learning_rate=1e-3, warmup_steps=100, decay_steps=2000)
            ),
            compute_dtype="bfloat16",
        ),
        operation=Operation(checkpoint_every_steps=500, eval_every_steps=500, best_metric="cosine"),
    )


def refine_query_tower() -> DistillationJob:
    """A distilled query tower refined on labelled queries, by InfoNCE against the documents' frozen vectors.

    Command: jaxscale distill refine_query_tower --teacher.retriever RUN --teacher.vectors VECTORS --data.folder BEIR
      --init-from STUDENT --out REFINED
    Hardware, time, expected: not measured yet. A tenth of the distillation's learning rate, and the distance to the
      teacher still counts: documents can't move, so neither should queries that find theirs already.
    """
    stage = distill_query_tower()
    return dataclasses.replace(
        stage,
        student=Student(),
        loss=LossWeights(squared_error=0.0, cosine=1.0, contrastive=0.1),
        training=dataclasses.replace(
            stage.training,
            num_steps=640,
            optimizer=AdamWConfig(
                schedule=ScheduleConfig(kind="cosine", peak_learning_rate=1e-4, warmup_steps=64, decay_steps=640)
            ),
        ),
        operation=dataclasses.replace(stage.operation, eval_every_steps=320, best_metric="nDCG@10"),
    )


def distill_query_tower_tiny() -> DistillationJob:
    """A query tower of the teacher's first layer, for seconds; for tests and first tries.

    Command: jaxscale distill distill_query_tower_tiny --teacher.retriever RUN --data.folder BEIR --out STUDENT
    Hardware and time: any; 60 steps of 16 queries take about a second once compiled.
    Expected: the cosine to the teacher rises; how high says more of the data than of the towers.
    """
    return DistillationJob(
        teacher=Teacher(),
        student=Student(num_layers=1),
        data=QueryData(query_buckets=(8, 16)),
        loss=LossWeights(),
        training=TrainingIdentity(
            num_steps=60,
            global_batch_size=16,
            optimizer=AdamWConfig(
                schedule=ScheduleConfig(kind="cosine", peak_learning_rate=1e-2, warmup_steps=5, decay_steps=60)
            ),
        ),
        operation=Operation(checkpoint_every_steps=30, eval_every_steps=30, log_every_steps=5, best_metric="cosine"),
    )
