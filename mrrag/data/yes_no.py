"""Parses yes and no in answers: a data set's and a model's."""

from __future__ import annotations

import re

UNPARSED = -1
_WORDS = re.compile(r"[a-z]+")


def parse_yes_no(text: str, *, lenient: bool = False) -> int:
    """Return 1 for yes, 0 for no, and :data:`UNPARSED` for anything else.

    Parameters
    ----------
    lenient
        Do not require "yes" or "no" as the first word: it is enough if exactly one of the
        two occurs anywhere.
    """
    words = _WORDS.findall(text.lower())
    if words and words[0] in ("yes", "no"):
        return int(words[0] == "yes")
    if lenient and ("yes" in words) != ("no" in words):
        return int("yes" in words)
    return UNPARSED
