"""``find-settings``: each method of the arena at the setting that validation questions choose."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from mrrag.cli.evaluate import experiment_data, made_of
from mrrag.cli.options import (
    RUNS,
    Commands,
    add_ask,
    add_command,
    add_data,
    add_pipeline,
    add_questions,
    load_chosen,
    ticker,
)
from mrrag.study.arena import ARENA, EVERY
from mrrag.study.plan import ANSWER_TOKENS, NOISE_KINDS
from mrrag.study.trials import BUDGET, FOLLOWS, TRIALS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mrrag.study.experiment import Experiment
    from mrrag.study.plan import Cell, Plan
    from mrrag.study.trials import Trial

OFFERED = tuple(name for name in TRIALS if name not in FOLLOWS)


def add_commands(commands: Commands) -> None:
    """Add ``find-settings``."""
    settings = add_command(
        commands,
        "find-settings",
        run_find_settings,
        "Choose the setting of each method of the arena on validation questions.\n\n"
        f"Every method that has a setting gets {BUDGET} trials, the published one among them, on\n"
        "the same questions and reports. That with the most right answers is chosen. The file\n"
        "records all trials; evaluate --settings then asks other questions with what was chosen.",
        "mrrag find-settings --questions 320 --noise-shares 0.5 --output runs/settings.json",
    )
    add_pipeline(settings)
    add_data(settings, required=False, text="data set or VQA file (default: the bundled world)")
    add_ask(settings)
    settings.add_argument(
        "--split", default="validation", help='split to ask, or "all" (default: %(default)s)'
    )
    add_questions(settings, 320)
    settings.add_argument(
        "--noise-shares",
        type=float,
        nargs="+",
        default=[0.5],
        metavar="SHARE",
        help="shares of irrelevant reports, 0 to 1; right answers count alike at each "
        "(default: 0.5)",
    )
    settings.add_argument(
        "--irrelevant",
        nargs="+",
        default=["random"],
        choices=NOISE_KINDS,
        help="where irrelevant reports come from (default: random)",
    )
    settings.add_argument(
        "--methods",
        nargs="+",
        default=[EVERY],
        choices=(*OFFERED, EVERY),
        metavar="METHOD",
        help=f"methods whose setting is chosen ({', '.join(OFFERED)}; default: {EVERY}, which is "
        "all of them)",
    )
    settings.add_argument(
        "--heads",
        type=Path,
        metavar="FILE",
        help="what `mrrag find-heads` wrote, for methods that act in chosen heads; without it "
        f"{EVERY} leaves them out",
    )
    settings.add_argument(
        "--seed", type=int, default=0, help="seed of random draws (default: %(default)s)"
    )
    settings.add_argument(
        "--answer-tokens",
        type=int,
        default=ANSWER_TOKENS,
        metavar="N",
        help="maximum length of an answer, in tokens; 1 is enough, and quicker, where yes and no "
        "are one token each (default: %(default)s)",
    )
    settings.add_argument(
        "--folder",
        type=Path,
        default=RUNS / "find-settings",
        metavar="DIR",
        help="run directory for the answers (default: %(default)s)",
    )
    settings.add_argument(
        "--output",
        type=Path,
        default=RUNS / "settings.json",
        metavar="FILE",
        help="what is written, for `evaluate --settings` (default: %(default)s)",
    )


def run_find_settings(args: argparse.Namespace) -> None:
    """Ask what is not answered yet, choose, write the file, and print the trials."""
    from mrrag.study.experiment import Experiment, answer_all, choose_questions
    from mrrag.study.heads import read_heads
    from mrrag.study.trials import trial_cells, write_settings

    plan = plan_of(args)
    read = experiment_data(args)
    questions = choose_questions(
        read.records, read.questions, args.split, args.questions, read.skipped_questions
    )
    pipeline = load_chosen(args)
    heads = read_heads(args.heads, pipeline.backbone.fingerprint) if args.heads else None
    cells = trial_cells(plan, pipeline.learnt, heads)
    every = tuple(c for tried in cells.values() for same in tried.values() for c in same)
    experiment = Experiment(questions, plan, every, made_of(args, pipeline))
    answer_all(pipeline, experiment, args.folder, ticker=ticker)
    trials = outcomes(experiment, cells, args.folder)
    about = {
        **experiment.made_of,
        "data": str(args.data) if args.data else "the bundled world",
        "data_fingerprint": questions.fingerprint,
        "split": questions.split,
        "questions": len(questions.items),
        "k": args.k,
        "noise_shares": list(plan.shares),
        "irrelevant": list(plan.kinds),
        "seed": args.seed,
    }
    chosen = write_settings(args.output, trials, about, {item.image for item in questions.items})
    print(as_text(trials, chosen, len(questions.items)))
    print(f"Written to {args.output}; use it with: mrrag evaluate --settings {args.output}")


def plan_of(args: argparse.Namespace) -> Plan:
    """Return the plan whose arena is tried."""
    from mrrag.study.plan import Plan

    every = tuple(n for n in OFFERED if args.heads is not None or not ARENA[n].heads)
    named = tuple(dict.fromkeys(args.methods))
    return Plan(
        ks=(args.k,),
        shares=tuple(dict.fromkeys(args.noise_shares)),
        methods=(),
        wrong_picture=False,
        seed=args.seed,
        answer_tokens=args.answer_tokens,
        kinds=tuple(dict.fromkeys(args.irrelevant)),
        arena=every if EVERY in named else named,
    )


def outcomes(
    experiment: Experiment, cells: Mapping[str, Mapping[str, Sequence[Cell]]], folder: Path
) -> dict[str, dict[str, Trial]]:
    """Return how each method answered at each setting, over all its cells."""
    import numpy as np

    from mrrag.data.yes_no import parse_yes_no
    from mrrag.study.answer_file import read_answers
    from mrrag.study.metrics import brier
    from mrrag.study.trials import Trial

    answers = read_answers(folder)
    gold = [item.gold for item in experiment.questions.items]

    def trial(same: Sequence[Cell]) -> Trial:
        read = [
            answers[key] for cell in same for key in experiment.keys(cell.reading, cell.steering)
        ]
        wanted = gold * len(same)
        right = sum(parse_yes_no(a.text) == g for a, g in zip(read, wanted, strict=True))
        p_yes = np.array([answer.p_yes for answer in read])
        return Trial(right, len(read), brier(np.array(wanted, np.int8), p_yes))

    return {
        name: {setting: trial(same) for setting, same in tried.items()}
        for name, tried in cells.items()
    }


def as_text(
    trials: Mapping[str, Mapping[str, Trial]], chosen: Mapping[str, str], count: int
) -> str:
    """Return the trials of each method as a table; a star marks what was chosen."""
    lines = [f"{count} questions; a star marks what was chosen", ""]
    lines.append(f"{'method':18s}{'setting':24s}{'right, %':>10s}{'Brier':>9s}")
    for name, tried in trials.items():
        for setting, trial in tried.items():
            star = " *" if setting == chosen[name] else ""
            right = 100 * trial.right / trial.asked
            lines.append(f"{name:18s}{setting:24s}{right:10.1f}{trial.brier:9.3f}{star}")
    return "\n".join(lines)
