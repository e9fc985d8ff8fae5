"""A finished case as plain JSON values: what ``ask --json`` prints and the page exports."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

import numpy as np

from mrrag.pipeline import CaseResult
from mrrag.types import AttentionTrace

PAIRS = ("image_report", "image_image", "question_report")


def case_to_json(case: CaseResult) -> dict[str, Any]:
    """One object with ``retrieved``, ``answers``, ``trace``, ``settings`` and ``versions``.

    A number that does not exist (the cosine of an absent pair) is null, so that the
    result is JSON in the strict sense. No pixels and no file names are in it.
    """
    return {
        "question": case.question,
        "retrieved": [
            {
                "id": r.document.id,
                "rank": r.rank,
                "score": r.score,
                "cosines": dict(zip(PAIRS, map(_number, r.cosines), strict=True)),
                "terms": dict(zip(PAIRS, map(_number, r.terms), strict=True)),
                "lambda": r.relevance,
                "report": r.document.report,
                "source": r.document.source,
                "licence": r.document.licence,
            }
            for r in case.retrieved
        ],
        "answers": {
            method: {
                "text": a.text,
                "p_yes": _number(a.p_yes),
                "p_no": _number(a.p_no),
                "tokens": a.tokens,
                "prompt": a.prompt,
                "notes": list(a.notes),
            }
            for method, a in case.answers.items()
        },
        "trace": _trace(case.before, case.after),
        "settings": asdict(case.settings),
        "notes": list(case.notes),
        "seconds": case.seconds,
        "versions": case.versions,
    }


def _trace(before: AttentionTrace | None, after: AttentionTrace | None) -> dict[str, Any] | None:
    """Question rows' attention mass per layer and span, averaged over heads."""
    if before is None or after is None:
        return None
    return {
        "direction": "question tokens reading from the named span",
        "layers": list(range(before.mass_LHS.shape[0])),
        "steered_layers": list(after.layers),
        "spans": list(before.names),
        "tokens": [asdict(span) for span in before.spans],
        "before": _rounded(before.mass_LHS.mean(1)),
        "after": _rounded(after.mass_LHS.mean(1)),
    }


def _rounded(values: np.ndarray[Any, Any]) -> list[Any]:
    return list(np.round(values.astype(float), 6).tolist())


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
