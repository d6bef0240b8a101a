"""Everyday sentences from a small grammar: commands, numbers, names and dates in about 150 distinct words.

The words are chosen for a small recogniser that learns from an hour of speech: written as they are spoken (no digits),
lower case, and without words that sound alike ("to" and "for" stay, since "two" and "four" are spoken unreduced).
"""

import hashlib
import itertools
import random
import re
from collections.abc import Iterable, Iterator

# Each rule is a list of alternatives, drawn with equal probability; `$name` stands for a draw from the rule `name`, and
# a sentence repeated in the list is drawn more often. Rules with many words (names, months) occur in many sentences, so
# that each of their words is spoken about as often as any other.
RULES: dict[str, list[str]] = {
    "sentence": [
        "turn $switch the $device in the $room",
        "please turn $switch the $room $device",
        "switch the $room $device $switch at $clock",
        "open the $opening in the $room",
        "close the $opening at $clock",
        "close the $room $opening please",
        "set the $room heating to $amount degrees",
        "set a timer for $amount minutes",
        "set an alarm for $clock $day $part",
        "call $name $day at $clock",
        "call $name on $digit $digit $digit $digit",
        "send a message to $name and $name",
        "remind $name about the $event on $date",
        "remind me about the $event with $name at $clock",
        "move the $event from $day to $day $part",
        "move my $event with $name to $date",
        "cancel the $event on $date",
        "is the $event with $name on $weekday or on $weekday",
        "book a table for $several people on $day $part",
        "book a $vehicle to $city for $name on $date",
        "find a $vehicle from $city to $city $day $part",
        "what is the weather in $city $day $part",
        "how cold is it in $city on $date",
        "play $music in the $room",
        "play $music for $amount minutes",
        "stop the $music at $clock",
        "add $food and $food to my list",
        "add $amount $measure of $food to the list",
        "please buy $food and $amount $measure of $food",
        "my number is $digit $digit $digit $digit $digit",
        "the birthday of $name is on $date",
        "pay $name $amount euros on $date",
    ],
    "switch": ["on", "off"],
    "device": ["lights", "lamp", "radio", "television"],
    "opening": ["window", "door", "curtains"],
    "room": ["kitchen", "bedroom", "bathroom", "office", "garage", "garden"],
    "event": ["meeting", "concert", "party", "appointment", "dinner"],
    "vehicle": ["taxi", "train", "flight"],
    "music": ["music", "jazz", "piano"],
    "food": ["milk", "bread", "coffee", "sugar", "rice", "cheese"],
    "measure": ["bottles", "boxes"],
    "city": ["london", "paris", "berlin", "madrid"],
    "name": [
        "anna", "peter", "maria", "david", "sarah", "thomas",
        "julia", "robert", "emma", "michael", "laura", "daniel",
    ],
    "day": ["$weekday", "$weekday", "$weekday", "today", "tomorrow"],
    "weekday": ["monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"],
    "part": ["morning", "afternoon", "evening"],
    "month": [
        "january", "february", "march", "april", "may", "june",
        "july", "august", "september", "october", "november", "december",
    ],
    "date": ["$month $ordinal", "$weekday the $ordinal of $month", "the $ordinal of $month"],
    "ordinal": ["$unit_ordinal", "$unit_ordinal", "$teen_ordinal", "twenty $unit_ordinal"],
    "unit_ordinal": ["first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth"],
    "teen_ordinal": ["tenth", "twelfth", "twentieth", "thirtieth"],
    "digit": ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"],
    "unit": ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine"],
    "tens": ["twenty", "thirty", "forty", "fifty"],
    "several": ["two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"],
    "hour": ["one", "$several", "$several", "$several", "$several", "$several"],
    "amount": ["$several", "$tens", "$tens $unit", "one hundred", "$unit hundred and $tens"],
    "clock": ["$hour o'clock", "$hour fifteen", "$hour thirty", "half past $hour", "quarter to $hour"],
}  # fmt: skip


def draw(generator: random.Random, rule: str = "sentence") -> str:
    """Draws one sentence, or one phrase of another rule."""
    template = generator.choice(RULES[rule])
    return re.sub(r"\$(\w+)", lambda found: draw(generator, found[1]), template)


def vocabulary() -> list[str]:
    """All words that the grammar can say, in alphabetical order."""
    words = itertools.chain.from_iterable(phrase.split() for phrases in RULES.values() for phrase in phrases)
    return sorted({word for word in words if not word.startswith("$")})


def subset_of(sentence: str) -> str:
    """Says which subset a sentence belongs to: 'test' and 'valid' own a twentieth of all each, 'train' the rest.

    A hash decides, so no sentence is ever in two subsets, and a corpus of another seed or size moves none across.
    """
    share = hashlib.sha256(sentence.encode()).digest()[0]
    return "test" if share < 13 else "valid" if share < 26 else "train"


def draw_distinct(seed: str, subset: str) -> Iterator[str]:
    """Draws distinct sentences of one subset ('train', 'valid' or 'test') without end, the same for the same seed."""
    generator = random.Random(seed)  # a string seeds by its SHA-512, the same in every process
    drawn: set[str] = set()
    while True:
        sentence = draw(generator)
        if sentence not in drawn and subset_of(sentence) == subset:
            drawn.add(sentence)
            yield sentence


def cover_first(sentences: Iterable[str], words: Iterable[str]) -> Iterator[str]:
    """Reorders endless sentences so that as few as simply possible at the start say every one of `words`.

    Sentences that say no new word are kept back until all words are covered, and follow then in their order.
    """
    missing = set(words)
    kept_back: list[str] = []
    stream = iter(sentences)
    while missing:
        sentence = next(stream)
        if missing.isdisjoint(sentence.split()):
            kept_back.append(sentence)
        else:
            missing.difference_update(sentence.split())
            yield sentence
    yield from kept_back
    yield from stream
