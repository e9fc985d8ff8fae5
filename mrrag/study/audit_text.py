"""What an audit found, in words and as a plain table.

It reads the result of :func:`mrrag.study.audit.audit` and computes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["NAMES", "about", "audit_text", "choice_text", "reading"]

NAMES = {
    "random": "random reports",
    "pixels": "plain pixels",
    "alpha": "α image–report",
    "beta": "β image–image",
    "gamma": "γ question–report",
    "alpha_beta": "α + β",
    "alpha_gamma": "α + γ",
    "beta_gamma": "β + γ",
    "mcr": "MCR, weights in use",
    "own_report": "by own report (ceiling)",
}
FIGURES = {
    "auroc": "AUROC",
    "balanced_agreement_at_5": "balanced at 5",
    "precision_at_1": "precision at 1",
    "precision_at_5": "precision at 5",
    "jaccard_at_5": "Jaccard at 5",
}
# What the table's figures mean, in the words that stand under it.
LEGEND = (
    "AUROC: the share of the retrieved reports that have a finding, as a score for whether the "
    "study has it; 0.5 is chance. Balanced at 5: agreement of the five nearest, over studies with "
    "and without the finding alike; 50 % is chance. Precision is over studies that have the "
    "finding, and is high for a similarity that finds the same reports for everybody. Means over "
    "the findings; 95 % intervals by patient. The ceiling is the TF-IDF cosine of the study's "
    "own report. Pairs count half and half, on terms divided by their spread. A study of the base "
    "itself cannot find itself, which puts what ignores the picture a little below 0.5."
)


def reading(result: Mapping[str, Any]) -> str:
    """Return what the figures say: both image similarities against chance and pixels, and MCR."""
    alpha, beta, pixels, ceiling = (
        result["systems"][name]["auroc"] for name in ("alpha", "beta", "pixels", "own_report")
    )
    sentences = [
        f"In this base, comparing the image with reports (α) finds studies with the same findings "
        f"{_verdict(alpha)}: AUROC {_auroc(alpha)}.",
        f"Comparing the image with images (β) does so {_verdict(beta)}: {_auroc(beta)}.",
        f"Plain pixels reach {pixels['value']:.2f}, and the studies' own reports "
        f"{ceiling['value']:.2f}.",
    ]
    if all(result["beyond_pixels"][name]["interval"][0] <= 0 for name in ("alpha", "beta")):
        sentences.append(
            "Neither similarity is above plain pixels: the encoder adds nothing here. Train "
            "one on reports and images of this kind (`mrrag train-retriever`)."
        )
    return " ".join([*sentences, f"MCR is {_against(result['differences']['mcr'])}."])


def _verdict(auroc: Mapping[str, Any]) -> str:
    low, high = auroc["interval"]
    if low > 0.5:
        return "better than chance"
    return "worse than chance" if high < 0.5 else "no better than chance"


def _against(difference: Mapping[str, Any]) -> str:
    low, high = difference["interval"]
    value = difference["value"]
    size = f"{value:+.3f}, {low:+.3f} to {high:+.3f}, p = {difference['p']:.2g}".replace("-", "−")
    if low <= 0 <= high:
        return f"not different from α alone ({size})"
    return f"{'above' if value > 0 else 'below'} α alone ({size})"


def _auroc(figure: Mapping[str, Any]) -> str:
    low, high = figure["interval"]
    return f"{figure['value']:.2f} ({low:.2f} to {high:.2f})"


def about(result: Mapping[str, Any]) -> str:
    """Return what was compared, in a sentence."""
    documents = f"{result['documents']:,} documents"
    if result["compared_documents"] < result["documents"]:
        documents = f"a sample of {result['compared_documents']:,} of {documents}"
    weights = ", ".join(
        f"{letter} {result['weights'][name]:.2f}".replace("-", "−")
        for letter, name in zip("αβγ", ("alpha", "beta", "gamma"), strict=True)
    )
    source = {"data set": "the data set's own labels"}.get(result["labels"], result["labels"])
    return (
        f"{result['queries']:,} studies of {result['patients']:,} patients ({result['from']}) as "
        f"queries over {documents}, K = {result['k']}; findings from {source}; "
        f"weights in use: {weights}."
    )


def audit_text(result: Mapping[str, Any]) -> str:
    """Return an audit as plain text: what was compared, the tables, and how to read them."""
    wide = max(len(name) for name in NAMES.values()) + 2
    lines = [about(result), "", " " * wide + "".join(f"{n:>24s}" for n in FIGURES.values())]
    for name, figures in result["systems"].items():
        cells = (_cell(figures[figure], figure == "auroc") for figure in FIGURES)
        lines.append(f"{NAMES[name]:{wide}s}" + "".join(f"{cell:>24s}" for cell in cells))
    lines += ["", f"{'AUROC minus that of α alone':{wide}s}"]
    for name, difference in result["differences"].items():
        low, high = difference["interval"]
        lines.append(
            f"{NAMES[name]:{wide}s}{difference['value']:+8.3f} ({low:+.3f} to {high:+.3f})"
            f"   p = {difference['p']:.2g}"
        )
    shown = ("alpha", "beta", "mcr", "pixels", "own_report")
    lines += ["", f"{'AUROC by finding':{wide}s}{'studies with it':>18s}"]
    lines[-1] += "".join(
        f"{NAMES[name].partition(',')[0].partition(' (')[0]:>18s}" for name in shown
    )
    for finding in result["findings"]:
        values = (result["by_finding"][name][finding["name"]]["auroc"]["value"] for name in shown)
        lines.append(
            f"{finding['name'][: wide - 1]:{wide}s}{finding['queries']:18d}"
            + "".join(f"{value:18.2f}" for value in values)
        )
    return "\n".join([*lines, "", reading(result), "", LEGEND])


def _cell(figure: Mapping[str, Any], fraction: bool) -> str:
    (low, high), value = figure["interval"], figure["value"]
    if fraction:
        return f"{value:.3f} ({low:.3f} to {high:.3f})"
    return f"{100 * value:.1f} ({100 * low:.1f} to {100 * high:.1f})"


def choice_text(chosen: Mapping[str, Any]) -> str:
    """Return what :func:`mrrag.study.audit.choose_weights` found, in sentences."""
    letters = zip("αβγ", ("alpha", "beta", "gamma"), strict=True)
    weights = ", ".join(f"{letter} {chosen['weights'][name]:.2f}" for letter, name in letters)
    first, other = chosen["queries"]
    difference = chosen["difference"]
    low, high = difference["interval"]
    size = f"{difference['value']:+.3f} ({low:+.3f} to {high:+.3f})".replace("-", "−")
    compared = (
        f"Chosen on {first} studies: {weights}. On the {other} studies of the other patients their "
        f"AUROC is {_auroc(chosen['chosen_auroc'])}, and that of the weights in use "
        f"{_auroc(chosen['in_use_auroc'])}: {size}."
    )
    if chosen["better"]:
        return compared
    return (
        f"{compared} The interval does not lie above zero, so they are not settled and nothing "
        "was written."
    )
