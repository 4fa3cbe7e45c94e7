"""Recipes of dual towers: trained on (query, document) pairs of a BEIR folder."""

import dataclasses

from jaxscale.nn.transformer import bert_config
from jaxscale.train.job import Operation, TrainingIdentity
from jaxscale.train.optimizer import AdamWConfig, ScheduleConfig
from retrieval.towers.job import DualTowerJob
from retrieval.towers.loss import Contrastive
from retrieval.towers.pairs import PairData
from retrieval.towers.start import Towers


def two_tower_small() -> DualTowerJob:
    """Shared towers of 2 layers, 128 wide, started from a BERT of that size; made for wikinews-qa.

    Command: jaxscale train two_tower_small --data.folder wikinews-qa --towers.init-from bert-tiny-bleurt --out RUN
    """
    return DualTowerJob(
        towers=Towers(dropout_rate=0.0),
        data=PairData(query_buckets=(16, 32), document_buckets=(128,), num_dev_queries=512, num_dev_documents=2048),
        contrastive=Contrastive(temperature=0.05, symmetric=True),
        training=TrainingIdentity(
            num_steps=1600,
            global_batch_size=128,
            optimizer=AdamWConfig(
                schedule=ScheduleConfig(kind="cosine", peak_learning_rate=1e-3, warmup_steps=50, decay_steps=1600)
            ),
            compute_dtype="bfloat16",
        ),
        operation=Operation(checkpoint_every_steps=400, eval_every_steps=200, best_metric="sample_nDCG@10"),
    )


def two_tower_tiny() -> DualTowerJob:
    """Shared towers of 1 layer, 32 wide, from random weights; trains in seconds, for tests and first tries.

    Command: jaxscale train two_tower_tiny --data.folder BEIR --out RUN
    """
    return DualTowerJob(
        towers=Towers(
            transformer=bert_config(
                num_layers=1, d_model=32, num_heads=2, d_ff=64, vocab_size=512, max_positions=32, dropout_rate=0.0
            )
        ),
        data=PairData(query_buckets=(16,), document_buckets=(32,), num_dev_queries=64, num_dev_documents=256),
        contrastive=Contrastive(temperature=0.1),
        training=TrainingIdentity(
            num_steps=60,
            global_batch_size=16,
            optimizer=AdamWConfig(
                schedule=ScheduleConfig(kind="cosine", peak_learning_rate=1e-2, warmup_steps=5, decay_steps=60)
            ),
        ),
        operation=Operation(
            checkpoint_every_steps=30,
            eval_every_steps=30,
            log_every_steps=5,
            best_metric="sample_nDCG@10",
        ),
    )


def two_tower_demo() -> DualTowerJob:
    """Shared towers of 1 layer, 128 wide, from random weights, for `jaxscale corpus pydocs`; what the demo trains.

    Command: jaxscale train two_tower_demo --data.folder CORPUS --out RUN --devices 8
    """
    return DualTowerJob(
        towers=Towers(
            transformer=dataclasses.replace(
                bert_config(
                    num_layers=1,
                    d_model=128,
                    num_heads=2,
                    d_ff=256,
                    vocab_size=8192,
                    max_positions=128,
                    dropout_rate=0.0,
                ),
                activation="relu",
            )
        ),
        data=PairData(query_buckets=(24,), document_buckets=(64,), num_dev_queries=256, num_dev_documents=1024),
        contrastive=Contrastive(temperature=0.05, symmetric=True),
        training=TrainingIdentity(
            num_steps=160,
            global_batch_size=128,
            optimizer=AdamWConfig(
                schedule=ScheduleConfig(kind="linear", peak_learning_rate=3e-3, warmup_steps=20, decay_steps=160)
            ),
            compute_dtype="bfloat16",
        ),
        operation=Operation(
            mesh="data=2,fsdp=2,tensor=2",
            checkpoint_every_steps=20,
            eval_every_steps=80,
            log_every_steps=5,
            best_metric="sample_nDCG@10",
        ),
    )
