"""Makes a token dataset out of files of documents: shard by shard, by several processes, each shard exactly once."""

import array
import concurrent.futures
import dataclasses
import functools
import hashlib
import json
import multiprocessing
import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np
from jaxtyping import Int32

from jaxscale import typed_json
from jaxscale.data.documents import Document, read_documents
from jaxscale.data.packing import pack
from jaxscale.data.token_dataset import (
    FORMAT,
    TOKENIZER_FILE,
    VERSION,
    ShardCounts,
    TokenDataset,
    TokenDatasetConfig,
    id_dtype,
    shard_name,
)
from jaxscale.data.tokenizer import Tokenizer
from jaxscale.errors import DataError, MachineError, UsageError
from jaxscale.store import commit, disk

# The families' tokens for the end of a text: Llama and T5, GPT-2, Qwen, BERT.
_END_TOKENS = ("</s>", "<|endoftext|>", "<|end_of_text|>", "<|im_end|>", "[SEP]")
# Handed to the tokenizer at a time: enough to keep its threads busy.
_TEXTS_PER_BATCH = 1024
_CHARACTERS_PER_BATCH = 4 * 2**20
_NO_LIMIT = 2**31
# In a draft only: what its shards were made with.
_SETTINGS_FILE = "settings.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tokenization:
    """How documents become tokens.

    Attributes:
      dataset: what is kept of it in the dataset.
      text_field: the name of the text, in JSON and parquet.
    """

    dataset: TokenDatasetConfig
    text_field: str = "text"


def tokenization(
    tokenizer: Tokenizer, *, pack_lengths: Sequence[int], end_token: str = "", text_field: str = "text"
) -> Tokenization:
    """How a tokenizer makes a dataset.

    Args:
      tokenizer: whose special tokens stand around each document, as around any text.
      pack_lengths: the row lengths, in tokens, to make packs for.
      end_token: ends each document; empty for the tokenizer's own closing token, or else the one that families use.
      text_field: the name of the text, in JSON and parquet.

    Raises:
      UsageError: the tokenizer has no such token, or none that is known to end a text; or a length is too small.
    """
    too_small = [length for length in pack_lengths if length < 2]
    if too_small:
        raise UsageError(f"pack_lengths has {too_small[0]}; a row must have at least 2 tokens")
    dataset = TokenDatasetConfig(
        tokenizer_sha256=tokenizer.fingerprint,
        vocab_size=tokenizer.vocab_size,
        end_id=_end_id(tokenizer, end_token),
        pack_lengths=tuple(sorted(set(pack_lengths))),
    )
    return Tokenization(dataset=dataset, text_field=text_field)


def write_dataset(
    out: Path,
    files: Sequence[Path],
    tokenizer: Tokenizer,
    how: Tokenization,
    *,
    num_processes: int = 1,
    replace: bool = False,
) -> TokenDataset:
    """Tokenizes files into a committed dataset, one shard for each; a run that was killed goes on where it was.

    A dataset that was made of the same files in the same way is left as it is.

    A shard counts as done once all its files are on disk and a note beside them says so. The next run with the same
    tokenizer and settings keeps those whose source has not changed, and makes the others anew.

    Args:
      out: the dataset's folder.
      files: of documents; see `jaxscale.data.documents.find_files`.
      tokenizer: makes the ids.
      how: with which end, packs and text field.
      num_processes: how many shards are made at the same time.
      replace: whether a dataset that is there already is replaced, in one step.

    Raises:
      DataError: a file is damaged, or holds no document; the shards made before are kept for the next run.
      MachineError: a process was killed, or the disk is full; the same.
      UsageError: something else is at `out` already.
    """
    if num_processes < 1:
        raise UsageError(f"num_processes={num_processes} must be at least 1")
    finished = None if replace else _finished(out, files, how)
    if finished is not None:
        return finished
    with commit.draft(out, format=FORMAT, version=VERSION, replace=replace, resumable=True) as draft:
        _begin(draft.path, tokenizer, how)
        make = functools.partial(_shard, draft.path, how)
        counts = list(_in_processes(make, list(enumerate(files)), num_processes))
        for number in range(len(files)):
            _note(draft.path, number).unlink()
        (draft.path / _SETTINGS_FILE).unlink()
        _remove_strangers(draft.path, len(files))
        draft.config = {"settings": typed_json.encode(how.dataset), "shards": typed_json.encode(tuple(counts))}
        for name in ("num_documents", "num_empty", "num_tokens", "num_bytes"):
            draft.counts[name] = sum(getattr(one, name) for one in counts)
    return TokenDataset.open(out)


def _end_id(tokenizer: Tokenizer, end_token: str) -> int:
    if end_token:
        found = tokenizer.token_id(end_token)
        if found is None:
            raise UsageError(f"end_token={end_token!r} is not in the tokenizer's vocabulary")
        return found
    if tokenizer.closing_ids:
        return tokenizer.closing_ids[-1]
    known = next((found for name in _END_TOKENS if (found := tokenizer.token_id(name)) is not None), None)
    if known is None:
        raise UsageError(f"the tokenizer has none of {', '.join(_END_TOKENS)}; name the token that ends a document")
    return known


def _finished(out: Path, files: Sequence[Path], how: Tokenization) -> TokenDataset | None:
    """The dataset at `out`, if it is the one that is asked for."""
    if not commit.is_committed(out):
        return None
    found = TokenDataset.open(out)
    sources = [(shard.counts.source, shard.counts.source_sha256) for shard in found.shards]
    if found.config == how.dataset and sources == [(file.name, _sha256(file)) for file in files]:
        return found
    raise UsageError(f"{out} holds a dataset of other files or settings; choose another place, or ask to replace it")


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _begin(folder: Path, tokenizer: Tokenizer, how: Tokenization) -> None:
    """Leaves in a draft only what was made with these settings."""
    settings = typed_json.canonical(typed_json.encode(how))
    noted = folder / _SETTINGS_FILE
    if not noted.is_file() or noted.read_bytes() != settings:
        for leftover in folder.iterdir():
            leftover.unlink()
        tokenizer.save(folder / TOKENIZER_FILE)
        _write_durably(noted, settings)


def _remove_strangers(folder: Path, num_shards: int) -> None:
    """Removes what an earlier run with more files left in the draft, and files that were being written."""
    names = {shard_name(number) for number in range(num_shards)}
    for path in folder.iterdir():
        if path.name != TOKENIZER_FILE and (path.name.split(".")[0] not in names or path.suffix == ".new"):
            path.unlink()


def _in_processes(
    make: functools.partial[ShardCounts], tasks: list[tuple[int, Path]], num_processes: int
) -> Iterator[ShardCounts]:
    if num_processes == 1:
        yield from (make(*task) for task in tasks)
        return
    context = multiprocessing.get_context("spawn")
    num_threads = max((os.cpu_count() or 1) // num_processes, 1)
    with concurrent.futures.ProcessPoolExecutor(
        num_processes, context, initializer=_begin_process, initargs=(num_threads,)
    ) as pool:
        try:
            for future in [pool.submit(make, *task) for task in tasks]:
                yield future.result()
        except BrokenProcessPool:
            raise MachineError(
                "a process that tokenized was killed, perhaps for want of memory; the same command goes on from what "
                "is done, with fewer processes if need be"
            ) from None
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _begin_process(num_threads: int) -> None:
    """In a process of its own, before the tokenizers library makes its threads."""
    os.environ["RAYON_NUM_THREADS"] = str(num_threads)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Ends this process when the one that started it is gone, lest it write into the next run's draft."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _shard(folder: Path, how: Tokenization, number: int, source: Path) -> ShardCounts:
    """Makes one shard, or finds it made from the same source."""
    source_sha256 = _sha256(source)
    noted = _note(folder, number)
    if noted.is_file():
        done = typed_json.decode(ShardCounts, json.loads(noted.read_bytes()), str(noted))
        if (done.source, done.source_sha256) == (source.name, source_sha256):
            return done
        noted.unlink()
    with commit.full_disk_is_an_environment_error(folder):
        counts = _write_shard(folder / shard_name(number), how, source, source_sha256)
        _write_durably(noted, typed_json.canonical(typed_json.encode(counts)))
    return counts


def _write_shard(stem: Path, how: Tokenization, source: Path, source_sha256: str) -> ShardCounts:
    tokenizer = Tokenizer.load(stem.parent / TOKENIZER_FILE)
    dtype, offsets = id_dtype(how.dataset.vocab_size), array.array("Q", [0])
    num_empty = num_bytes = 0
    with _beside(stem, "tokens").open("wb") as file:
        for documents in _batches(read_documents(source, text_field=how.text_field)):
            texts = [document.text for document in documents if document.text]
            num_empty += len(documents) - len(texts)
            num_bytes += sum(len(text.encode()) for text in texts)
            for ids in tokenizer.encode_batch(texts, _NO_LIMIT).ids:
                ended = _ended(ids, how.dataset)
                file.write(ended.astype(dtype).tobytes())
                offsets.append(offsets[-1] + len(ended))
        file.flush()
        os.fsync(file.fileno())
    if len(offsets) == 1:
        raise DataError(f"{source}: none of its {num_empty} documents has a text; leave the file out")
    ends = np.array(offsets, np.int64)
    _write_durably(_beside(stem, "offsets"), ends.astype("<u8").tobytes())
    for length in how.dataset.pack_lengths:
        packs = pack(ends, length)
        for part, values in (("row_ends", packs.row_ends), ("starts", packs.starts), ("lengths", packs.lengths)):
            width = "<u4" if part == "lengths" else "<u8"
            _write_durably(_beside(stem, f"packs-{length}.{part}"), values.astype(width).tobytes())
    return ShardCounts(
        source=source.name,
        source_sha256=source_sha256,
        num_documents=len(offsets) - 1,
        num_empty=num_empty,
        num_tokens=int(ends[-1]),
        num_bytes=num_bytes,
        longest_tokens=int(np.diff(ends).max()),
    )


def _ended(ids: Int32[np.ndarray, " T"], dataset: TokenDatasetConfig) -> Int32[np.ndarray, " T"]:
    if int(ids.max()) >= dataset.vocab_size:
        raise DataError(
            f"the tokenizer gives the id {ids.max()}, but says that its vocabulary has {dataset.vocab_size}: its "
            "numbering has gaps; mend the tokenizer.json"
        )
    return ids if ids[-1] == dataset.end_id else np.append(ids, np.int32(dataset.end_id))


def _batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    batch: list[Document] = []
    num_characters = 0
    for document in documents:
        batch.append(document)
        num_characters += len(document.text)
        if len(batch) == _TEXTS_PER_BATCH or num_characters >= _CHARACTERS_PER_BATCH:
            yield batch
            batch, num_characters = [], 0
    if batch:
        yield batch


def _beside(stem: Path, part: str) -> Path:
    return stem.with_name(f"{stem.name}.{part}")


def _note(folder: Path, number: int) -> Path:
    """Says that a shard is done, and what is in it; there in a draft only."""
    return folder / f"{shard_name(number)}.done"


def _write_durably(path: Path, content: bytes) -> None:
    """Writes a file that is there whole or not at all."""
    new = path.with_name(f"{path.name}.new")
    with new.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(new, path)
    disk.fsync(path.parent)
