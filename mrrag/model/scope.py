"""The topics of a checkpoint, so that it can decline all other questions.

The bundled model has seen phantom chest radiographs and questions about them, nothing else.
A question that names none of its topics is declined before the model is asked, since a
model this small would otherwise invent a finding. A checkpoint
without a ``scope.json`` (LLaVA-Med) has no such limit.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from mrrag.errors import ModelError
from mrrag.files import read_json
from mrrag.schema import Items, Record, Text, refusing_fields

_SCOPE = Record({"terms": Items(Text(1, 200), 1, 10_000), "message": Text(1, 10_000)})


@dataclass(frozen=True)
class Scope:
    """The terms that a question may name, and the message where it names none."""

    terms: tuple[str, ...]
    message: str

    def admits(self, question: str) -> bool:
        """Return whether a question names one of the terms, as a whole word, or its plural."""
        text = question.lower()
        return any(re.search(rf"\b{re.escape(term)}s?\b", text) for term in self.terms)


def load_scope(checkpoint: Path) -> Scope | None:
    """Read ``scope.json`` of a checkpoint; None where there is none."""
    path = checkpoint / "scope.json"
    if not path.exists():
        return None
    remedy = "Restore the file, or train the included model again with `python -m mrrag phantom`."

    def refuse(why: str) -> ModelError:
        return ModelError(f"{path.name} cannot be read ({why}). {remedy}")

    with refusing_fields(path.name, remedy, ModelError):
        stored = _SCOPE.check(read_json(path, refuse))
    return Scope(tuple(stored["terms"]), stored["message"])
