"""An experiment as one HTML file that needs nothing else: tables, plots, the paper beside.

Of the paper only what is known is shown: its figures where they are given below, and
else what it claims in words, or that nothing is known.
"""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from mrrag.study.tables import GROUPS, leakage_text, name_of, steering_text

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
    "retrieval": "The paper gives no figures of this kind, as far as is known here.",
}
STYLE = """
:root { --ink: #1d2733; --quiet: #5c6b79; --line: #d5dce3; --panel: #fff; --sunk: #f3f5f7; }
body { margin: 0; background: var(--sunk); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 16px; display: grid; gap: 14px; }
section { background: var(--panel); border: 1px solid var(--line); border-radius: 8px;
  padding: 14px 18px; min-width: 0; overflow-x: auto; }
h1 { font-size: 22px; margin: 0 0 4px; } h2 { font-size: 17px; margin: 0 0 8px; }
p { margin: 4px 0; } .quiet { color: var(--quiet); }
.paper { border-left: 3px solid #d55e00; padding-left: 10px; }
table { border-collapse: collapse; font-size: 13.5px; margin: 8px 0; }
th, td { padding: 3px 10px; border-bottom: 1px solid var(--line); text-align: right; }
th:first-child, td:first-child { text-align: left; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; font-size: 12px; }
"""
OURS, STEERED, PAPER = "#4477aa", "#d55e00", "#7a8b99"


def report_html(result: Mapping[str, Any]) -> str:
    """The result of :func:`mrrag.study.tables.tables` as a page, with the result itself in it."""
    embedded = json.dumps(result).replace("<", "\\u003c").replace("&", "\\u0026")
    sections = [_head(result)]
    for table in result["by_k"]:
        sections += [_methods(table), _noise(table)]
    sections += [_ablation(result, group) for group in GROUPS]
    sections += [_retrieval(result["retrieval"]), _facts(result)]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>MR-RAG, experiments'
        '</title><meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{STYLE}</style><script>{get_plotlyjs()}</script></head>"
        f"<body><main>{''.join(sections)}</main>"
        f'<script type="application/json" id="result">{embedded}</script></body></html>'
    )


def _section(title: str, *parts: str) -> str:
    return f"<section><h2>{html.escape(title)}</h2>{''.join(parts)}</section>"


def _table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    head = "".join(f"<th>{html.escape(name)}</th>" for name in header)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(str(cell))}</td>" for cell in row) + "</tr>"
        for row in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _claim(name: str) -> str:
    return f'<p class="paper">{html.escape(CLAIMS[name])}</p>'


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"


def _interval(row: Mapping[str, Any], name: str) -> str:
    low, high = row[f"{name}_interval"]
    return f"{100 * row[name]:.1f} ({100 * low:.1f}–{100 * high:.1f})"


def _p(row: Mapping[str, Any]) -> str:
    return f"{row['test']['p']:.2g}" if "test" in row else ""


def _head(result: Mapping[str, Any]) -> str:
    skipped = [(reason, n) for reason, n in result["skipped"].items()]
    return (
        "<section><h1>MR-RAG, experiments</h1>"
        "<p><b>Research demonstration. Not a medical device.</b></p>"
        f"<p>{result['n']} yes/no questions of {result['patients']} patients, split "
        f"{html.escape(result['split'])}, from {html.escape(str(result.get('data', '')))}. "
        f"{html.escape(leakage_text(result['leakage']))}. "
        f"{html.escape(steering_text(result))}.</p>"
        '<p class="quiet">Intervals are 95 % ones, by a bootstrap over patients; p is that of '
        "McNemar's exact test on the same questions, without correction for their number.</p>"
        + (_table(("Not asked", "Questions"), skipped) if skipped else "")
        + "</section>"
    )


SCORES = {
    "balanced_accuracy": "Balanced",
    "macro_precision": "Macro P",
    "macro_recall": "Macro R",
    "positive_precision": "P of yes",
    "positive_recall": "R of yes",
    "positive_f1": "F1 of yes",
}


def _methods(table: Mapping[str, Any]) -> str:
    rows = table["methods"]
    header = ["Method", "Accuracy, %", "Macro F1, %", *SCORES.values(), "Unparsed", "Lenient"]
    body = [
        [
            name_of(row["method"]),
            _interval(row, "accuracy"),
            _interval(row, "macro_f1"),
            *(_percent(row[name]) for name in SCORES),
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
    return _section(
        f"Methods, K = {table['k']}",
        _table(header, body),
        _claim("methods"),
        '<p class="quiet">The paper\'s main table (K = 15; other data, and LLaVA-Med 1.5), and '
        "the same from here: accuracy / F1, %.</p>",
        _table(("Data", "Without RAG", "MR-RAG", "Gain in accuracy"), paper),
        _bars([name_of(r["method"]) for r in rows], rows),
        _table(("Compared", "Only the first right", "Only the second right", "p"), tests)
        if tests
        else "",
    )


def _noise(table: Mapping[str, Any]) -> str:
    rows = table["noise"]
    if not rows:
        return ""
    figure = go.Figure()
    for name, colour, symbol in (("rag", OURS, "circle"), ("mr_rag", STEERED, "square")):
        shown = [row for row in rows if name in row]
        if shown:
            y = [100 * row[name]["accuracy"] for row in shown]
            low, high = zip(*(row[name]["accuracy_interval"] for row in shown), strict=True)
            figure.add_scatter(
                x=[100 * row["irrelevant"] / row["k"] for row in shown],
                y=y,
                name=name_of(name),
                mode="lines+markers",
                line={"color": colour},
                marker={"symbol": symbol, "size": 8},
                error_y={
                    "array": [100 * h - v for h, v in zip(high, y, strict=True)],
                    "arrayminus": [v - 100 * n for n, v in zip(low, y, strict=True)],
                },
            )
    figure.add_scatter(
        x=[100 * share for share, _ in PAPER_NOISE], y=[accuracy for _, accuracy in PAPER_NOISE],
        name="the paper's RAG", mode="lines+markers",
        line={"color": PAPER, "dash": "dash"}, marker={"symbol": "x", "size": 9},
    )  # fmt: skip
    figure.update_xaxes(title="irrelevant reports, %")
    figure.update_yaxes(title="accuracy, %")
    body = [
        [
            f"{row['irrelevant']} of {row['k']}",
            *(_interval(row[n], "accuracy") if n in row else "–" for n in ("rag", "mr_rag")),
            _p(row),
        ]
        for row in rows
    ]
    return _section(
        f"Irrelevant reports, K = {table['k']}",
        _table(("Irrelevant", "RAG, %", "MR-RAG, %", "p"), body),
        _claim("noise"),
        _figure(figure),
    )


def _ablation(result: Mapping[str, Any], group: str) -> str:
    rows = [row for row in result["ablations"] if row["group"] == group]
    if not rows:
        return ""
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


def _retrieval(rows: Sequence[Mapping[str, Any]]) -> str:
    if not rows:
        return ""
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
    return _section(
        "What is retrieved",
        f"<p>What the reports say of the finding asked about, beside the gold answer; of "
        f"{rows[0]['questions_with_a_finding']} questions that name one finding. Agreement is "
        "the share of those that speak. The own report, which is never retrieved, is looked "
        "for by α and γ alone.</p>",
        _table(header, body),
        _claim("retrieval"),
    )


def _facts(result: Mapping[str, Any]) -> str:
    names = (
        "weights",
        "layers",
        "strength",
        "rows",
        "form",
        "plan",
        "data_fingerprint",
        "versions",
    )
    facts = {name: result[name] for name in names if name in result}
    return _section("How it came about", f"<pre>{html.escape(json.dumps(facts, indent=1))}</pre>")


def _bars(names: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> str:
    """Accuracy with its interval, a line a method."""
    x = [100 * row["accuracy"] for row in rows]
    figure = go.Figure(
        go.Scatter(
            x=x,
            y=list(names),
            mode="markers",
            marker={"color": OURS, "size": 9},
            error_x={
                "array": [
                    100 * r["accuracy_interval"][1] - v for r, v in zip(rows, x, strict=True)
                ],
                "arrayminus": [
                    v - 100 * r["accuracy_interval"][0] for r, v in zip(rows, x, strict=True)
                ],
            },
        )
    )
    figure.update_xaxes(title="accuracy, %")
    figure.update_yaxes(autorange="reversed")
    return _figure(figure, 120 + 26 * len(rows))


def _figure(figure: go.Figure, height: int = 340) -> str:
    figure.update_layout(
        height=height,
        margin={"l": 8, "r": 8, "t": 12, "b": 44},
        template="plotly_white",
        font={"family": "system-ui, sans-serif"},
    )
    figure.update_yaxes(automargin=True)
    drawn: str = figure.to_html(
        full_html=False, include_plotlyjs=False, config={"displayModeBar": False}
    )
    return drawn
