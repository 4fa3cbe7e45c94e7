"""`jaxscale data stats`: what is in token datasets."""

import dataclasses
from pathlib import Path
from typing import Any, Literal

import tyro

from jaxscale.data.token_dataset import TokenDataset
from jaxscale.data.token_stats import document_length_quantiles, row_fills, vocabulary_use


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command:
    """Tells what is in token datasets: documents, tokens, text, how full their packed rows are.

    Example: jaxscale data stats tokens --vocabulary
    """

    folders: tyro.conf.Positional[tuple[Path, ...]]
    """Folders that `jaxscale data tokenize` made."""
    check: Literal["sizes", "full"] = "sizes"
    """`sizes` looks at the files' names and sizes; `full` reads and checks every byte."""
    vocabulary: bool = False
    """Also count how often each token occurs, which reads all of them."""

    def run(self) -> dict[str, Any]:
        """Prints what is in each folder and returns it, the totals beside."""
        found = [self._stats(folder) for folder in self.folders]
        if len(found) > 1:
            total = sum(stats["num_tokens"] for stats in found)
            print(f"together: {total:,} tokens in {sum(stats['num_documents'] for stats in found):,} documents")
        return {"datasets": found}

    def _stats(self, folder: Path) -> dict[str, Any]:
        dataset = TokenDataset.open(folder, check=self.check)
        quantiles, fills = document_length_quantiles(dataset), row_fills(dataset)
        use = vocabulary_use(dataset) if self.vocabulary else None
        print(
            f"{folder}: {dataset.num_tokens:,} tokens in {dataset.num_documents:,} documents and "
            f"{len(dataset.shards)} shards, {dataset.num_bytes / dataset.num_tokens:.2f} bytes a token"
            f"{'' if self.check == 'full' else ' (unverified: --check full reads every byte)'}"
        )
        lengths = ", ".join(f"{share:.0%} up to {length:,}" for share, length in quantiles.items())
        print(f"  tokens of a document: {lengths}")
        for fill in fills:
            print(f"  packed rows of {fill.sequence_length:,}: {fill.num_rows:,}, {fill.fill:.2%} full")
        if use is not None:
            print(
                f"  vocabulary: {use.num_used:,} of {dataset.vocab_size:,} ids occur, the commonest 100 are "
                f"{use.share_of_commonest:.1%} of all, {use.entropy_bits:.2f} bits a token"
            )
        return {
            "folder": str(folder),
            "id": dataset.id,
            "verified": self.check == "full",
            "tokenizer_sha256": dataset.tokenizer_sha256,
            "vocab_size": dataset.vocab_size,
            "num_shards": len(dataset.shards),
            "num_documents": dataset.num_documents,
            "num_tokens": dataset.num_tokens,
            "num_bytes": dataset.num_bytes,
            "document_tokens_quantiles": {str(share): length for share, length in quantiles.items()},
            "rows": [dataclasses.asdict(fill) for fill in fills],
            "vocabulary": None if use is None else dataclasses.asdict(use),
        }
