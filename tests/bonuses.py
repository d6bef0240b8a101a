"""What hotwords are worth in a text, counted plainly."""


def count_bonuses(phrases: dict[str, float], text: str) -> float:
    """The sum over all phrases and all places of a text where their words stand."""
    words = text.split()
    total = 0.0
    for phrase, bonus in phrases.items():
        own = phrase.split()
        total += bonus * sum(words[start : start + len(own)] == own for start in range(len(words)))
    return total
