"""Whether a sentence affirms, denies or doubts a finding that it mentions.

The rules follow NegEx (Chapman et al. 2001): a cue before a mention, or one shortly after
it, counts within the same clause of the same sentence. They are few on purpose.

This module knows no finding: it is given a sentence and the place of a mention in it.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Literal

__all__ = ["NEGATIONS", "Stance", "sentences", "stance_in"]

Stance = Literal["affirmed", "denied", "uncertain"]

# The scope of a negation, in characters, at most: a sentence may lack its full stop.
REACH = 240

_SEEN = r"(?:seen|present|identified|demonstrated|visuali[sz]ed|evident|apparent|appreciated|noted)"
# "Not seen on the lateral view" and "not seen on the prior film" deny nothing.
_OTHER_FILM = (
    r" (?:\w+ )?(?:on|in) (?:the |a |that )?(?:prior|previous|earlier|comparison|old|lateral"
    r"|frontal|pa|ap)\b"
)

NEGATIONS = re.compile(
    r"\b(?:no|not|without|none|never|absence of|absent|free of|negative for|denies|neither|nor"
    r"|clear of|clear(?= (?:focal |air ?space))|(?:resolution|removal|clearing) of|resolved|cleared"
    r"|no longer)\b"
)
# "No change in the effusion" affirms an effusion, "to ensure resolution" does not deny it.
_NOT_NEGATIONS = re.compile(
    r"\b(?:suggest\w+ )?(?:no|without|not)\b(?: \w+){0,2}? (?:changed?|increased?|decreased?"
    r"|worsening|improvement|progression|enlargement of the|growth|difference)\b"
    r"|\bnot only\b|\b(?:no|without) (?:prior|comparisons?)\b"
    r"|\bno [\w ]{0,40}?\b(?:of|in) (?:the |a )?known\b"
    r"|\b(?:ensure|document|confirm|allow|until|await|for)(?: \w+)? (?:resolution|clearing|cleared)"
    r"(?: of)?\b|\buntil (?:resolved|cleared)\b"
    r"|\b(?:partial(?:ly)?|near(?:ly)?|almost|incomplete(?:ly)?)(?:[ -]complete(?:ly)?)?"
    r"[ -](?:resolution|clearing|resolved|cleared)"
    rf"(?: of)?\b|\bnot (?:\w+[ -])?{_SEEN}{_OTHER_FILM}"
)
_NEGATIONS_AFTER = re.compile(
    # Up to the verb: a few words, or the rest of a list that closes with "and".
    r"^(?:[\w ,-]{0,24}?|[\w -]{0,40}?|(?:, [\w -]{1,30}?){0,3},? and [\w -]{1,40}?)"
    r"\b(?:(?:is|are|was|were|has|have)"
    r" (?:(?:since|now|been|completely|largely) )*"
    r"(?:absent|resolved|cleared|removed|discontinued|ruled out|unlikely"
    rf"|no longer {_SEEN}|not (?:\w+[ -])?{_SEEN}(?!{_OTHER_FILM}))"
    rf"|not (?:\w+[ -])?(?:seen|identified|visuali[sz]ed)(?!{_OTHER_FILM})"
    r"|(?<!partially )(?<!nearly )(?<!almost )resolved|ruled out|removed)\b"
)
_DOUBTS = re.compile(
    r"\b(?:possibl[ey]|possibility of|probabl[ey]|may|might|could|suspicious for|suspect(?:ed)?"
    r"|suspicion of|question\w*|concern(?:ing)? for|worrisome for|rule out|evaluate for|exclude"
    r"|versus|vs|equivocal|likely|suggest\w*|favou?r\w*|considerations?|differential"
    r"|borderline|presum\w+|either|rather than|perhaps|maybe|potential(?:ly)?|consider"
    r"|(?:thought|felt) to(?: be| represent| reflect)?|correlat\w+(?: \w+)? for)\b"
)
# Checked before negations, which they contain: "cannot exclude a small effusion".
_NOT_EXCLUDED = re.compile(
    r"\b(?:can ?not|not|difficult to|unable to)(?: be)?(?: \w+)? (?:exclude|rule out)\b"
)
_DOUBTS_AFTER = re.compile(
    r"^(?:[\w ,-]{0,24}?|[\w -]{0,40}?)"
    r"\b(?:(?:can ?not|not)(?: \w+)? be (?:\w+ )?(?:excluded|ruled out)"
    r"|not (?:\w+ )?excluded|difficult to exclude|less likely|in the differential"
    r"|(?:is|are|was|were) (?:\w+ )?(?:possible|questionable|questioned|suspected"
    r"|favou?red(?! to)|considered(?! to)))\b"
)
# "Atelectasis or scarring" affirms neither, and so does "atelectasis/scarring".
_CAUSE = (
    r"(?:atelect\w+|scar(?:ring)?|infiltrates?|air ?space disease|consolidation|pneumonia"
    r"|infection)"
)
_OR_BEFORE = re.compile(
    r"(?:\band/or\b|\b(?<!mild )(?<!small )(?<!moderate )or\b)(?: (?!more|less)[\w-]+){0,2} $"
    rf"|{_CAUSE}/(?:\w+ )?$"
)
_OR_AFTER = re.compile(
    r"^(?:(?: (?!is|are|was|were)\w+)?,? (?:and/or|or|versus|vs)\b(?! (?:more|less))"
    r"|, (?:[\w-]+ ){1,4}and/or\b"
    rf"|/(?:\w+ )?{_CAUSE})"
)
# Nothing is said of a finding that could not have been seen.
_SAYS_NOTHING_BEFORE = re.compile(
    r"\b(?:(?:limit\w*|reduc\w+|decreas\w+|suboptimal|poor) (?:\w+ )?)?(?:evaluation|assessment"
    r"|sensitivity|detection) (?:for|of|to)(?! (?:this|these)\b)(?: [\w,-]+){0,4} $"
    # "Consistent with the patient's history of fibrosis" is of the image, too.
    r"|(?<!'s )(?<!with )\bhistory of(?: \w+){0,2} $"
)
_SAYS_NOTHING_AFTER = re.compile(
    rf"^[\w ,-]{{0,24}}?\b(?:(?:may|might|could|can ?not) (?:not )?be (?:{_SEEN}|missed|obscured"
    r"|overlooked|assessed|evaluated))\b"
)
# Words that describe what is there; after "and" or "with" they begin a statement of their own.
_THERE = (
    r"(?:small|mild(?:ly)?|moderate|large|minimal|tiny|trace|dense|stable|chronic|old|scattered"
    r"|unchanged|persistent|increased|increasing|new|worsening|calcified|degenerative|bilateral|left|right|low|patchy|residual)\b"
)
# The end of a clause, where the scope of a cue ends.
_CLAUSE_END = re.compile(
    r"\b(?:but|however|although|though|except|exception of|aside from|apart from|other than"
    r"|despite|given|there (?:is|are)|which|(?:placement|insertion) of)\b|[;:(]"
    rf"|,(?: and)? (?:a|an|the) |, and (?={_THERE})|\bwith (?=(?:an? )?{_THERE})"
    # A new subject and verb, unless the verb closes a list: "no effusion or nodule is seen".
    r"|(?:,|\band) (?=(?:the )?(?:[a-z]+ ){1,3}(?:is|are|appears?|remains?) "
    rf"(?!{_SEEN}|absent|resolved|gone|cleared|not (?:\w+ )?{_SEEN}))"
    r"|, (?=(?:possibl|probabl|likely|suggest|may|might|could|consistent|compatible|represent"
    r"|findings|changes))"
)
# A full stop without a space ("apex.there") ends a sentence too, but "vs." does not.
_SENTENCE_END = re.compile(r"(?<=[.!?])(?<!\bvs\.)\s+|\n+|(?<=[a-z]{2}\.)(?<!\bvs\.)(?=[a-z]{2})")


def sentences(text: str) -> list[tuple[int, int]]:
    """Return start and stop of every sentence of a text in lower case."""
    places, start = [], 0
    for end in _SENTENCE_END.finditer(text):
        places.append((start, end.start()))
        start = end.end()
    return [*places, (start, len(text))]


def stance_in(text: str, start: int, stop: int, within: tuple[int, int]) -> Stance | None:
    """Return what a sentence says about its words from ``start`` to ``stop``.

    Parameters
    ----------
    text
        In lower case.
    within
        Start and stop of the sentence in the text.

    Returns
    -------
    str or None
        None where it only says that they could not be judged ("evaluation for pneumothorax is
        limited").
    """
    before = text[max(within[0], start - REACH) : stop]
    return _judge(before, stop - start, text[stop : min(within[1], stop + REACH)])


# Reports repeat themselves: most sentences of a data set occur in many of its reports.
@lru_cache(maxsize=1 << 14)
def _judge(before: str, length: int, after: str) -> Stance | None:
    """Return the stance of the last ``length`` characters of ``before``.

    They are part of it, because "the heart is not enlarged" contains its own negation.
    """
    ends = [m.end() for m in _CLAUSE_END.finditer(before[: len(before) - length])]
    before, unchanged = _NOT_NEGATIONS.subn(" ", before[ends[-1] if ends else 0 :])
    ahead = before[: len(before) - length]
    cut = _CLAUSE_END.search(after)
    after = after[: cut.start()] if cut else after
    if _SAYS_NOTHING_BEFORE.search(ahead) or _SAYS_NOTHING_AFTER.search(after):
        return None
    if _DOUBTS_AFTER.search(after) or _NOT_EXCLUDED.search(before):
        return "uncertain"
    if _NEGATIONS_AFTER.search(after) or NEGATIONS.search(before):
        return "denied"
    if _DOUBTS.search(before):
        return "uncertain"
    # "No change in the effusion or the nodule" affirms both.
    alternatives = _OR_AFTER.search(after) or _OR_BEFORE.search(ahead)
    return "uncertain" if alternatives and not unchanged else "affirmed"
