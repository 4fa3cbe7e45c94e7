"""Near-duplicates: the groups of a plain comparison of all pairs, and what makes two texts alike."""

import itertools
import random

import numpy as np
import pytest

from retrieval.towers import near_duplicates
from retrieval.towers.near_duplicates import duplicate_groups


def shingles_of(text):
    words = "".join(c if c.isalnum() else " " for c in text.lower()).split()
    return {tuple(words[i : i + 3]) for i in range(max(1, len(words) - 2))}


def plain_groups(texts, jaccard):
    """All pairs compared, and joined by walking from each text to all that it reaches."""
    sets = list(map(shingles_of, texts))
    near = [{j for j, right in enumerate(sets) if len(left & right) / len(left | right) >= jaccard} for left in sets]
    groups = []
    for row in range(len(texts)):
        reached, new = {row}, {row}
        while new:
            new = set().union(*(near[r] for r in new)) - reached
            reached |= new
        groups.append(min(reached))
    return groups


def texts_with_copies():
    """Passages of 40 words, some with copies in which up to six words are others, and copies of these."""
    rng = random.Random(0)
    words = [f"word{number}" for number in range(300)]
    texts = [" ".join(rng.choices(words, k=40)) for _ in range(30)]
    for _ in range(60):
        changed = rng.choice(texts).split()
        for _ in range(rng.randrange(7)):
            changed[rng.randrange(len(changed))] = rng.choice(words)
        texts.append(" ".join(changed))
    return texts


@pytest.mark.parametrize("jaccard", [0.7, 0.85, 1.0])
def test_groups_are_those_of_a_plain_comparison_of_all_pairs(jaccard):
    texts = texts_with_copies()
    expected = plain_groups(texts, jaccard)
    assert 30 <= len(set(expected)) < len(texts)
    assert duplicate_groups(texts, jaccard).tolist() == expected


def templated_texts(num):
    """Texts that have their first words in common, so that most of them meet in some band; some stand there twice."""
    rng = random.Random(0)
    words = [f"word{number}" for number in range(2000)]
    template = rng.choices(words, k=60)
    texts = [" ".join([*template, *rng.choices(words, k=40)]) for _ in range(num)]
    return texts + rng.choices(texts, k=num // 4)


def test_texts_of_one_template_are_compared_once_and_copies_never(monkeypatch):
    compared = []

    def counted(others, shingles, similarities=near_duplicates._similarities):
        compared.extend((other.tobytes(), shingles.tobytes()) for other in others)
        return similarities(others, shingles)

    monkeypatch.setattr(near_duplicates, "_similarities", counted)
    texts = templated_texts(60)
    assert duplicate_groups(texts, 0.8).tolist() == plain_groups(texts, 0.8)
    assert len(set(compared)) == len(compared)
    assert len(compared) > 500
    assert not [pair for pair in compared if pair[0] == pair[1]]


@pytest.mark.parametrize("at_once", [1, 7])
def test_groups_are_the_same_however_many_are_compared_at_once(monkeypatch, at_once):
    texts = texts_with_copies()
    monkeypatch.setattr(near_duplicates, "_COMPARED_AT_ONCE", at_once)
    assert duplicate_groups(texts, 0.7).tolist() == plain_groups(texts, 0.7)


def test_groups_do_not_depend_on_the_order_of_texts():
    texts = texts_with_copies()
    order = random.Random(1).sample(range(len(texts)), len(texts))
    straight, mixed = duplicate_groups(texts, 0.8), duplicate_groups([texts[row] for row in order], 0.8)
    for (i, left), (j, right) in itertools.combinations(enumerate(order), 2):
        assert (mixed[i] == mixed[j]) == (straight[left] == straight[right])


def test_case_and_punctuation_make_no_difference_and_one_word_does_at_1():
    texts = ["The cat sat on the mat.", "the CAT, sat on the mat", "the cat sat on a mat", "", "...", "cat"]
    assert duplicate_groups(texts, 1.0).tolist() == [0, 0, 2, 3, 3, 5]
    assert duplicate_groups(texts, 1.0).dtype == np.int32
