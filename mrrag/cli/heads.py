"""``find-heads``: the heads in which rivals of IFA act."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from mrrag.cli.options import (
    RUNS,
    Commands,
    add_ask,
    add_command,
    add_data,
    add_pipeline,
    add_questions,
    load_chosen,
    read_chosen,
    ticker,
)


def add_commands(commands: Commands) -> None:
    """Add ``find-heads``."""
    heads = add_command(
        commands,
        "find-heads",
        run_find_heads,
        "Find the attention heads in which PASTA and ITI act in the arena.\n\n"
        "Probes are learnt from training questions and judged on validation questions, and\n"
        "each head is steered alone on validation questions. The file is of one model.",
        "mrrag find-heads --data VQA_RAD --kb runs/kb --output runs/heads.safetensors",
    )
    add_pipeline(heads)
    add_data(heads)
    add_ask(heads)
    add_questions(heads, 500, of=", each of training and of validation")
    heads.add_argument(
        "--output",
        type=Path,
        default=RUNS / "heads.safetensors",
        metavar="FILE",
        help="what is written, for `evaluate --heads` (default: %(default)s)",
    )


def run_find_heads(args: argparse.Namespace) -> None:
    """Find the heads, write them, and print the best."""
    from mrrag.training.heads import find_heads
    from mrrag.training.learn import split_questions

    pipeline = load_chosen(args)
    split = split_questions(read_chosen(args), pipeline.knowledge_base)
    for reason, count in split.left_out.items():
        print(f"left out: {count} questions {reason}", file=sys.stderr)
    asked = {"questions": args.questions, "k": args.k}
    print(find_heads(pipeline, split, args.output, **asked, ticker=ticker))
    print(f"Written to {args.output}; use it with: mrrag evaluate --heads {args.output}")
