"""The tiny re-ranker's job on the small BEIR folder of made-up words."""

import dataclasses
from pathlib import Path

from configs.reranker import reranker_tiny
from retrieval.reranking.job import RerankerJob


def tiny_reranker_job(folder: Path, **changes) -> RerankerJob:
    """`reranker_tiny` on a folder; `changes` are fields by the name of their part, e.g. `data={"split": "dev"}`."""
    job = reranker_tiny()
    changes = {"data": {}, "operation": {}} | changes
    changes["data"] = {"folder": str(folder)} | changes["data"]
    changes["operation"] = {"compile_cache": "off"} | changes["operation"]
    parts = {part: dataclasses.replace(getattr(job, part), **fields) for part, fields in changes.items()}
    return dataclasses.replace(job, **parts)
