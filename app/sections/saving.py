"""The section that keeps a case: a file of it, and what the browser's tab remembers.

Both are written by the browser; nothing touches this machine's disk.
"""

from __future__ import annotations

import base64
import gzip
import json
import random
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from app.sections.visit import NO_CASE, CaseState, ReaderState, Update, refuse
from mrrag.report import cards
from mrrag.types import METHODS

if TYPE_CHECKING:
    from mrrag.pipeline import Pipeline


def remember(shown: CaseState) -> Update:
    """What the browser's tab keeps of a case; nothing before the reader may see it all."""
    if shown.reading.waits_for:
        return {}
    result = shown.result
    entry = {
        "question": result.question,
        "answers": {method: result.answers[method].text for method in METHODS},
        "reports": [r.document.id for r in result.retrieved],
        "reading": reading_values(shown.reading),
    }
    return {"history": json.dumps(entry | {"nonce": random.random()})}


def reading_values(reading: ReaderState) -> dict[str, Any]:
    """How the answers were read, for an export."""
    return {
        "reader_first": reading.reader_first,
        "impression": reading.impression,
        "blind": reading.blind,
        "order": [METHODS[i] for i in reading.order] if reading.blind else None,
        "vote": reading.vote or None,
    }


def save(engine: Future[Pipeline], shown: object, kind: str, pixels: object) -> Update:
    """A finished case as a file that the browser writes; nothing touches this machine's disk."""
    if not isinstance(shown, CaseState):
        return refuse(NO_CASE)
    if shown.reading.waits_for:
        return refuse(f"Your {shown.reading.waits_for} comes first; then the case can be saved.")
    try:
        from mrrag.report.case_page import case_to_html
        from mrrag.report.export import case_to_json

        exported = case_to_json(shown.result, shown.image)
        exported["reading"] = reading_values(shown.reading)
        if kind == "json":
            content = json.dumps(exported, ensure_ascii=False, indent=1)
        else:
            base = engine.result(timeout=120).knowledge_base
            pictures = (shown.image, base) if pixels is True else None
            content = case_to_html(shown.result, exported, pictures)
        packed = base64.b64encode(gzip.compress(content.encode("utf-8"), 3)).decode("ascii")
        file = {
            "name": f"mr-rag-case.{kind}",
            "type": "application/json" if kind == "json" else "text/html",
            "gzip": packed,
            "nonce": random.random(),
        }
        return {
            "file_out": json.dumps(file),
            "status": cards.status(f"Saved as {file['name']} by your browser.", kind="done"),
        }
    except Exception as error:
        return refuse(error)
