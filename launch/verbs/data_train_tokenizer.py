"""`jaxscale data train-tokenizer`: a byte-level BPE tokenizer out of files of documents."""

import dataclasses
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxscale.data.documents import find_files, read_documents
from jaxscale.data.lines import check_place, replace_text
from jaxscale.data.tokenizer import Tokenizer
from jaxscale.errors import UsageError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command:
    """Trains a byte-level BPE tokenizer, in the manner of GPT-2; the same texts give the same file, bit for bit.

    Every text can be written with it, and comes back as it was. `<pad>`, `<s>` and `</s>` are its first three tokens;
    `</s>` ends each document of a token dataset.

    Example: jaxscale data train-tokenizer --input corpus --vocab-size 32768 --out tokenizer.json
    """

    input: tuple[Path, ...]
    """Files (.jsonl, .txt, plain, .gz or .zst; .parquet) or folders of them."""
    out: Path
    """The tokenizer.json to write."""
    vocab_size: int = 32768
    """At most so many tokens, the 256 bytes and the 3 special tokens included."""
    min_frequency: int = 2
    """Pairs seen less often are not merged."""
    max_documents_per_file: int = 0
    """Read so many documents of each file, from its beginning; 0 for all."""
    text_field: str = "text"
    """The name of the text, in JSON and parquet."""
    replace: bool = False
    """Replace a file that is there already."""

    def __post_init__(self) -> None:
        if self.max_documents_per_file < 0:
            raise UsageError(f"max_documents_per_file={self.max_documents_per_file} must be at least 0")
        if self.min_frequency < 1:
            raise UsageError(f"min_frequency={self.min_frequency} must be at least 1")

    def run(self) -> dict[str, Any]:
        """Trains, writes the file and returns what it is."""
        self._check_out()
        files = find_files(self.input)
        counts = {"documents": 0, "bytes": 0}
        tokenizer = Tokenizer.train_bpe(self._texts(files, counts), self.vocab_size, min_frequency=self.min_frequency)
        with replace_text(self.out) as file:
            file.write(tokenizer.to_json())
        print(
            f"{self.out}: {tokenizer.vocab_size:,} tokens out of {counts['bytes']:,} bytes in "
            f"{counts['documents']:,} documents of {len(files)} files; fingerprint {tokenizer.fingerprint}"
        )
        if tokenizer.vocab_size < self.vocab_size:
            print(f"  fewer than {self.vocab_size:,}: no other pair occurs {self.min_frequency} times")
        return {
            "out": str(self.out),
            "fingerprint": tokenizer.fingerprint,
            "vocab_size": tokenizer.vocab_size,
            "num_files": len(files),
            "num_documents": counts["documents"],
            "num_bytes": counts["bytes"],
        }

    def _texts(self, files: list[Path], counts: dict[str, int]) -> Iterator[str]:
        """The texts; says in `counts` what was read."""
        for file in files:
            documents = read_documents(file, text_field=self.text_field)
            for document in itertools.islice(documents, self.max_documents_per_file or None):
                counts["documents"] += 1
                counts["bytes"] += len(document.text.encode())
                yield document.text

    def _check_out(self) -> None:
        check_place(self.out)
        if self.out.exists() and not self.replace:
            raise UsageError(f"{self.out} exists already; choose another place, or give --replace")
