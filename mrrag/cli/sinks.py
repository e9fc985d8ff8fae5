"""``sinks``: the attention sink of a model, and its logits on reports."""

from __future__ import annotations

import argparse

from mrrag.cli.evaluate import experiment_data
from mrrag.cli.options import (
    Commands,
    add_ask,
    add_command,
    add_data,
    add_json,
    add_pipeline,
    add_questions,
    load_chosen,
    print_json,
    ticker,
)
from mrrag.errors import SettingsError


def add_commands(commands: Commands) -> None:
    """Add ``sinks``."""
    sinks = add_command(
        commands,
        "sinks",
        run_sinks,
        "Measure, layer by layer, how much a model attends to its first token and to reports,\n"
        "and whether its logits on reports are positive or negative. The effect of IFA's\n"
        "published form depends on them (docs/results.md).",
        "mrrag sinks --model microsoft/llava-med-v1.5-mistral-7b --kb runs/kb --data DATA",
    )
    add_pipeline(sinks)
    add_data(sinks, required=False, text="data set or VQA file (default: the bundled world)")
    add_ask(sinks)
    sinks.add_argument(
        "--split", default="validation", help='split to ask, or "all" (default: %(default)s)'
    )
    add_questions(sinks, 128)
    add_json(sinks)


def run_sinks(args: argparse.Namespace) -> None:
    """Measure the attention of the question's rows under plain RAG."""
    from mrrag.study.evaluation import encode_questions
    from mrrag.study.experiment import choose_questions
    from mrrag.study.sink import measure_sink, sink_json, sink_text

    if args.k < 1:
        raise SettingsError(f"--k is {args.k}; there is nothing to measure without a report.")
    read = experiment_data(args)
    chosen = choose_questions(read.records, read.questions, args.split, args.questions)
    pipeline = load_chosen(args)
    items = encode_questions(pipeline, [(item.case, item.question) for item in chosen.items])
    flows = measure_sink(pipeline, items, args.k, ticker=ticker)
    if args.json:
        print_json(sink_json(flows, len(items), args.k))
    else:
        print(sink_text(flows, len(items), args.k))
