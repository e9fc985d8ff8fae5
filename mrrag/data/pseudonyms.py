"""The names by which patients and studies stand in a knowledge base."""

from __future__ import annotations

import hashlib

__all__ = ["pseudonym"]


def pseudonym(value: str) -> str:
    """Return a hash of an ID, the same in every reader; "" for none.

    It is not secret: who has a list of IDs can find which of them it is of.
    """
    return hashlib.sha256(value.encode()).hexdigest()[:16] if value else ""
