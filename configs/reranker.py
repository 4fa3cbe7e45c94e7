"""Recipes of re-rankers: cross-encoders trained to tell a query's relevant passage from its hard negatives."""

from jaxscale.nn.families import bert_config
from jaxscale.train.job import Operation, TrainingIdentity
from jaxscale.train.optimizer import AdamWConfig, ScheduleConfig
from retrieval.reranking.data import RerankerData
from retrieval.reranking.job import RerankerJob
from retrieval.reranking.start import RerankerModel


def reranker_minilm() -> RerankerJob:
    """A cross-encoder out of a MiniLM or another BERT-like model, on 7 mined negatives of each of 32 queries a step.

    Command: jaxscale train reranker_minilm --data.folder BEIR --data.hard-negatives NEGATIVES
      --data.dev-run DEV.trec --operation.best-metric rerank_nDCG@10 --init-from all-MiniLM-L6-v2 --out RUN
    NEGATIVES is what `jaxscale mine --out NEGATIVES --num-negatives 16` writes; DEV.trec what `jaxscale search` finds
      for the dev queries. Without the one, negatives are random; without the other, name no best metric of it.
    Hardware, time, expected: never trained. 256 texts of 192 tokens a step.
    Source: the loss: Gao et al. 2021, https://arxiv.org/abs/2101.08751; sizes and rate are ours.
    """
    return RerankerJob(
        model=RerankerModel(dropout_rate=0.0),
        data=RerankerData(num_negatives=7, buckets=(64, 128, 192)),
        training=TrainingIdentity(
            num_steps=2000,
            global_batch_size=32,
            optimizer=AdamWConfig(
                schedule=ScheduleConfig(kind="linear", peak_learning_rate=3e-5, warmup_steps=200, decay_steps=2000)
            ),
            compute_dtype="bfloat16",
        ),
        operation=Operation(checkpoint_every_steps=200, eval_every_steps=200),
    )


def reranker_tiny() -> RerankerJob:
    """A cross-encoder of 1 layer, 32 wide, from random weights; trains in seconds, for tests and first tries.

    Command: jaxscale train reranker_tiny --data.folder BEIR --out RUN
    Hardware and time: any; 60 steps of 16 groups of 4 take a few seconds once compiled.
    Expected: the loss falls from log 4; so few steps from random weights teach it little of which words are alike.
    """
    return RerankerJob(
        model=RerankerModel(
            transformer=bert_config(
                num_layers=1, d_model=32, num_heads=2, d_ff=64, vocab_size=512, max_positions=64, dropout_rate=0.0
            )
        ),
        data=RerankerData(num_negatives=3, buckets=(32, 48), num_dev_queries=32, num_dev_candidates=16),
        training=TrainingIdentity(
            num_steps=60,
            global_batch_size=16,
            optimizer=AdamWConfig(
                schedule=ScheduleConfig(kind="cosine", peak_learning_rate=1e-2, warmup_steps=5, decay_steps=60)
            ),
        ),
        operation=Operation(checkpoint_every_steps=30, eval_every_steps=30, log_every_steps=5),
    )
