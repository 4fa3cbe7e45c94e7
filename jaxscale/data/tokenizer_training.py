"""Trains tokenizers so that the same texts give the same tokenizer, bit for bit."""

import json
from collections import Counter
from collections.abc import Iterable
from typing import Any

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from jaxscale.errors import UsageError

BERT_SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
BPE_SPECIAL_TOKENS = ("<pad>", "<s>", "</s>")

# Characters beyond the commonest are unknown to a trained WordPiece: BERT's own limit of its alphabet.
_MAX_ALPHABET = 1000


def bert_wordpiece_spec(vocab: dict[str, int], *, lowercase: bool) -> dict[str, Any]:
    """The values of a tokenizer.json for a BERT WordPiece vocabulary.

    Args:
      vocab: token -> id, with [UNK], [CLS] and [SEP] among them.
      lowercase: whether text is lowercased and its accents are stripped.
    """
    tokenizer = tokenizers.Tokenizer(models.WordPiece(vocab, unk_token="[UNK]", max_input_chars_per_word=100))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, vocab[token]) for token in ("[CLS]", "[SEP]")],
    )
    tokenizer.add_special_tokens([token for token in BERT_SPECIAL_TOKENS if token in vocab])
    return dict(json.loads(tokenizer.to_str()))


def wordpiece_spec(texts: Iterable[str], vocab_size: int, min_frequency: int) -> dict[str, Any]:
    """Trains a lowercase BERT WordPiece vocabulary.

    The library's trainer numbers the pieces `##a`, `##b`... in the order of a randomly seeded hash table, and breaks
    ties between merges by those numbers, so two of its runs differ. Naming these pieces beforehand, in order, as if
    they were special tokens leaves nothing to chance; the vocabulary is then taken out of the trainer's tokenizer.

    Args:
      texts: what to learn from.
      vocab_size: at most so many tokens.
      min_frequency: a pair seen less often is not merged.
    """
    texts = list(texts)
    normalizer = normalizers.BertNormalizer(lowercase=True)
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(normalizer.normalize_str(text))
    frequent = sorted((c for c in counts if not c.isspace()), key=lambda c: (-counts[c], c))[:_MAX_ALPHABET]
    alphabet = sorted(frequent)
    least = len(BERT_SPECIAL_TOKENS) + 2 * len(alphabet)
    if vocab_size < least:
        raise UsageError(
            f"vocab_size={vocab_size} is too small: {len(BERT_SPECIAL_TOKENS)} special tokens and {len(alphabet)} "
            f"characters in two positions need {least}"
        )
    tokenizer = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        special_tokens=[*BERT_SPECIAL_TOKENS, *(f"##{c}" for c in alphabet)],
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return bert_wordpiece_spec(tokenizer.get_vocab(with_added_tokens=True), lowercase=True)


def bpe_spec(texts: Iterable[str], vocab_size: int, min_frequency: int) -> dict[str, Any]:
    """Trains a byte-level BPE vocabulary; its trainer breaks ties by the bytes' own order.

    Args:
      texts: what to learn from.
      vocab_size: at most so many tokens.
      min_frequency: a pair seen less often is not merged.
    """
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    least = len(BPE_SPECIAL_TOKENS) + len(alphabet)
    if vocab_size < least:
        raise UsageError(f"vocab_size={vocab_size} is too small: the bytes and the special tokens need {least}")
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        special_tokens=list(BPE_SPECIAL_TOKENS),
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return dict(json.loads(tokenizer.to_str()))
