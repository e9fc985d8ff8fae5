"""``evaluate``: the paper's experiments on many questions."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from mrrag.cli.options import (
    RUNS,
    Commands,
    add_ask,
    add_command,
    add_data,
    add_json,
    add_pipeline,
    bundled_world,
    load_chosen,
    print_json,
    read_chosen,
    this_process,
    ticker,
)
from mrrag.errors import SettingsError
from mrrag.study.arena import ARENA, BY_NAME, EVERY, RIVALS, WRITING
from mrrag.study.plan import ABLATIONS, ALL_METHODS, ANSWER_TOKENS, NOISE_KINDS, SHARES
from mrrag.types import METHODS, Weights

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mrrag.data.records import Corpus
    from mrrag.pipeline import Pipeline
    from mrrag.study.experiment import Experiment
    from mrrag.study.plan import Plan


def add_commands(commands: Commands) -> None:
    """Add ``evaluate``."""
    evaluate = add_command(
        commands,
        "evaluate",
        run_evaluate,
        "Run the paper's experiments: methods, numbers of reports, irrelevant reports,\n"
        "and ablations.\n\n"
        "Asks the yes/no questions of a data set or VQA file. Answers are kept in the run\n"
        "directory, so that a run that was stopped is resumed by the same command.",
        "mrrag evaluate --questions 1000 --ablations --html report.html",
    )
    add_pipeline(evaluate)
    add_data(evaluate, required=False, text="data set or VQA file (default: the bundled world)")
    add_ask(evaluate)
    _add_questions_and_methods(evaluate)
    evaluate.add_argument(
        "--folder",
        type=Path,
        default=RUNS / "evaluate",
        metavar="DIR",
        help="run directory for answers, tables and report (default: %(default)s)",
    )
    evaluate.add_argument(
        "--html", type=Path, metavar="FILE", help="also write the report to this file"
    )
    add_json(evaluate)


def _add_questions_and_methods(evaluate: argparse.ArgumentParser) -> None:
    evaluate.add_argument(
        "--split",
        help='split to ask, or "all" (default: test where there is one, else all)',
    )
    evaluate.add_argument(
        "--questions",
        type=int,
        default=4000,
        metavar="N",
        help="maximum number of questions (default: %(default)s)",
    )
    evaluate.add_argument(
        "--k",
        type=int,
        nargs="+",
        default=[8],
        help="numbers of reports to compare (default: 8)",
    )
    evaluate.add_argument(
        "--weights",
        type=float,
        nargs=3,
        metavar=("ALPHA", "BETA", "GAMMA"),
        help="weights of image-report, image-image and question-report similarity in RAG and "
        "MR-RAG (default: as learnt)",
    )
    evaluate.add_argument(
        "--noise-shares",
        type=float,
        nargs="*",
        default=SHARES,
        metavar="SHARE",
        help="shares of irrelevant reports to compare, 0 to 1 "
        f"(default: {' '.join(map(str, SHARES))})",
    )
    evaluate.add_argument(
        "--irrelevant",
        nargs="+",
        default=["random"],
        choices=NOISE_KINDS,
        help="where irrelevant reports come from: "
        + "; ".join(f"{kind}: {words}" for kind, words in NOISE_KINDS.items())
        + " (default: random)",
    )
    evaluate.add_argument(
        "--methods",
        nargs="+",
        default=ALL_METHODS,
        choices=(*ALL_METHODS, *RIVALS, EVERY),
        metavar="METHOD",
        help="methods to compare: without reports, with reports at random, with reports by one "
        f"similarity alone, RAG, MR-RAG ({', '.join(ALL_METHODS)}; default: these), and their "
        f"rivals in one table beside RAG ({', '.join(RIVALS)}; {EVERY} for all of them but "
        f"{', '.join(WRITING)}, which do not change a yes or no, and few_shot, which needs a model "
        "that reads several pictures)",
    )
    evaluate.add_argument(
        "--heads",
        type=Path,
        metavar="FILE",
        help="what `mrrag find-heads` wrote, for methods that act in chosen heads "
        f"({', '.join(n for n in ARENA if ARENA[n].heads)}); without it {EVERY} leaves them out",
    )
    evaluate.add_argument(
        "--settings",
        type=Path,
        metavar="FILE",
        help="what `mrrag find-settings` wrote: the arena's methods get the settings that were "
        "chosen on validation questions (default: the published ones)",
    )
    evaluate.add_argument(
        "--ablations",
        nargs="*",
        choices=ABLATIONS,
        help="ablations to run: those named, or all where none is named (default: no ablation)",
    )
    evaluate.add_argument(
        "--no-wrong-picture",
        action="store_true",
        help="do not ask again about another patient's picture, which shows whether the model "
        "looks at the picture",
    )
    evaluate.add_argument(
        "--neutral",
        action="store_true",
        help='ask each question as "Is there X?", for the one finding that it names, so that its '
        "words do not give the answer away; questions that name none or several are left out",
    )
    evaluate.add_argument(
        "--seed", type=int, default=0, help="seed of random draws (default: %(default)s)"
    )
    evaluate.add_argument(
        "--answer-tokens",
        type=int,
        default=ANSWER_TOKENS,
        metavar="N",
        help="maximum length of an answer, in tokens (default: %(default)s)",
    )


def run_evaluate(args: argparse.Namespace) -> None:
    """Ask what is not answered yet; the first process then writes the tables."""
    from mrrag.study.experiment import Experiment, answer_all, choose_questions
    from mrrag.study.heads import read_heads
    from mrrag.study.plan import cells_of
    from mrrag.study.trials import read_settings, with_settings

    plan = plan_of(args)
    process = this_process()
    if process.index:  # the first may have to draw the bundled world
        process.wait()
    read = experiment_data(args)
    if not process.index:
        process.wait()
    if args.neutral:
        read = in_neutral_words(read)
    questions = choose_questions(
        read.records, read.questions, args.split, args.questions, read.skipped_questions
    )
    pipeline = weighed(load_chosen(args, process.device), args.weights)
    heads = read_heads(args.heads, pipeline.backbone.fingerprint) if args.heads else None
    chosen: dict[str, str] = {}
    if args.settings:
        chosen = read_settings(
            args.settings,
            model=pipeline.backbone.fingerprint,
            knowledge_base=pipeline.knowledge_base.fingerprint,
            pictures={item.image for item in questions.items},
        )
    cells = cells_of(plan, pipeline.learnt, pipeline.backbone.layers, heads, with_settings(chosen))
    experiment = Experiment(questions, plan, tuple(cells), made_of(args, pipeline))
    answer_all(
        pipeline,
        experiment,
        args.folder,
        part=process.index,
        parts=process.count,
        ticker=ticker,
    )
    process.wait()
    if not process.index:
        write_results(args, pipeline, experiment, chosen)


def weighed(pipeline: Pipeline, weights: Sequence[float] | None) -> Pipeline:
    """Return the pipeline with α, β and γ as given, or as learnt where none are."""
    if weights is None:
        return pipeline
    learnt = replace(pipeline.learnt, weights=Weights(*weights), intervals=())
    return replace(pipeline, learnt=learnt)


def in_neutral_words(read: Corpus) -> Corpus:
    """Return the data with its questions reworded neutrally; the others count as skipped."""
    from mrrag.study.neutral import OMITTED, neutral

    questions, omitted = neutral(read.questions)
    skipped = {**read.skipped_questions, OMITTED: omitted}
    return replace(read, questions=questions, skipped_questions=skipped)


def made_of(args: argparse.Namespace, pipeline: Pipeline) -> dict[str, str]:
    """Return what tells the model, the encoder and the knowledge base of answers apart."""
    return {
        "model": pipeline.backbone.fingerprint,
        "encoder": pipeline.encoder.fingerprint,
        "knowledge_base": pipeline.knowledge_base.fingerprint,
        "tower": args.vision_tower,
        "quantize": args.quantize or "",
    }


def plan_of(args: argparse.Namespace) -> Plan:
    """Return the comparison that the options name."""
    from mrrag.study.plan import Plan

    ablations = ABLATIONS if args.ablations == [] else args.ablations or ()
    named = tuple(dict.fromkeys(args.methods))
    # A rival is compared with what was named of the three answers.
    left_out = {n for n in ARENA if args.no_wrong_picture and ARENA[n].wrong_picture}
    left_out |= {n for n in ARENA if args.heads is None and ARENA[n].heads}
    left_out |= {*BY_NAME} - {*named}
    every = tuple(n for n in ARENA if n not in left_out)
    rivals = every if EVERY in named else tuple(n for n in named if n in ARENA)
    if not set(rivals) - set(METHODS):
        rivals = ()
    return Plan(
        ks=tuple(dict.fromkeys(args.k)),
        shares=tuple(dict.fromkeys(args.noise_shares)),
        kinds=tuple(dict.fromkeys(args.irrelevant)),
        methods=tuple(name for name in named if name in ALL_METHODS),
        arena=rivals,
        ablations=tuple(ablations),
        wrong_picture=not args.no_wrong_picture,
        seed=args.seed,
        answer_tokens=args.answer_tokens,
    )


def experiment_data(args: argparse.Namespace) -> Corpus:
    """Read the data set or VQA file that the options name; else the bundled world."""
    from mrrag.data.corpus import read_corpus

    if args.data is not None:
        return read_chosen(args)
    if args.ask is not None:
        raise SettingsError("--ask goes with --data, which names the data set. Give both.")
    if args.split == "all":
        raise SettingsError("The bundled world is drawn a split at a time. Name one with --split.")
    return read_corpus(bundled_world(args.assets, args.split or "test"))


def write_results(
    args: argparse.Namespace,
    pipeline: Pipeline,
    experiment: Experiment,
    chosen: Mapping[str, str],
) -> None:
    """Write tables and report into the run directory, and print the tables."""
    from mrrag.pipeline import versions
    from mrrag.report.experiment_page import experiment_to_html
    from mrrag.study.answer_file import read_answers
    from mrrag.study.cost import seconds_each
    from mrrag.study.evaluation import count_outside
    from mrrag.study.tables import metric_rows, tables, write_csv, write_json
    from mrrag.study.text import tables_text
    from mrrag.study.trials import settings_of

    result, predictions = tables(
        experiment, read_answers(args.folder), pipeline.knowledge_base, pipeline.learnt
    )
    result["data"] = str(args.data) if args.data else "the bundled world"
    if args.neutral:
        result["data"] += ", in neutral words"
    result["versions"] = versions(pipeline)
    result["arena_settings"] = settings_of(experiment.plan.arena, chosen)
    result["arena_seconds"] = seconds_each(pipeline, experiment)
    result["outside"] = count_outside(pipeline, [i.case for i in experiment.questions.items])
    config = {k: result[k] for k in ("data", "data_fingerprint", "split", "plan", "versions")}
    write_json(args.folder / "config.json", config | {"made_of": dict(experiment.made_of)})
    write_json(args.folder / "result.json", result)
    write_csv(args.folder / "predictions.csv", predictions)
    write_csv(args.folder / "metrics.csv", metric_rows(result))
    for path in filter(None, (args.folder / "report.html", args.html)):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(experiment_to_html(result), encoding="utf-8")
    if args.json:
        print_json(result)
    else:
        print(tables_text(result))
