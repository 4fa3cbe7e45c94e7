"""`jaxscale data tokenize`: files of documents -> a committed token dataset."""

import dataclasses
from pathlib import Path
from typing import Any

from jaxscale.data import token_writer
from jaxscale.data.documents import find_files
from jaxscale.data.token_dataset import TokenDataset
from jaxscale.data.token_stats import row_fills
from jaxscale.data.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command:
    """Tokenizes files of documents into a dataset to train language models on.

    JSON lines as Dolma has them (a document a line, its text under `text`), plain text (a document a file) and parquet
    (a document a row). A file becomes a shard. Killed, the same command goes on with the shards that are missing;
    finished, it leaves what is there as it is.

    Example: jaxscale data tokenize --input corpus --tokenizer tokenizer.json --out tokens --pack-lengths 512 2048
    """

    input: tuple[Path, ...]
    """Files (.jsonl, .txt, plain, .gz or .zst; .parquet) or folders of them."""
    tokenizer: Path
    """A tokenizer.json, or a folder with one."""
    out: Path
    """The dataset's folder."""
    pack_lengths: tuple[int, ...] = ()
    """Row lengths, in tokens, to pack documents for; a model is trained on rows of one of them. Rows of documents one
    after another need none."""
    end_token: str = ""
    """The token that ends a document; empty for the tokenizer's own."""
    text_field: str = "text"
    """The name of the text, in JSON and parquet."""
    processes: int = 1
    """Shards made at the same time; within each, all cores are used that are left for it."""
    replace: bool = False
    """Replace a dataset that is there already."""

    def run(self) -> dict[str, Any]:
        """Makes the dataset, prints what is in it and returns the numbers."""
        files = find_files(self.input)
        tokenizer = Tokenizer.load(self.tokenizer)
        how = token_writer.tokenization(
            tokenizer, pack_lengths=self.pack_lengths, end_token=self.end_token, text_field=self.text_field
        )
        dataset = token_writer.write_dataset(
            self.out, files, tokenizer, how, num_processes=self.processes, replace=self.replace
        )
        return _told(dataset)


def _told(dataset: TokenDataset) -> dict[str, Any]:
    fills, num_empty = row_fills(dataset), sum(shard.counts.num_empty for shard in dataset.shards)
    print(
        f"{dataset.path}: {dataset.num_tokens:,} tokens in {dataset.num_documents:,} documents and "
        f"{len(dataset.shards)} shards, {dataset.num_bytes / dataset.num_tokens:.2f} bytes a token"
    )
    for fill in fills:
        print(f"  packed rows of {fill.sequence_length:,}: {fill.num_rows:,}, {fill.fill:.2%} full")
    if num_empty:
        print(f"  left out: {num_empty:,} documents without a text")
    return {
        "out": str(dataset.path),
        "id": dataset.id,
        "num_shards": len(dataset.shards),
        "num_documents": dataset.num_documents,
        "num_empty": num_empty,
        "num_tokens": dataset.num_tokens,
        "num_bytes": dataset.num_bytes,
        "rows": [dataclasses.asdict(fill) for fill in fills],
    }
