"""An experiment as one HTML file that needs nothing else: tables, plots, the paper beside.

Of the paper only what is known is shown: its figures where they are given below, and
else what it claims in words, or that nothing is known.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from mrrag.report.templating import embedded, figure_html, plotly_script, render, style
from mrrag.study.text import (
    GROUPS,
    TITLES,
    leakage_text,
    name_of,
    noise_name,
    outside_text,
    steering_text,
)

# Accuracy and F1, %, with K = 15, of the paper's main table: LLaVA-Med-1.5 alone, MR-RAG.
PAPER_MAIN = {
    "IU-Xray": ((85.64, 82.62), (88.13, 85.19)),
    "MIMIC-CXR": ((71.92, 71.16), (79.35, 78.61)),
    "FairVLMed": ((77.35, 60.34), (84.47, 66.78)),
}
# Accuracy of plain RAG, %, by the share of its reports that are irrelevant.
PAPER_NOISE = ((0.0, 77.9), (0.5, 68.1))
CLAIMS = {
    "methods": "The paper: RAG with IFA is above RAG, and RAG above no RAG.",
    "noise": "The paper: plain RAG falls from 77.9 to 68.1 % when half of the reports are "
    "irrelevant. Its other figures for this experiment are not known here.",
    "similarities": "The paper: MCR is above each single similarity. Its figures for this "
    "ablation are not known here.",
    "layers": "The paper steers the layers in which blocking Reports→Question hurts most. Its "
    "figures for this ablation are not known here.",
    "masking": "The paper steers softly and masks nothing. Its figures for a hard mask, if it "
    "has any, are not known here.",
    "strength": "The paper has no strength: it is 1 there. There is no figure to lay beside.",
    "form": "The paper's form is ifa, at a strength of 1. The balanced form is not the paper's; "
    "it was found here.",
    "order": "The paper says nothing of the order, as far as is known here.",
    "cut": "The paper reads all reports. A cut-off is a rival to steering: MMed-RAG has one.",
    "retrieval": "The paper gives no figures of this kind, as far as is known here.",
}
OURS, STEERED, PAPER = "#4477aa", "#d55e00", "#7a8b99"


def experiment_to_html(result: Mapping[str, Any]) -> str:
    """Return the result of :func:`mrrag.study.tables.tables` as a page, which embeds it."""
    sections: list[Section | None] = []
    for table in result["by_k"]:
        sections += [_methods(table) if table["methods"] else None, _noise(table)]
    sections += [_wrong_picture(result["wrong_picture"])]
    sections += _arena(
        result["arena"], result.get("arena_seconds", {}), result.get("arena_settings", {})
    )
    sections += [_ablation(result, group) for group in GROUPS]
    sections += [_retrieval(result["retrieval"]), _facts(result)]
    page = render(
        "experiment.html",
        title="MR-RAG, experiments",
        style=style("experiment"),
        plotly=plotly_script(),
        ours=False,
        summary=(
            f"{result['n']} yes/no questions of {result['patients']} patients, split "
            f"{result['split']}, from {result.get('data', '')}. "
            f"{leakage_text(result['leakage'])}. {steering_text(result)}. {outside_text(result)}"
        ),
        skipped=list(result["skipped"].items()),
        sections=[section for section in sections if section],
        embedded=embedded(result),
        embedded_id="result",
    )
    return str(page)


Part = dict[str, Any]
Section = dict[str, Any]


def _section(title: str, *parts: Part) -> Section:
    return {"title": title, "parts": parts}


def _table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> Part:
    return {"kind": "table", "header": header, "rows": rows}


def _claim(name: str) -> Part:
    return {"kind": "claim", "text": CLAIMS[name]}


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"


def _interval(row: Mapping[str, Any], name: str) -> str:
    low, high = row[f"{name}_interval"]
    return f"{100 * row[name]:.1f} ({100 * low:.1f}–{100 * high:.1f})"


def _p(row: Mapping[str, Any]) -> str:
    return f"{row['test']['p']:.2g}" if "test" in row else ""


SCORES = {
    "balanced_accuracy": "Balanced",
    "macro_precision": "Macro P",
    "macro_recall": "Macro R",
    "positive_precision": "P of yes",
    "positive_recall": "R of yes",
    "positive_f1": "F1 of yes",
}
WITHIN = "AUROC within a finding"


def _methods(table: Mapping[str, Any]) -> Section:
    rows = table["methods"]
    header = [
        "Method",
        "Accuracy, %",
        "Macro F1, %",
        *SCORES.values(),
        WITHIN,
        "Unparsed",
        "Lenient",
    ]
    body = [
        [
            name_of(row["method"]),
            _interval(row, "accuracy"),
            _interval(row, "macro_f1"),
            *(_percent(row[name]) for name in SCORES),
            _within(row["within_finding"]),
            row["unparsed"],
            f"{_percent(row['lenient']['accuracy'])}, {row['lenient']['unparsed']} unparsed",
        ]
        for row in rows
    ]
    tests = [
        [
            f"{name_of(t['first'])} → {name_of(t['second'])}",
            t["only_first_right"],
            t["only_second_right"],
            f"{t['p']:.2g}",
        ]
        for t in table["tests"]
    ]
    parts = [
        _table(header, body),
        _claim("methods"),
        {
            "kind": "quiet",
            "text": "The paper's main table (K = 15; other data, and LLaVA-Med 1.5), and the "
            "same from here: accuracy / F1, %.",
        },
        _table(("Data", "Without RAG", "MR-RAG", "Gain in accuracy"), _beside_the_paper(rows)),
        _bars([name_of(r["method"]) for r in rows], rows),
    ]
    if tests:
        compared = ("Compared", "Only the first right", "Only the second right", "p")
        parts.append(_table(compared, tests))
    return _section(f"Methods, K = {table['k']}", *parts)


def _arena(
    rows: Sequence[Mapping[str, Any]],
    seconds: Mapping[str, float],
    settings: Mapping[str, str],
) -> list[Section]:
    """Return a section for each number and kind of irrelevant reports, plain RAG first."""
    header = [
        *(
            "Method",
            "Accuracy, %",
            "Neither yes nor no",
            "Lost",
            "Won",
            "p",
            "p, corrected",
            "Log loss",
            "Brier",
        ),
        *("Reports", "Prompts", "Seconds, × RAG"),
        *(["Chosen setting"] if settings else []),
    ]
    blocks: dict[str, list[list[object]]] = {}
    for row in rows:
        kind = f", {row['kind']}" if row["irrelevant"] else ""
        title = f"Arena, K = {row['k']}, {row['irrelevant']} irrelevant{kind}"
        test = row.get("test")
        tested: list[object] = ["", "", "", ""]
        if test:
            tested = [
                test["only_first_right"],
                test["only_second_right"],
                f"{test['p']:.2g}",
                f"{test['p_holm']:.2g}",
            ]
        took = seconds.get(row["method"])
        blocks.setdefault(title, []).append(
            [
                TITLES[row["method"]],
                _interval(row, "accuracy"),
                row["unparsed"],
                *tested,
                f"{row['log_loss']:.3f}",
                f"{row['brier']:.3f}",
                f"{row['reports']:.1f}",
                row["prompts"],
                "–" if took is None else f"{took / seconds['rag']:.2f}",
                *([settings.get(row["method"], "")] if settings else []),
            ]
        )
    return [_section(title, _table(header, body)) for title, body in blocks.items()]


def _within(figures: Mapping[str, Any]) -> str:
    if figures["auroc"] is None:
        return "–"
    low, high = figures["interval"]
    return f"{figures['auroc']:.3f} ({low:.3f}–{high:.3f})"


def _beside_the_paper(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Return the paper's main table, with a line of this experiment's where it has both."""
    paper = [
        [
            data,
            *(f"{accuracy:.2f} / {f1:.2f}" for accuracy, f1 in pair),
            f"+{pair[1][0] - pair[0][0]:.2f}",
        ]
        for data, pair in PAPER_MAIN.items()
    ]
    known = {row["method"]: row for row in rows}
    if {"rag_off", "mr_rag"} <= known.keys():
        off, on = known["rag_off"], known["mr_rag"]
        gain = 100 * (on["accuracy"] - off["accuracy"])
        ours = [_percent(r["accuracy"]) + " / " + _percent(r["macro_f1"]) for r in (off, on)]
        paper.append(["here", *ours, f"{gain:+.1f}"])
    return paper


def _noise(table: Mapping[str, Any]) -> Section | None:
    rows = table["noise"]
    if not rows:
        return None
    body = [
        [
            noise_name(row),
            *(_interval(row[n], "accuracy") if n in row else "–" for n in ("rag", "mr_rag")),
            _p(row),
        ]
        for row in rows
    ]
    return _section(
        f"Irrelevant reports, K = {table['k']}",
        _table(("Irrelevant", "RAG, %", "MR-RAG, %", "p"), body),
        _claim("noise"),
        *(
            _figure(_noise_curve([row for row in rows if row["kind"] == kind]))
            for kind in dict.fromkeys(row["kind"] for row in rows)
        ),
    )


def _noise_curve(rows: Sequence[Mapping[str, Any]]) -> go.Figure:
    """Plot accuracy over the share of irrelevant reports, with the paper's RAG beside."""
    figure = go.Figure()
    for name, colour, symbol in (("rag", OURS, "circle"), ("mr_rag", STEERED, "square")):
        shown = [row for row in rows if name in row]
        if shown:
            figure.add_scatter(
                x=[100 * row["irrelevant"] / row["k"] for row in shown],
                y=[100 * row[name]["accuracy"] for row in shown],
                name=name_of(name),
                mode="lines+markers",
                line={"color": colour},
                marker={"symbol": symbol, "size": 8},
                error_y=_error_bars([row[name] for row in shown]),
            )
    figure.add_scatter(
        x=[100 * share for share, _ in PAPER_NOISE],
        y=[accuracy for _, accuracy in PAPER_NOISE],
        name="the paper's RAG",
        mode="lines+markers",
        line={"color": PAPER, "dash": "dash"},
        marker={"symbol": "x", "size": 9},
    )
    figure.update_xaxes(title="irrelevant reports, %")
    figure.update_yaxes(title="accuracy, %")
    return figure


def _error_bars(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    """Return the intervals of accuracy around it, in percentage points."""
    return {
        "array": [100 * (r["accuracy_interval"][1] - r["accuracy"]) for r in rows],
        "arrayminus": [100 * (r["accuracy"] - r["accuracy_interval"][0]) for r in rows],
    }


def _wrong_picture(rows: Sequence[Mapping[str, Any]]) -> Section | None:
    if not rows:
        return None
    header = [
        *("Method", "K", "Accuracy, %", "With a wrong picture, %", "Unchanged, %"),
        *("Harmed by reports, %", "Mended by reports, %", "p"),
    ]
    body = [
        [
            name_of(r["method"]),
            r["k"],
            *(_percent(r[n]) for n in ("accuracy", "accuracy_wrong_picture", "unchanged")),
            *(_percent(r.get(n)) for n in ("over_reliance", "rescued")),
            _p(r),
        ]
        for r in rows
    ]
    text = (
        "The same questions and reports with another patient's picture. Unchanged: the answer "
        "stays the same. Harmed: right without reports and wrong with them; mended: the reverse. "
        "p compares the two pictures (McNemar, exact)."
    )
    return _section(
        "The picture and the reports", {"kind": "text", "text": text}, _table(header, body)
    )


def _ablation(result: Mapping[str, Any], group: str) -> Section | None:
    rows = [row for row in result["ablations"] if row["group"] == group]
    if not rows:
        return None
    header = ("", "Irrelevant", "Accuracy, %", "Macro F1, %", "Unparsed", "Against", "p")
    body = [
        [
            name_of(row["method"]),
            f"{row['irrelevant']} of {row['k']}",
            _interval(row, "accuracy"),
            _interval(row, "macro_f1"),
            row["unparsed"],
            name_of(row["against"]) if "test" in row else "",
            _p(row),
        ]
        for row in rows
    ]
    names = [f"{name_of(r['method'])} ({r['irrelevant']} irrelevant)" for r in rows]
    return _section(GROUPS[group], _table(header, body), _claim(group), _bars(names, rows))


def _retrieval(rows: Sequence[Mapping[str, Any]]) -> Section | None:
    if not rows:
        return None
    header = [
        *("Retrieved by", "K", "Irrelevant", "Agree, %", "Contradict, %", "Silent, %"),
        *("Agreement, %", "Own report among K, %", "of"),
    ]
    body = [
        [
            name_of(r["method"]),
            r["k"],
            r["irrelevant"],
            *(_percent(r[n]) for n in ("agree", "contradict", "silent", "agreement")),
            _percent(r["own_report_recall"]),
            r["own_reports"],
        ]
        for r in rows
    ]
    text = (
        "What the reports say of the finding asked about, compared with the right answer, for the "
        f"{rows[0]['questions_with_a_finding']} questions that name one finding; findings, and "
        "present and absent in each, count alike. Agreement is "
        "the share among reports that speak of it. The own report, which is never retrieved, is "
        "ranked by α and γ alone."
    )
    return _section(
        "Retrieval", {"kind": "text", "text": text}, _table(header, body), _claim("retrieval")
    )


def _facts(result: Mapping[str, Any]) -> Section:
    names = ("weights", "layers", "strength", "rows", "form", "plan", "data_fingerprint")
    facts = {name: result[name] for name in (*names, "versions") if name in result}
    code = {"kind": "code", "text": json.dumps(facts, indent=1)}
    return _section("Settings and versions", code)


def _bars(names: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> Part:
    """Plot accuracy with its interval, a line a method."""
    figure = go.Figure(
        go.Scatter(
            x=[100 * row["accuracy"] for row in rows],
            y=list(names),
            mode="markers",
            marker={"color": OURS, "size": 9},
            error_x=_error_bars(rows),
        )
    )
    figure.update_xaxes(title="accuracy, %")
    figure.update_yaxes(autorange="reversed")
    return _figure(figure, 120 + 26 * len(rows))


def _figure(figure: go.Figure, height: int = 340) -> Part:
    figure.update_layout(
        height=height,
        margin={"l": 8, "r": 8, "t": 12, "b": 44},
        template="plotly_white",
        font={"family": "system-ui, sans-serif"},
    )
    figure.update_yaxes(automargin=True)
    return {"kind": "figure", "figure": figure_html(figure)}
