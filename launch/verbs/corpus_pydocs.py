"""`jaxscale corpus pydocs`: a BEIR folder out of the documentation of the installed Python packages."""

import dataclasses
from pathlib import Path
from typing import Any

from jaxscale.store.commit import check_place
from retrieval.corpora import pydocs
from retrieval.formats import beir


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command:
    """Makes a retrieval corpus out of the documentation of the Python packages that are installed.

    A passage is what a public function, class or module says of itself, without its first sentence; that sentence is
    its query. Sources are parsed, never imported. Queries are split by module into train, dev and test; `natural` holds
    questions written by hand.

    Example: jaxscale corpus pydocs --out corpus
    """

    out: Path
    """The BEIR folder to make."""
    packages: tuple[str, ...] = pydocs.DEFAULT_PACKAGES
    """Top-level packages; `stdlib` is the standard library. Those not installed are left out."""
    replace: bool = False
    """Replace a BEIR folder that is there already."""

    def run(self) -> dict[str, Any]:
        """Makes the folder, prints what is in it and returns the numbers."""
        config = pydocs.PydocsConfig(packages=self.packages)
        check_place(self.out, format=beir.FORMAT, replace=self.replace)
        corpus = pydocs.build(config)
        folder = pydocs.write(self.out, corpus, config, replace=self.replace)
        num_queries = {split: len(judged) for split, judged in corpus.qrels.items()}
        print(f"{self.out}: {len(corpus.docs)} passages from {', '.join(corpus.sources.values())}")
        if corpus.absent:
            print(f"not installed: {', '.join(corpus.absent)}")
        print("queries: " + ", ".join(f"{count} {split}" for split, count in num_queries.items()))
        print("left out: " + ", ".join(f"{count} {why.replace('_', ' ')}" for why, count in corpus.left_out.items()))
        return {
            "out": str(self.out),
            "identity": folder.identity,
            "num_docs": len(corpus.docs),
            "num_queries": num_queries,
            "left_out": corpus.left_out,
            "sources": corpus.sources,
            "absent": list(corpus.absent),
        }
