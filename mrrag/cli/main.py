"""The program: ``mrrag COMMAND``, or ``python -m mrrag COMMAND``."""

from __future__ import annotations

import argparse
import logging
import sys

from mrrag.cli import (
    ask,
    audit,
    bench,
    calibrate,
    doctor,
    evaluate,
    find_settings,
    heads,
    index,
    kb,
    questions,
    sinks,
    train,
)
from mrrag.errors import MRRAGError

DESCRIPTION = """\
MR-RAG: answer questions about radiographs with the help of similar past reports.

`mrrag COMMAND --help` explains a command and shows an example."""
EXAMPLE = """\
example:
  mrrag ask chest.dcm "Is there a pleural effusion?"
"""


def parser() -> argparse.ArgumentParser:
    """Return the parser of all commands; ``args.run(args)`` runs the one that was named."""
    top = argparse.ArgumentParser(
        prog="mrrag",
        description=DESCRIPTION,
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = top.add_subparsers(required=True, metavar="COMMAND", title="commands")
    data = (index, kb, questions)
    study = (evaluate, find_settings, calibrate, sinks, audit)
    for group in (ask, *study, *data, train, heads, bench, doctor):
        group.add_commands(commands)
    return top


def main() -> int:
    """Run a command and return its exit code; errors a user can mend are printed as one line."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    logging.getLogger("faiss").setLevel(logging.WARNING)
    args = parser().parse_args()
    try:
        args.run(args)
    except MRRAGError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0
