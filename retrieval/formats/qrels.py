"""Reads judgements of either kind, told apart by their first line: TREC's four columns or BEIR's three."""

from pathlib import Path

from jaxscale.data.lines import read_lines
from retrieval.formats import beir, trec
from retrieval.formats.trec import Qrels


def read_qrels(file: Path | str) -> Qrels:
    """Reads a judgement file: query id -> document id -> relevance.

    Args:
      file: in TREC's form or BEIR's; `.gz` and `.zst` are decompressed.

    Raises:
      DataError: it is in neither form.
    """
    _, first = next(read_lines(Path(file)), (0, ""))
    reader = beir.read_qrels if len(first.split("\t")) == 3 else trec.read_qrels
    return reader(file)
