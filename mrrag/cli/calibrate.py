"""``calibrate``: settings whose risk of a wrong answer is bounded."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mrrag.cli.evaluate import experiment_data, made_of
from mrrag.cli.options import (
    RUNS,
    Commands,
    add_ask,
    add_command,
    add_data,
    add_json,
    add_pipeline,
    load_chosen,
    print_json,
    ticker,
)

if TYPE_CHECKING:
    from mrrag.study.experiment import Experiment, Questions
    from mrrag.study.risk import Certified


def add_commands(commands: Commands) -> None:
    """Add ``calibrate``."""
    calibrate = add_command(
        commands,
        "calibrate",
        run_calibrate,
        "Find settings whose share of wrong answers is bounded, with a stated probability.\n\n"
        "Asks one yes/no question of each patient with every number of reports, cut-off and\n"
        "steering, and tests each setting against the tolerated risk (RULE; Learn then Test).\n"
        "Give questions that were used for nothing else. Where no setting is certified, it\n"
        "says so.",
        "mrrag calibrate --data data/iu-xray --kb runs/kb --risk 0.15 --delta 0.1",
    )
    add_pipeline(calibrate)
    add_data(calibrate, required=False, text="data set or VQA file (default: the bundled world)")
    add_ask(calibrate)
    calibrate.add_argument(
        "--split",
        default="validation",
        help='split to ask, or "all" (default: %(default)s)',
    )
    calibrate.add_argument(
        "--risk",
        type=float,
        default=0.15,
        help="tolerated share of wrong answers (default: %(default)s)",
    )
    calibrate.add_argument(
        "--delta",
        type=float,
        default=0.1,
        help="probability that a certified setting is worse all the same (default: %(default)s)",
    )
    calibrate.add_argument(
        "--k",
        type=int,
        nargs="+",
        default=[1, 4, 8],
        help="numbers of reports to test (default: 1 4 8)",
    )
    calibrate.add_argument(
        "--questions",
        type=int,
        default=1000,
        metavar="N",
        help="maximum number of questions, one for each patient (default: %(default)s)",
    )
    calibrate.add_argument(
        "--folder",
        type=Path,
        default=RUNS / "calibrate",
        metavar="DIR",
        help="run directory for the answers (default: %(default)s)",
    )
    add_json(calibrate)


def run_calibrate(args: argparse.Namespace) -> None:
    """Ask what is not answered yet, test every setting, and print what is certified."""
    from mrrag.study.experiment import Experiment, answer_all, choose_questions, one_each
    from mrrag.study.plan import Plan, candidate_cells
    from mrrag.study.risk import certify

    certify([0], 1, args.risk, args.delta)  # refuses before anything is asked
    read = experiment_data(args)
    questions = choose_questions(
        read.records, one_each(read.records, read.questions), args.split, args.questions
    )
    pipeline = load_chosen(args)
    cells = candidate_cells(pipeline.learnt, sorted(set(args.k)))
    experiment = Experiment(questions, Plan(), tuple(cells), made_of(args, pipeline))
    answer_all(pipeline, experiment, args.folder, ticker=ticker)
    errors = wrong_answers(experiment, args.folder)
    found = certify(errors, len(questions.items), args.risk, args.delta)
    names = [cell.name for cell in cells]
    if args.json:
        print_json(as_json(args, questions, names, errors, found))
    else:
        print(as_text(args, questions, names, errors, found))


def wrong_answers(experiment: Experiment, folder: Path) -> list[int]:
    """Return each setting's number of answers that are wrong, or neither yes nor no."""
    from mrrag.data.yes_no import parse_yes_no
    from mrrag.study.answer_file import read_answers

    answers = read_answers(folder)
    gold = [item.gold for item in experiment.questions.items]
    return [
        sum(
            parse_yes_no(answers[key].text) != right
            for key, right in zip(experiment.keys(cell.reading, cell.steering), gold, strict=True)
        )
        for cell in experiment.cells
    ]


def as_json(
    args: argparse.Namespace,
    questions: Questions,
    names: list[str],
    errors: list[int],
    found: Certified,
) -> dict[str, Any]:
    """Return the result as JSON values."""
    rows = zip(names, errors, found.p_values, found.certified, strict=True)
    return {
        "risk": args.risk,
        "delta": args.delta,
        "questions": len(questions.items),
        "split": questions.split,
        "data_fingerprint": questions.fingerprint,
        "settings": [
            {"setting": name, "errors": wrong, "p": p, "certified": sure}
            for name, wrong, p, sure in rows
        ],
        "best": None if found.best is None else names[found.best],
    }


def as_text(
    args: argparse.Namespace,
    questions: Questions,
    names: list[str],
    errors: list[int],
    found: Certified,
) -> str:
    """Return the result as a table and a sentence."""
    count = len(questions.items)
    lines = [f"{count} questions, one for each patient, {questions.split} split", ""]
    lines.append(f"{'setting':36s}{'wrong':>7s}{'share':>8s}{'p':>11s}  certified")
    for name, wrong, p, sure in zip(names, errors, found.p_values, found.certified, strict=True):
        share = f"{100 * wrong / count:.1f} %"
        lines.append(f"{name:36s}{wrong:7d}{share:>8s}{p:11.2g}  {'yes' if sure else 'no'}")
    if found.best is None:
        return "\n".join(
            [
                *lines,
                "",
                f"No setting is certified: none is shown to be wrong at most {args.risk:.0%} of "
                "the time. Ask more patients, or tolerate a higher risk.",
            ]
        )
    return "\n".join(
        [
            *lines,
            "",
            f"Certified with the fewest errors: {names[found.best]}. With a probability of at "
            f"least {1 - args.delta:.0%}, every certified setting answers at most "
            f"{args.risk:.0%} of such questions wrongly.",
        ]
    )
