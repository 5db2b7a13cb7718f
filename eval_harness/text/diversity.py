"""How varied texts are: distinct n-grams, self-BLEU, repetition."""

from collections.abc import Iterable, Sequence


def _grams(tokens: Sequence[object], n: int) -> list[tuple[object, ...]]:
    return [tuple(tokens[place : place + n]) for place in range(len(tokens) - n + 1)]


def distinct(texts: Iterable[Sequence[object]], n: int) -> float | None:
    """Return the distinct n-grams of all texts as a share of all their n-grams (Li et al. 2016, distinct-n).

    Args:
        texts: token ids, or words.
        n: 1 or more.

    Returns:
        0 to 1, or None where no text has n tokens. It falls with the number of tokens: compare equal sizes only.

    Raises:
        ValueError: n is below 1.
    """
    if n < 1:
        raise ValueError(f"n is {n}; n-grams have 1 token or more.")
    found = [gram for text in texts for gram in _grams(text, n)]
    return len(set(found)) / len(found) if found else None


def repetition(tokens: Sequence[object], n: int = 4) -> float | None:
    """Return the share of a text's n-grams that occurred in it before (Welleck et al. 2019, seq-rep-n).

    Args:
        tokens: of one text.
        n: 1 or more.

    Returns:
        0 to below 1, or None where the text has fewer than n tokens.

    Raises:
        ValueError: n is below 1.
    """
    share = distinct([tokens], n)
    return None if share is None else 1 - share


def self_bleu(texts: Sequence[str]) -> float | None:
    """Return the mean BLEU-4 of each text with all others as its references, 0 to 1 (Zhu et al. 2018, Texygen).

    By sacrebleu: its tokenizer 13a, exponential smoothing, and no orders beyond a text's length. 1: all are the same.

    Args:
        texts: two or more, such as samples for one prompt.

    Returns:
        None for fewer than two texts. A text without words has BLEU 1 among others without words, else 0.
    """
    if len(texts) < 2:
        return None
    from sacrebleu.metrics import BLEU

    bleu = BLEU(effective_order=True)
    scores = []
    for place, text in enumerate(texts):
        others = [other for index, other in enumerate(texts) if index != place]
        if not text.strip():
            scores.append(float(any(not other.strip() for other in others)))
        else:
            scores.append(min(1.0, bleu.sentence_score(text, others).score / 100))
    return sum(scores) / len(scores)
