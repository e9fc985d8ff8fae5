"""Measure the finding rules on sentences labelled by hand.

    python tests/tools/labelled.py [FILE] [--misread]

FILE is JSON Lines: ``text``, ``says`` (finding → affirmed, denied or uncertain) and, if wanted,
``part``. By default it is the tests' own. Prints precision and recall with Wilson's 95 %
interval, by part and by what is said; ``--misread`` prints the sentences that are misread, too.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from pathlib import Path

from statsmodels.stats.proportion import proportion_confint

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run from a checkout

from mrrag.data.findings import FINDINGS, stance

OWN = Path(__file__).resolve().parents[1] / "data" / "labelled_sentences.jsonl"


def wilson(hits: int, of: int) -> str:
    """Return a share and its 95 % interval as text; "–" of nothing."""
    if not of:
        return "–"
    low, high = proportion_confint(hits, of, method="wilson")
    return f"{hits / of:.3f} ({low:.3f} to {high:.3f})"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="Measure the finding rules.")
    parser.add_argument("file", nargs="?", type=Path, default=OWN)
    parser.add_argument("--misread", action="store_true", help="print what is misread")
    options = parser.parse_args()
    labelled, found, right = Counter[str](), Counter[str](), Counter[str]()
    for line in options.file.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        meant = row["says"]
        said = {f: s for f in FINDINGS if (s := stance(row["text"], f))}
        part = row.get("part", "")
        for count, says in ((labelled, meant), (found, said)):
            for one in says.values():
                count.update(["all", one, *[part] * bool(part)])
        for finding, one in said.items():
            if meant.get(finding) == one:
                right.update(["all", one, *[part] * bool(part)])
        if options.misread and said != meant:
            print(f"{row['text']}\n    labelled {meant}\n    read     {said}")
    print(f"{'':12}labelled  {'precision':24}recall")
    for key, of in labelled.items():
        print(f"{key:12}{of:8}  {wilson(right[key], found[key]):24}{wilson(right[key], of)}")


if __name__ == "__main__":
    main()
