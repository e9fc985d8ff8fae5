"""Yes/no answers in text: a data set's own, and a model's."""

from __future__ import annotations

import re

UNPARSED = -1
_WORDS = re.compile(r"[a-z]+")


def parse_yes_no(text: str, *, lenient: bool = False) -> int:
    """1, 0 or :data:`UNPARSED`.

    Strict: the answer's first word is "yes" or "no". Lenient: failing that, exactly one
    of the two words occurs anywhere.
    """
    words = _WORDS.findall(text.lower())
    if words and words[0] in ("yes", "no"):
        return int(words[0] == "yes")
    if lenient and ("yes" in words) != ("no" in words):
        return int("yes" in words)
    return UNPARSED
