"""Recipes of dual towers: trained on (query, document) pairs of a BEIR folder."""

import dataclasses

from configs.bert import bert_base
from configs.llama import llama2_7b
from jaxscale.nn.config import LoRAConfig
from jaxscale.nn.families import bert_config, decoder_config
from jaxscale.train.job import Operation, TrainingIdentity
from jaxscale.train.optimizer import AdamWConfig, ScheduleConfig
from retrieval.towers.job import DualTowerJob
from retrieval.towers.loss import Contrastive
from retrieval.towers.mined_job import MinedTowerJob
from retrieval.towers.mining import Mining
from retrieval.towers.pairs import PairData
from retrieval.towers.rounds import Rounds
from retrieval.towers.start import Towers


def two_tower_small() -> DualTowerJob:
    """Shared towers of 2 layers, 128 wide, started from a BERT of that size; made for wikinews-qa.

    Command: GLIBC_TUNABLES=glibc.malloc.hugetlb=1 jaxscale train two_tower_small --data.folder wikinews-qa
      --init-from bert-tiny-bleurt --out RUN
    (huge pages: a step's temporaries cost 143,000 page faults without them, a quarter of its time)
    Hardware: 2 CPU cores with bfloat16 dot products; 307,000 examples: 2.8 epochs of the labelled pairs and of three
      crops of every passage.
    Time: 17.9 minutes, other work on the machine at low priority; 280 to 330 examples/s.
    Expected: sample_nDCG@10 .698; on all 2,326 test questions nDCG@10 is .435 dense, and .700 hybrid
      with BM25 (.688 alone; p = .0002). Without crops, 205,000 pairs: .378 and .699.
    What limits it, by all signs: the labelled questions. Without crops a second epoch of them adds .01 while the loss
      falls to .08. With crops, a peak learning rate of 3e-3 is worse (.656 on the sample after 480 steps, .681
      after 400 here) and one of 1e-3 no better (.684 after 600, .691 here).
    """
    return DualTowerJob(
        towers=Towers(dropout_rate=0.0),
        data=PairData(
            crops_per_document=3,
            query_buckets=(24,),
            document_buckets=(128,),
            num_dev_queries=512,
            num_dev_documents=2048,
        ),
        contrastive=Contrastive(temperature=0.04, symmetric=True),
        training=TrainingIdentity(
            num_steps=800,
            global_batch_size=384,
            optimizer=AdamWConfig(
                schedule=ScheduleConfig(kind="cosine", peak_learning_rate=2e-3, warmup_steps=80, decay_steps=800)
            ),
            compute_dtype="bfloat16",
        ),
        operation=Operation(checkpoint_every_steps=200, eval_every_steps=200, best_metric="sample_nDCG@10"),
    )


def two_tower_minilm() -> MinedTowerJob:
    """all-MiniLM-L6-v2, or another small sentence encoder, fine-tuned on hard negatives that it mines itself first.

    Command: GLIBC_TUNABLES=glibc.malloc.hugetlb=1 jaxscale train two_tower_minilm --data.folder BEIR
      --init-from all-MiniLM-L6-v2 --out RUN
    `--rounds.num-rounds 2` has the trained model mine once more, and trains as long again.
    Hardware: 2 CPU cores with bfloat16 dot products, 5 GB of memory (measured at its peak: 4.4; 7.1 with 64 pairs a
      step); made for about 23,000 passages and 41,000 questions.
    Time: 19 minutes, 6 of them for mining: 8,960 pairs, each with a mined negative, .2 of an epoch.
    Expected, on the test split of such a corpus of news and Wikipedia: nDCG@10 .647 after .610, with BM25 .756 after
      .740 (both p = .0001); elsewhere it may lose a little: docs/guides/mining.md. The temperature is the scale of 20
      that the model was trained with; the margin, .95 of the positive's score, is that of de Souza Moreira et al. 2024,
      section 3, https://arxiv.org/abs/2407.15831.
    """
    return MinedTowerJob(
        towers=Towers(dropout_rate=0.0),
        data=PairData(
            query_buckets=(32,),
            document_buckets=(128,),
            num_dev_queries=512,
            num_dev_documents=2048,
            duplicate_jaccard=0.8,
        ),
        contrastive=Contrastive(temperature=0.05, symmetric=True),
        training=TrainingIdentity(
            num_steps=280,
            global_batch_size=32,
            optimizer=AdamWConfig(
                schedule=ScheduleConfig(kind="linear", peak_learning_rate=3e-5, warmup_steps=30, decay_steps=280)
            ),
            compute_dtype="bfloat16",
        ),
        operation=Operation(checkpoint_every_steps=70, eval_every_steps=280, best_metric="sample_nDCG@10"),
        rounds=Rounds(
            num_rounds=1,
            mine_first=True,
            num_hard_negatives=1,
            mining=Mining(num_negatives=8, depth=50, max_of_positive=0.95),
        ),
    )


def two_tower_bert_base() -> DualTowerJob:
    """Shared towers of BERT base size, 108,891,648 parameters, on 4,096 pairs per step; a pattern for any encoder.

    Command: jaxscale train two_tower_bert_base --data.folder BEIR --init-from BERT --out RUN
    With `--init-from` (`explain`: `--towers.init-from`) the towers are those of any BERT-like model; without, random.
    Hardware, time, expected: never trained; 4,096 pairs are for a pod, as in Ni et al. 2021 (GTR), section 3.2,
      https://arxiv.org/abs/2112.07899 (2,048).
    """
    return DualTowerJob(
        towers=Towers(transformer=bert_base().transformer, dropout_rate=0.0),
        data=PairData(query_buckets=(32,), document_buckets=(128,)),
        contrastive=Contrastive(temperature=0.02),
        training=TrainingIdentity(
            num_steps=10_000,
            global_batch_size=4096,
            optimizer=AdamWConfig(
                schedule=ScheduleConfig(kind="linear", peak_learning_rate=2e-5, warmup_steps=500, decay_steps=10_000)
            ),
            compute_dtype="bfloat16",
        ),
        operation=Operation(eval_every_steps=1000, best_metric="sample_nDCG@10"),
    )


def two_tower_bert_small_query() -> DualTowerJob:
    """A query tower of 2 layers, 128 wide, beside a document tower of BERT base size: documents are encoded once.

    Command: jaxscale train two_tower_bert_small_query --data.folder BEIR --init-from BERT --out RUN
    `--init-from` is the document tower's model and both towers' tokenizer, for which the query tower has 30,522 rows.
    From two models: `jaxscale train two_tower_bert_base --init-from BERT --towers.query-init-from SMALL
      --towers.no-shared --towers.projection-dim 256 ...`; SMALL may have a tokenizer of its own.
    Hardware, time, expected: never trained.
    Source: the small size is BERT-Tiny's, Turc et al. 2019, "Well-Read Students Learn Better", table 1,
      https://arxiv.org/abs/1908.08962.
    """
    job = two_tower_bert_base()
    query = bert_config(num_layers=2, d_model=128, num_heads=2, d_ff=512, vocab_size=30_522, dropout_rate=0.0)
    return dataclasses.replace(
        job, towers=dataclasses.replace(job.towers, shared=False, query_transformer=query, projection_dim=256)
    )


def two_tower_tiny() -> DualTowerJob:
    """Shared towers of 1 layer, 32 wide, from random weights; trains in seconds, for tests and first tries.

    Command: jaxscale train two_tower_tiny --data.folder BEIR --out RUN
    Hardware and time: any; 60 steps of 16 pairs take about a second once compiled.
    Expected: the dev metric rises; how high says more of the data than of the towers.
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


def two_tower_decoder_tiny() -> DualTowerJob:
    """Shared towers of 2 layers in Llama's layout, the last token's state as the vector; for tests and first tries.

    Command: jaxscale train two_tower_decoder_tiny --data.folder BEIR --out RUN
    From a language model of one's own: `--init-from RUN --towers.append-end`.
    Hardware and time: any; 60 steps of 16 pairs take a few seconds once compiled.
    Expected: the dev metric rises; how high says more of the data than of the towers.
    """
    tiny = two_tower_tiny()
    return dataclasses.replace(
        tiny,
        towers=Towers(
            transformer=decoder_config(
                num_layers=2, d_model=32, num_heads=4, num_kv_heads=2, d_ff=64, vocab_size=512, max_positions=32
            ),
            pooling="last",
        ),
    )


def two_tower_llama_10m() -> DualTowerJob:
    """Shared towers from a language model of one's own, a run of `llama_10m`; the end token's state is the vector.

    Command: jaxscale train two_tower_llama_10m --data.folder BEIR --init-from LM --out RUN
      --mesh data=2,fsdp=2,tensor=2 --devices 8
    Hardware: 8 emulated devices on 2 CPU cores with bfloat16 dot products.
    Time: 9 minutes; 3.9 s a step.
    Expected: on wikinews-qa sample_nDCG@10 rises from .007 to .068, from a language model of 450 steps. That shows the
      path; so few steps and pairs make no useful retriever (on cranfield, not seen in training, nDCG@10 is .006).
    """
    return DualTowerJob(
        towers=Towers(pooling="last", append_end=True),
        data=PairData(query_buckets=(32,), document_buckets=(128,), num_dev_queries=256, num_dev_documents=1024),
        contrastive=Contrastive(temperature=0.05, symmetric=True),
        training=TrainingIdentity(
            num_steps=150,
            global_batch_size=64,
            optimizer=AdamWConfig(
                schedule=ScheduleConfig(kind="cosine", peak_learning_rate=1e-3, warmup_steps=15, decay_steps=150)
            ),
            compute_dtype="bfloat16",
        ),
        operation=Operation(checkpoint_every_steps=50, eval_every_steps=50, best_metric="sample_nDCG@10"),
    )


def two_tower_llama2_7b() -> DualTowerJob:
    """Shared towers of Llama 2 7B, 6,607,343,616 parameters (its output is left out), on 512 pairs per step.

    Command: jaxscale train two_tower_llama2_7b --data.folder BEIR --init-from LLAMA --out RUN --mesh fsdp=64,tensor=2
    Hardware, time, expected: never trained; `jaxscale plan two_tower_llama2_7b --topology v5p:4x4x8` compiles it.
    16,384 pairs: `--training.global-batch-size 16384 --contrastive.cache-chunks 2 --mesh data=2,fsdp=64` compiles to
      11.3 GB of the 95 of each of 128 v5p chips, and sends less than with `tensor=2`; see
      docs/decisions/contrastive-training.md.
    Source: Ma et al. 2023, "Fine-Tuning LLaMA for Multi-Stage Text Retrieval" (RepLLaMA), section 2.1,
      https://arxiv.org/abs/2310.08319: the prefixes, the appended end token and its state as the vector; temperature
      .01 and rate 1e-4 (with LoRA) are theirs, batch, steps and lengths ours.
    """
    return DualTowerJob(
        towers=Towers(
            transformer=llama2_7b().transformer,
            pooling="last",
            append_end=True,
            query_prefix="query: ",
            document_prefix="passage: ",
            remat=True,
        ),
        data=PairData(query_buckets=(32,), document_buckets=(256,)),
        contrastive=Contrastive(temperature=0.01),
        training=TrainingIdentity(
            num_steps=10_000,
            global_batch_size=512,
            optimizer=AdamWConfig(
                schedule=ScheduleConfig(kind="linear", peak_learning_rate=1e-5, warmup_steps=500, decay_steps=10_000)
            ),
            compute_dtype="bfloat16",
        ),
        operation=Operation(eval_every_steps=1000, best_metric="sample_nDCG@10"),
    )


def two_tower_llama2_7b_lora() -> DualTowerJob:
    """As `two_tower_llama2_7b`, with 79,953,920 parameters trained beside those of the model, which stay as they are.

    Command: jaxscale train two_tower_llama2_7b_lora --data.folder BEIR --init-from MODEL --out RUN
    For any model: `--init-from` brings its own transformer. `--towers.lora.rank` and the like change the factors.
    Hardware, time, expected: never trained.
    Source: as `two_tower_llama2_7b`; rank and targets are ours.
    Count: of rank 32, 32 L (4 * 2 D + 3 (D + F)).
    """
    job = two_tower_llama2_7b()
    schedule = dataclasses.replace(job.training.optimizer.schedule, peak_learning_rate=1e-4)
    optimizer = AdamWConfig(schedule=schedule)
    return dataclasses.replace(
        job,
        towers=dataclasses.replace(job.towers, lora=LoRAConfig(rank=32, alpha=64.0)),
        training=dataclasses.replace(job.training, optimizer=optimizer),
    )


def two_tower_demo() -> DualTowerJob:
    """Shared towers of 1 layer, 128 wide, from random weights, for `jaxscale corpus pydocs`; what the demo trains.

    Command: jaxscale train two_tower_demo --data.folder CORPUS --out RUN --devices 8
    Hardware: 2 CPU cores, 8 emulated devices as data=2,fsdp=2,tensor=2.
    Time: 80 to 120 s on cores shared with ten other processes (150 to 320 pairs/s).
    Expected: on test, nDCG@10 .357 and RR@10 .307 among 10,101 passages; untrained .014 and .011.
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
