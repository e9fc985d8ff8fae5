"""A finished case as plain JSON values, and back to what it takes to ask it again.

What ``ask --json`` prints is what the page saves. No pixels and no file names are in it;
the picture is known by its hashes.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from mrrag.case import Case, Evidence, PictureInfluence, Settings
from mrrag.errors import SettingsError
from mrrag.report.saved_case import SAVED_CASE
from mrrag.schema import refusing_fields
from mrrag.types import METHODS, AttentionTrace, Image, Retrieved, Vote, Weights

PAIRS = ("image_report", "image_image", "question_report")
FORMAT = 3
# Answers are compared word for word; probabilities to what another processor may round.
TOLERANCE = 1e-3


@dataclass(frozen=True)
class Saved:
    """An exported case: how to repeat it, and what was answered."""

    question: str
    settings: Settings
    frame: int
    exported: Mapping[str, Any]


def case_to_json(case: Case, image: Image | None = None) -> dict[str, Any]:
    """Return one object: input, retrieved, answers, influence, trace, settings and versions.

    A number that does not exist (the cosine of an absent pair) is null, so the result is
    strict JSON.
    """
    return {
        "format": FORMAT,
        "question": case.question,
        "input": None if image is None else input_of(image),
        "retrieved": _retrieved(case.retrieved, case.percentiles),
        "warnings": dict(case.warnings),
        "votes": _votes(case.votes),
        "answers": {
            method: {
                "text": a.text,
                "p_yes": _number(a.p_yes),
                "p_no": _number(a.p_no),
                "tokens": a.tokens,
                "prompt": a.prompt,
                "outside": "outside" in case.warnings,  # it then means nothing
                "notes": [],  # kept for readers of format 3; an answer has no notes of its own
            }
            for method, a in case.answers.items()
        },
        "influence": None if case.influence is None else asdict(case.influence),
        "picture": _picture(case.picture),
        "trace": _trace(case.before, case.after, case.same_state),
        "settings": asdict(case.settings),
        "notes": list(case.notes),
        "seconds": case.seconds,
        "versions": case.versions,
    }


def evidence_to_json(
    evidence: Evidence, question: str, image: Image | None = None
) -> dict[str, Any]:
    """Return what was retrieved for a question, in the words of :func:`case_to_json`."""
    return {
        "format": FORMAT,
        "question": question,
        "input": None if image is None else input_of(image),
        "retrieved": _retrieved(evidence.retrieved, evidence.percentiles),
        "warnings": dict(evidence.warnings),
        "votes": _votes(evidence.votes),
        "weights": asdict(evidence.weights),
        "notes": list(evidence.notes),
        "seconds": {"evidence": evidence.seconds},
    }


def _retrieved(
    retrieved: Sequence[Retrieved], percentiles: Sequence[float]
) -> list[dict[str, Any]]:
    return [
        {
            "id": r.document.id,
            "rank": r.rank,
            "score": r.score,
            "usual_percentile": _number(percentile),
            "cosines": dict(zip(PAIRS, map(_number, r.cosines), strict=True)),
            "terms": dict(zip(PAIRS, map(_number, r.terms), strict=True)),
            "lambda": r.relevance,
            "gap": r.gap,
            "drawn_at_random": r.drawn,
            "report": r.document.report,
            "copies": r.copies,
            "view": r.document.view,
            "source": r.document.source,
            "licence": r.document.licence,
        }
        for r, percentile in zip(retrieved, percentiles or [math.nan] * len(retrieved), strict=True)
    ]


def _votes(votes: Sequence[Vote]) -> list[dict[str, Any]]:
    return [asdict(vote) | {"base_rate": _number(vote.base_rate)} for vote in votes]


def input_of(image: Image) -> dict[str, Any]:
    """Return what identifies a picture: its file, its frame, and the pixels as read."""
    rows, columns = image.display.shape[:2]
    return {
        "sha256": image.sha256,
        "frame": image.frame,
        "rows": rows,
        "columns": columns,
        "display_sha256": hashlib.sha256(image.display.tobytes()).hexdigest(),
    }


def read_case(exported: object) -> Saved:
    """Read what is needed to repeat an exported case.

    Raises
    ------
    SettingsError
        Where it is not an exported case, is damaged, or is of a later version.
    """
    version = exported.get("format") if isinstance(exported, dict) else None
    if not isinstance(exported, dict) or not isinstance(version, int):
        raise SettingsError(
            "This is not an exported case. Give what `ask --json` printed or the page saved."
        )
    if version > FORMAT:
        raise SettingsError(
            f"The case has format {version}, and this version reads up to {FORMAT}. Update MR-RAG."
        )
    with refusing_fields("the exported case", "Export it again.", SettingsError):
        clean = SAVED_CASE.check(exported)
    given = {"form": "ifa"} | clean["settings"]  # the first cases had the paper's alone
    if version == 2 and given["form"] == "balanced":
        raise SettingsError(
            "The case was steered in the balanced form as it was before format 3, by λ from "
            "0 to 1 and not by the scores' differences. Ask the question again."
        )
    given["weights"] = Weights(**given["weights"])
    for name in ("layers", "pinned", "excluded"):
        given[name] = tuple(given[name])
    return Saved(
        question=clean["question"],
        settings=Settings(**given),
        frame=(clean["input"] or {"frame": 0})["frame"],
        exported=clean,
    )


def differences(saved: Saved, again: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Return what differs between an exported case and the same case asked again.

    Returns
    -------
    (circumstances, answers)
        Sentences on the picture and the versions; sentences on reports and answers.
    """
    then = saved.exported
    around = []
    old, new = then.get("input") or {}, again["input"] or {}
    if old.get("sha256") != new.get("sha256"):
        around.append("The picture is another file (its SHA-256 differs).")
    elif old.get("display_sha256") != new.get("display_sha256"):
        around.append(
            "The picture was shown otherwise then: through another window, or by another version."
        )
    for name in sorted({*then["versions"], *again["versions"]}):
        was, now = then["versions"].get(name), again["versions"].get(name)
        if was != now:
            around.append(f"{name} was {was or 'absent'} and is {now or 'absent'}.")
    found = []
    ids = [[r["id"] for r in case["retrieved"]] for case in (then, again)]
    if ids[0] != ids[1]:
        found.append(f"The reports were {', '.join(ids[0])} and are {', '.join(ids[1])}.")
    for method in METHODS:
        first, second = then["answers"][method], again["answers"][method]
        if first["text"] != second["text"]:
            found.append(f'{method} said "{first["text"]}" and says "{second["text"]}".')
        for name in ("p_yes", "p_no"):
            was, now = first.get(name), second.get(name)
            if (was is None) != (now is None) or abs((was or 0) - (now or 0)) > TOLERANCE:
                found.append(f"{name} of {method} was {was} and is {now}.")
    return around, found


def _picture(found: PictureInfluence | None) -> dict[str, Any] | None:
    """P(yes) with the case's picture, and with others in its place."""
    if found is None:
        return None
    shown = ("as_asked", "without", "mean_colour", "least_similar")
    return {
        "p_yes": {
            method: dict(zip(shown, map(_number, values), strict=True))
            for method, values in found.p_yes.items()
        },
        "least_similar": {"id": found.other, "image_image": _number(found.cosine)},
        "sentence": found.sentence,
    }


def _trace(
    before: AttentionTrace | None, after: AttentionTrace | None, same_state: AttentionTrace | None
) -> dict[str, Any] | None:
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
        "same_state": None if same_state is None else _rounded(same_state.mass_LHS.mean(1)),
    }


def _rounded(values: np.ndarray[Any, Any]) -> list[Any]:
    return list(np.round(values.astype(float), 6).tolist())


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
