"""The tables of an experiment in print: names, titles, and plain text for a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mrrag.study.arena import ARENA

NAMES = {
    "rag_off": "RAG off",
    "random_reports": "RAG, reports at random",
    "image_report": "RAG, image-report only",
    "image_image": "RAG, image-image only",
    "question_report": "RAG, question-report only",
    "rag": "RAG (MCR)",
    "mr_rag": "MR-RAG (MCR + IFA)",
}
TITLES = {name: method.title for name, method in ARENA.items()}
GROUPS = {
    "similarities": "Retrieval by fewer similarities",
    "layers": "The layers in which IFA acts",
    "masking": "Hard masking against soft",
    "strength": "IFA's strength, in the critical layers",
    "form": "By what relevance steers: as in the paper (ifa), or as a prior (balanced)",
    "order": "The order in which the reports are read",
    "cut": "Fewer reports, by a cut-off on their scores",
}

Row = Mapping[str, Any]


def name_of(method: str) -> str:
    """Return a method's name in a table."""
    return NAMES.get(method, method)


def noise_name(row: Row) -> str:
    """Return how many reports are irrelevant, and of what kind."""
    count = f"{row['irrelevant']} of {row['k']} ({row['share']:.0%})"
    return count if row["kind"] == "random" else f"{count}, {row['kind']}"


def tables_text(result: Row) -> str:
    """Return all tables as text."""
    lines = [
        f"{result['n']} yes/no questions of {result['patients']} patients, {result['split']} split",
        *(f"skipped {n:6d}  {reason}" for reason, n in result["skipped"].items()),
        leakage_text(result["leakage"]),
        steering_text(result),
        *filter(None, [outside_text(result)]),
    ]
    for table in result["by_k"]:
        lines += ["", *_methods(table), *_tests(table), *_noise(table)]
    lines += _wrong_picture(result["wrong_picture"])
    lines += _arena(
        result["arena"], result.get("arena_seconds", {}), result.get("arena_settings", {})
    )
    for group in GROUPS:
        lines += _ablation(group, [row for row in result["ablations"] if row["group"] == group])
    return "\n".join(lines + _retrieval(result["retrieval"]))


def leakage_text(leakage: Row) -> str:
    """Return the rule against leakage, what it excluded, and which questions are not fair."""
    excluded = leakage["documents_excluded"]
    asked = leakage["questions_with_documents_excluded"]
    text = f"{leakage['rule']}: {excluded} documents excluded, for {asked} of the questions"
    if seen := leakage["questions_learnt_from"]:
        text += (
            f". {seen} of the questions are about studies from which α, β, γ, the layers or the "
            "strength were learnt: these figures flatter MCR and IFA"
        )
    return text


def outside_text(result: Row) -> str:
    """Return a warning where the model was not trained on such pictures; else nothing."""
    unlike, sampled = result.get("outside") or (0, 0)
    if unlike <= sampled // 10:
        return ""
    return (
        f"WARNING: {unlike} of {sampled} sampled pictures are unlike those that the model was "
        "trained on. Its answers about them mean nothing, and so do these figures"
    )


def steering_text(result: Row) -> str:
    """Return how MR-RAG was steered, and whether that is the paper's form of IFA."""
    where = ", ".join(map(str, result["layers"]))
    if not where or not result["strength"]:
        return "MR-RAG is not steered: no layers or no strength were learnt for this model"
    form = {"ifa": "as in the paper", "balanced": "balanced, which is not the paper's form"}
    return f"IFA in MR-RAG: {form[result['form']]}; strength {result['strength']:g}, layers {where}"


# Tables, as lines


def _methods(table: Row) -> list[str]:
    if not table["methods"]:
        return []
    lines = [
        f"{'K = ' + str(table['k']):28s}{'accuracy':>26s}{'macro F1':>26s}{'F1 of yes':>11s}"
        f"{'balanced':>10s}{'within a finding':>18s}  unparsed (lenient)"
    ]
    for row in table["methods"]:
        lines.append(
            f"{NAMES[row['method']]:28s}{_interval(row, 'accuracy')}{_interval(row, 'macro_f1')}"
            f"{100 * row['positive_f1']:11.1f}{100 * row['balanced_accuracy']:10.1f}"
            f"{_within(row):>18s}"
            f"{row['unparsed']:10d} ({row['lenient']['unparsed']})"
        )
    return lines


def _within(row: Row) -> str:
    """Return the AUROC of P(yes) among the questions about one finding."""
    value = row["within_finding"]["auroc"]
    return "-" if value is None else f"{value:.3f}"


def _wrong_picture(rows: list[Row]) -> list[str]:
    if not rows:
        return []
    lines = ["", "what the answers owe to the picture and to the reports, % of the questions"]
    lines.append(
        f"{'':28s}{'K':>4s}{'accuracy':>10s}{'wrong picture':>15s}{'unchanged':>11s}"
        f"{'harmed by reports':>19s}{'mended by reports':>19s}"
    )
    for row in rows:
        harmed, mended = (
            "-" if n not in row else f"{100 * row[n]:.1f}" for n in ("over_reliance", "rescued")
        )
        lines.append(
            f"{name_of(row['method']):28s}{row['k']:4d}{100 * row['accuracy']:10.1f}"
            f"{100 * row['accuracy_wrong_picture']:15.1f}{100 * row['unchanged']:11.1f}"
            f"{harmed:>19s}{mended:>19s}"
        )
    return lines


def _tests(table: Row) -> list[str]:
    if not table["tests"]:
        return []
    lines = ["", "paired tests (McNemar, exact): only the first / only the second right"]
    for row in table["tests"]:
        lines.append(
            f"{NAMES[row['first']]} vs {NAMES[row['second']]}: "
            f"{row['only_first_right']} / {row['only_second_right']}, p = {row['p']:.2g}"
        )
    return lines


def _noise(table: Row) -> list[str]:
    if not table["noise"]:
        return []
    lines = ["", f"{'irrelevant reports':30s}{'RAG':>26s}{'MR-RAG':>26s}         p"]
    for row in table["noise"]:
        name = noise_name(row)
        cells = [_interval(row[n], "accuracy") if n in row else " " * 26 for n in ("rag", "mr_rag")]
        lines.append(f"{name:30s}{''.join(cells)}{_p(row)}")
    return lines


def _ablation(group: str, rows: list[Row]) -> list[str]:
    if not rows:
        return []
    lines = ["", f"{GROUPS[group]}; K = {rows[0]['k']}"]
    lines.append(f"{'':48s}{'irrelevant':>10s}{'accuracy':>26s}{'macro F1':>26s}         p")
    for row in rows:
        lines.append(
            f"{name_of(row['method']):48s}{row['irrelevant']:10d}{_interval(row, 'accuracy')}"
            f"{_interval(row, 'macro_f1')}{_p(row)}"
        )
    return lines


def _arena(rows: list[Row], seconds: Mapping[str, float], settings: Mapping[str, str]) -> list[str]:
    """Return a block for each number and kind of irrelevant reports, plain RAG first."""
    lines: list[str] = []
    chosen = "  chosen setting" if settings else ""
    for row in rows:
        if row["method"] == "rag":
            kind = f", {row['kind']}" if row["irrelevant"] else ""
            lines += [
                "",
                f"arena, K = {row['k']}, {row['irrelevant']} irrelevant{kind}; lost and won "
                "against RAG; p by McNemar, exact, and corrected (Holm)",
                f"{'':36s}{'accuracy':>26s}{'neither':>9s}{'lost':>6s}{'won':>5s}{'p':>10s}{'corrected':>11s}"
                f"{'log loss':>10s}{'Brier':>8s}{'reports':>9s}{'prompts':>9s}{'seconds':>9s}"
                + chosen,
            ]
        lost, won, p, corrected = "", "", "", ""
        if "test" in row:
            test = row["test"]
            lost, won = str(test["only_first_right"]), str(test["only_second_right"])
            p, corrected = f"{test['p']:.2g}", f"{test['p_holm']:.2g}"
        took = "-"
        if row["method"] in seconds:
            took = f"× {seconds[row['method']] / seconds['rag']:.2f}"
        lines.append(
            f"{TITLES[row['method']]:36s}{_interval(row, 'accuracy')}{row['unparsed']:9d}"
            f"{lost:>6s}{won:>5s}{p:>10s}{corrected:>11s}{row['log_loss']:10.3f}{row['brier']:8.3f}{row['reports']:9.1f}"
            f"{row['prompts']:9d}{took:>9s}  {settings.get(row['method'], '')}".rstrip()
        )
    if seconds:
        lines += ["", f"seconds × 1.00, plain RAG's, are {seconds['rag']:.3f} s an answer"]
    return lines


def _retrieval(rows: list[Row]) -> list[str]:
    if not rows:
        return []
    asked = rows[0]["questions_with_a_finding"]
    lines = ["", f"what the retrieved reports say of the finding asked about ({asked} questions)"]
    lines.append(
        f"{'':52s}{'K':>4s}{'irrelevant':>12s}{'agree':>8s}{'contradict':>12s}{'silent':>8s}"
        f"{'own report':>12s}"
    )
    for row in rows:
        agree, contradict, silent, own = (
            "-" if row[n] is None else f"{100 * row[n]:.1f}"
            for n in ("agree", "contradict", "silent", "own_report_recall")
        )
        lines.append(
            f"{name_of(row['method']):52s}{row['k']:4d}{row['irrelevant']:12d}{agree:>8s}"
            f"{contradict:>12s}{silent:>8s}{own:>12s}"
        )
    return lines


def _interval(row: Row, name: str) -> str:
    low, high = row[f"{name}_interval"]
    return f"{100 * row[name]:9.1f} ({100 * low:5.1f} to {100 * high:5.1f})"


def _p(row: Row) -> str:
    return f"{row['test']['p']:10.2g}" if "test" in row else ""
