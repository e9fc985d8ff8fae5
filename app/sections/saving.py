"""The saving section: a case as a file, and the list of cases of the browser's tab.

Both are written by the browser; nothing is written to the server's disk.
"""

from __future__ import annotations

import base64
import gzip
import json
import random
from typing import Any, Literal

from app import frame
from app.backend import Backend
from app.sections.visit import NO_CASE, CaseState, ReaderState, Update, of_base, refuse
from mrrag.types import METHODS


def remember(state: CaseState) -> Update:
    """Return the entry of a case in the tab's list; none before the reader may see it all."""
    if state.reading.waits_for:
        return {}
    result = state.result
    entry = {
        "question": result.question,
        "answers": {method: result.answers[method].text for method in METHODS},
        "reports": [r.document.id for r in result.retrieved],
        "reading": reading_values(state.reading),
    }
    return {"history": json.dumps(entry | {"nonce": random.random()})}


def reading_values(reading: ReaderState) -> dict[str, Any]:
    """Return how the answers were read, for an export."""
    return {
        "reader_first": reading.reader_first,
        "impression": reading.impression,
        "blind": reading.blind,
        "order": [METHODS[i] for i in reading.order] if reading.blind else None,
        "vote": reading.vote or None,
    }


def save(backend: Backend, state: object, kind: Literal["html", "json"], pixels: object) -> Update:
    """Return an answered case as a file for the browser to write.

    ``pixels`` is whether an HTML file holds the pictures.
    """
    case = of_base(backend.about, state, CaseState)
    if case is None:
        return refuse(NO_CASE)
    if case.reading.waits_for:
        return refuse(f"Your {case.reading.waits_for} comes first; then the case can be saved.")
    try:
        from mrrag.report.case_page import case_to_html
        from mrrag.report.export import case_to_json

        exported = case_to_json(case.result, case.image)
        exported["reading"] = reading_values(case.reading)
        if kind == "json":
            content = json.dumps(exported, ensure_ascii=False, indent=1)
        else:
            knowledge_base = backend.pipeline().knowledge_base
            pictures = (case.image, knowledge_base) if pixels is True else None
            content = case_to_html(case.result, exported, pictures)
        packed = base64.b64encode(gzip.compress(content.encode("utf-8"), 3)).decode("ascii")
        file = {
            "name": f"mr-rag-case.{kind}",
            "type": "application/json" if kind == "json" else "text/html",
            "gzip": packed,
            "nonce": random.random(),  # so that the browser sees the same file saved again
        }
        return {
            "download": json.dumps(file),
            "status": frame.status(f"Saved as {file['name']} by your browser.", kind="done"),
        }
    except Exception as error:
        return refuse(error)
