"""What a checkpoint knows about, so that it can decline the rest.

The bundled model has seen phantom chest radiographs and the questions asked about them,
nothing else. A question that names nothing from that world is declined before the model
is asked, because a model this small would otherwise make a finding up. A checkpoint
without a ``scope.json`` (LLaVA-Med) has no such limit.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Scope:
    """The terms that a question may name, and what is said where it names none."""

    terms: tuple[str, ...]
    message: str

    def admits(self, question: str) -> bool:
        """Whether the question names one of the terms, as whole words, singular or plural."""
        text = question.lower()
        return any(re.search(rf"\b{re.escape(term)}s?\b", text) for term in self.terms)


def load_scope(checkpoint: Path) -> Scope | None:
    """Read ``scope.json`` of a checkpoint; None where there is none."""
    path = checkpoint / "scope.json"
    if not path.exists():
        return None
    stored = json.loads(path.read_text(encoding="utf-8"))
    return Scope(tuple(stored["terms"]), str(stored["message"]))
