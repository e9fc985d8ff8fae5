"""How good a knowledge base is, as a panel of the page and as a page of its own.

It reads ``audit.json``, which ``mrrag audit`` stores in a knowledge base, and needs neither
its vectors nor torch.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

from mrrag.report.templating import embedded, number, render, style
from mrrag.study.audit_text import FIGURES, LEGEND, NAMES, about, choice_text, reading

__all__ = ["AUDIT", "audit_panel", "audit_to_html", "checked_audit", "read_audit"]

AUDIT = "audit.json"
MANIFEST = "manifest.json"
# Systems whose AUROC is shown for each finding.
SHOWN = ("alpha", "beta", "mcr", "pixels", "own_report")


def read_audit(directory: Path) -> dict[str, Any] | None:
    """Return the audit that a knowledge base holds, or None.

    None too where it is damaged, or of an earlier state of the knowledge base: a page without
    it is better than one that does not open.
    """
    try:
        result = json.loads((directory / AUDIT).read_text(encoding="utf-8"))
        manifest = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return checked_audit(result, manifest)


def checked_audit(result: Any, manifest: Any) -> dict[str, Any] | None:
    """Return an audit, or None where it is damaged or not of this manifest's knowledge base."""
    try:
        files = json.dumps(manifest["files"], sort_keys=True)
        if result["fingerprint"] != hashlib.sha256(files.encode()).hexdigest():
            return None
        _shown(result)  # everything that is shown is there
    except (
        ArithmeticError,
        AttributeError,
        LookupError,
        TypeError,
        ValueError,
        RecursionError,
    ):
        return None
    audit: dict[str, Any] = result
    return audit


def audit_panel(result: Mapping[str, Any] | None, directory: str = "") -> Markup:
    """Return the panel, closed at first; without an audit, the command that makes one.

    Parameters
    ----------
    directory
        The knowledge base's folder, as the command takes it; empty for the bundled one.
    """
    shown = None if result is None else _shown(result)
    return render("audit_panel.html", audit=shown, directory=directory)


def audit_to_html(result: Mapping[str, Any]) -> str:
    """Return an audit as one HTML file that needs nothing else, and embeds its figures."""
    page = render(
        "audit_page.html",
        title="MR-RAG, audit of a knowledge base",
        style=style("experiment"),
        plotly="",
        ours=False,
        audit=_shown(result),
        embedded=embedded(result),
        embedded_id="audit",
    )
    return str(page)


def _shown(result: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the templates show, as text."""
    rows = []
    for name, figures in result["systems"].items():
        difference = result["differences"].get(name)
        cells = [_cell(figures[figure], 1 if figure == "auroc" else 100) for figure in FIGURES]
        rows.append([NAMES[name], cells[0], _difference(difference), *cells[1:]])
    return {
        "reading": reading(result),
        "about": about(result),
        "legend": LEGEND,
        "choice": choice_text(result["chosen"]) if "chosen" in result else "",
        "header": ["", "AUROC", "AUROC minus α’s", *list(FIGURES.values())[1:]],
        "rows": rows,
        "finding_header": ["AUROC by finding", "studies with it", *(NAMES[n] for n in SHOWN)],
        "finding_rows": [
            [
                finding["name"],
                f"{finding['queries']} of {result['queries']}",
                *(_auroc_of(result, name, finding["name"]) for name in SHOWN),
            ]
            for finding in result["findings"]
        ],
    }


def _auroc_of(result: Mapping[str, Any], system: str, finding: str) -> str:
    return number(float(result["by_finding"][system][finding]["auroc"]["value"]), digits=2)


def _cell(figure: Mapping[str, Any], scale: int) -> str:
    digits = 2 if scale == 1 else 0
    value, low, high = (scale * float(x) for x in (figure["value"], *figure["interval"]))
    if math.isnan(value):
        return "–"
    unit = "" if scale == 1 else " %"
    return (
        f"{number(value, digits=digits)}{unit} "
        f"({number(low, digits=digits)} to {number(high, digits=digits)})"
    )


def _difference(difference: Mapping[str, Any] | None) -> str:
    if difference is None:
        return ""
    value, low, high = (
        number(float(x), signed=True, digits=2)
        for x in (difference["value"], *difference["interval"])
    )
    return f"{value} ({low} to {high}), p {number(float(difference['p']))}"
