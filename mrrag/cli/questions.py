"""``questions``: questions made of the reports of a data set."""

from __future__ import annotations

import argparse
import json
import os
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from mrrag.cli.options import Commands, add_command, add_data, read_chosen
from mrrag.errors import SettingsError
from mrrag.files import write_atomic

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mrrag.data.records import Record
    from mrrag.data.report_questions import ReportQuestion

NAME = "questions.jsonl"


def add_commands(commands: Commands) -> None:
    """Add ``questions``."""
    command = add_command(
        commands,
        "questions",
        run_questions,
        "Make yes/no questions, and some about side and place, of a data set's reports.\n\n"
        "Rules find what each report affirms and denies. Every finding gets as many yes as no\n"
        "within a split; doubt gives no question. train-adapter, find-layers and evaluate read\n"
        f"the file: as DATA/{NAME}, where it is put if none is there, or with --ask FILE.",
        "mrrag questions --data runs/iu-xray",
    )
    add_data(command, text="data set with reports, in any of the supported layouts")
    command.add_argument("--split", help="make questions of this split only (default: all)")
    command.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help=f"file to write, which must not exist (default: DATA/{NAME})",
    )
    command.add_argument(
        "--per-study",
        type=int,
        default=4,
        metavar="N",
        help="maximum number of yes/no questions about a study (default: %(default)s)",
    )
    command.add_argument(
        "--silence",
        action="store_true",
        help="take a finding that a report does not name for absent; this gives questions about\n"
        "findings that reports seldom deny, with less certain answers",
    )
    command.add_argument(
        "--seed", type=int, default=0, help="seed of random draws (default: %(default)s)"
    )


def run_questions(args: argparse.Namespace) -> None:
    """Write the questions, and print how many there are of each finding."""
    from mrrag.data.report_questions import write_questions

    if args.per_study < 1:
        raise SettingsError(f"--per-study is {args.per_study}. Give at least 1.")
    output = _output(args)
    records = read_chosen(args).records
    if args.split is not None:
        records = _of_split(records, args.split)
    written = write_questions(
        records, per_study=args.per_study, seed=args.seed, silence=args.silence
    )
    if not written:
        raise SettingsError(
            f"No question could be made of the reports of {args.data}: no finding is affirmed "
            "by one and denied by another. --silence takes unnamed findings for absent."
        )
    lines = (_line(one) for one in written)
    write_atomic(output, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    print(_counts(written, {r.document.id: r.split for r in records}))
    ask = "" if output == args.data / NAME else f" --ask {output}"
    print(f"Written to {output}; use it with `train-adapter --data {args.data}{ask}`.")


def _output(args: argparse.Namespace) -> Path:
    """Return the file to write; refuse before anything is read where it cannot be."""
    output: Path = args.output or args.data / NAME
    if output.exists():
        raise SettingsError(f"{output} exists already. Name another file with --output.")
    folder = next(p for p in output.absolute().parents if p.exists())
    # Its mode too: an administrator could write into a folder that is marked read-only.
    may_write = os.access(folder, os.W_OK) and folder.stat().st_mode & 0o222
    if not folder.is_dir() or not may_write:
        raise SettingsError(f"{output} cannot be written. Name another file with --output.")
    output.parent.mkdir(parents=True, exist_ok=True)
    return output


def _of_split(records: Sequence[Record], split: str) -> tuple[Record, ...]:
    chosen = tuple(record for record in records if record.split == split)
    if not chosen:
        there = ", ".join(sorted({record.split or "none" for record in records}))
        raise SettingsError(f'There is no record in the split "{split}". Splits: {there}.')
    return chosen


def _line(written: ReportQuestion) -> dict[str, str]:
    fields = asdict(written.question)
    del fields["split"]  # the record's own
    return fields | {"sentence": written.sentence}


def _counts(written: Sequence[ReportQuestion], splits: dict[str, str]) -> str:
    """Return a table: for each finding and split the number of yes, no and open questions."""
    counts: Counter[tuple[str, str, str]] = Counter()
    for one in written:
        about = one.question
        kind = about.answer.lower() if about.answer_type == "closed" else "open"
        counts[about.finding, splits[about.uid] or "no split", kind] += 1
    names = list(dict.fromkeys(split for _, split, _ in sorted(counts)))
    rows = [f"{'finding':20}" + "".join(f"{f'{name}: yes/no, open':>32}" for name in names)]
    for finding in dict.fromkeys(finding for finding, _, _ in sorted(counts)):
        cells = (
            f"{counts[finding, n, 'yes']}/{counts[finding, n, 'no']}, {counts[finding, n, 'open']}"
            for n in names
        )
        rows.append(f"{finding:20}" + "".join(f"{cell:>32}" for cell in cells))
    closed = sum(n for (_, _, kind), n in counts.items() if kind != "open")
    return "\n".join([*rows, f"{closed} yes/no questions, {len(written) - closed} open ones"])
