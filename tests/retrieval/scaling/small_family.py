"""A family of tiny towers on the small BEIR folder, whose runs take a moment once compiled."""

from pathlib import Path

from retrieval.scaling.family import TowerFamily
from retrieval.scaling.study import run_study
from tests.retrieval.towers.small_pairs import tiny_job

NUM_NEGATIVES = 20


def small_family(folder: Path, cache: Path | None = None, **changes) -> TowerFamily:
    """One size on two amounts, on one device; `cache` keeps compiled programs, so that each is made once."""
    operation = {
        "mesh": "data=1@0",
        "best_metric": "",
        "checkpoint_every_steps": 2,
        "eval_every_steps": None,
        "compile_cache": "off" if cache is None else str(cache),
    }
    fields = {
        "num_layers": (1,),
        "widths": (32,),
        "num_pairs": (32, 64),
        "num_epochs": 2,
        "num_queries": 16,
        "num_negatives": NUM_NEGATIVES,
        "num_pool_documents": 40,
    }
    return TowerFamily(job=tiny_job(folder, operation=operation), **(fields | changes))


def run_small(folder: Path, cache: Path, out: Path) -> None:
    """The study of that family, for a process that is killed."""
    run_study(small_family(folder, cache), out)
