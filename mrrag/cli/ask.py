"""``ask``: one question about one image, answered three ways."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from mrrag.cli.options import (
    Commands,
    add_command,
    add_json,
    add_pipeline,
    load_chosen,
    print_json,
)
from mrrag.errors import SettingsError
from mrrag.files import read_json
from mrrag.types import METHODS, Weights

if TYPE_CHECKING:
    from mrrag.case import Case, Settings


def add_commands(commands: Commands) -> None:
    """Add ``ask``."""
    ask = add_command(
        commands,
        "ask",
        run_ask,
        "Answer one question about one image: without RAG, with RAG, and with MR-RAG.\n\n"
        "Prints the retrieved reports with their scores, what each report does to the\n"
        "answer, and the three answers. MR-RAG differs from RAG by IFA alone, which steers\n"
        "the model's attention towards the relevant reports.",
        'mrrag ask chest.dcm "Is there a pleural effusion?" --k 8',
    )
    add_pipeline(ask)
    ask.add_argument(
        "image",
        type=Path,
        nargs="?",
        help="DICOM, PNG, JPEG, WebP, TIFF or BMP file; not needed with --batch",
    )
    ask.add_argument("question", nargs="?", help="the question; not needed with --from or --batch")
    _add_settings(ask)
    add_json(ask)
    ask.add_argument("--html", type=Path, metavar="FILE", help="also write the case as a web page")
    ask.add_argument("--pixels", action="store_true", help="include the pictures in that page")
    ask.add_argument(
        "--from",
        dest="saved",
        type=Path,
        metavar="CASE.json",
        help="repeat an exported case, with its question and settings, and compare the answers",
    )
    ask.add_argument(
        "--batch",
        type=Path,
        metavar="CASES.csv",
        help="ask every row of a table with the columns image (a path, from the table's folder) "
        "and question; repeat the command to go on where it was ended",
    )
    ask.add_argument(
        "--output",
        type=Path,
        metavar="ANSWERS.jsonl",
        help="file for the answers of --batch: for each row a line with what --json prints, or "
        "with the error",
    )


def _add_settings(ask: argparse.ArgumentParser) -> None:
    ask.add_argument(
        "--k", type=int, default=8, help="number of reports to retrieve (default: %(default)s)"
    )
    ask.add_argument(
        "--weights",
        type=float,
        nargs=3,
        metavar=("ALPHA", "BETA", "GAMMA"),
        help="weights of image-report, image-image and question-report similarity "
        "(default: as learnt)",
    )
    ask.add_argument(
        "--strength", type=float, help="strength of IFA; 0 turns it off (default: as learnt)"
    )
    ask.add_argument(
        "--layers",
        type=int,
        nargs="*",
        help="layers of the language model in which IFA acts, counted from 0 (default: as learnt)",
    )
    ask.add_argument(
        "--form",
        help='form of IFA: "ifa" (the paper\'s) or "balanced" (ours) (default: as learnt)',
    )
    ask.add_argument(
        "--noise",
        type=int,
        default=0,
        metavar="N",
        help="number of the reports that are replaced by random ones (default: %(default)s)",
    )


def run_ask(args: argparse.Namespace) -> None:
    """Answer the question, an exported case again, or the questions of a table."""
    if args.batch or args.output:
        _run_batch(args)
    else:
        _run_one(args)


def _run_batch(args: argparse.Namespace) -> None:
    """Check that the options go together, and answer the table."""
    from mrrag.cli.batch import run_batch

    if not (args.batch and args.output):
        raise SettingsError("--batch and --output go together: name the table, and its answers.")
    if args.image or args.saved or args.html or args.json:
        raise SettingsError(
            "With --batch, images and questions come from the table, and the answers go to "
            "--output. Leave out image, question, --from, --html and --json."
        )
    run_batch(args, settings_of(args))


def _run_one(args: argparse.Namespace) -> None:
    from mrrag.api import MRRAG
    from mrrag.data.images import load_image
    from mrrag.report.export import differences, read_case

    if args.image is None:
        raise SettingsError(
            "There is no image. Give the path of its file, or a table with --batch."
        )
    saved = None
    if args.saved is not None:
        saved = read_case(read_json(args.saved, lambda why: _not_json(args.saved, why)))
        question, settings, frame = saved.question, saved.settings, saved.frame
    elif args.question is None:
        raise SettingsError("There is no question. Give one, or an exported case with --from.")
    else:
        question, settings, frame = args.question, settings_of(args), 0
    image = load_image(args.image, frame=frame)
    case = MRRAG(load_chosen(args)).ask(image, question, settings=settings)
    exported = case.to_json()
    if args.html:
        args.html.write_text(case.to_html(pixels=args.pixels), encoding="utf-8")
    if args.json:
        print_json(exported)
    else:
        print_case(case)
    if saved is not None:
        around, found = differences(saved, exported)
        for sentence in (*around, *found):
            print(f"differs: {sentence}", file=sys.stderr)
        if found:
            raise SettingsError("The answers differ from those of the exported case; see above.")
        print("The answers are those of the exported case.", file=sys.stderr)


def _not_json(path: Path, why: str) -> SettingsError:
    return SettingsError(
        f"{path.name} cannot be read as JSON ({why}). Check its path, or export the case again."
    )


def settings_of(args: argparse.Namespace) -> Settings:
    """Return the settings that the options name."""
    from mrrag.case import Settings

    return Settings(
        k=args.k,
        weights=None if args.weights is None else Weights(*args.weights),
        strength=args.strength,
        layers=None if args.layers is None else tuple(args.layers),
        form=args.form,
        noise=args.noise,
    )


def print_case(case: Case) -> None:
    """Print a case as text."""
    from mrrag.retrieval.votes import sentence
    from mrrag.study.text import NAMES

    outside = case.warnings.get("outside")
    if outside:
        print(f"WARNING: {outside}\n")
    print("score = α·image-report + β·image-image + γ·question-report")
    for n, r in enumerate(case.retrieved):
        a, b, c = r.terms
        effect = ""
        if case.influence:
            before, after = case.influence.before[n], case.influence.after[n]
            effect = (
                f"  influence on P({case.influence.word}) {before:+.3f} (RAG) {after:+.3f} (MR-RAG)"
            )
        print(
            f"{r.rank:2d}. {r.score:.3f} = {a:+.3f} {b:+.3f} {c:+.3f}  λ {r.relevance:.2f}{effect}"
        )
        print(f"    {' '.join(r.document.report.split())}")
    print()
    for method in METHODS:
        answered = case.answers[method]
        print(
            f"{NAMES[method]:20s} P(yes) {answered.p_yes:.3f}  P(no) {answered.p_no:.3f}  "
            f"{answered.text}{'  [means nothing for this picture]' if outside else ''}"
        )
    for vote in case.votes:
        print(f"vote of the reports: {sentence(vote)}")
    if case.picture:
        print(f"{'P(yes)':20s} as asked  without picture  mean colour  least similar picture")
        for method, p in case.picture.p_yes.items():
            shown = f"{p[0]:8.3f}  {p[1]:15.3f}  {p[2]:11.3f}  {p[3]:21.3f}"
            print(f"{NAMES[method]:20s} {shown}")
        print(case.picture.sentence)
    for kind, warning in case.warnings.items():
        if kind != "outside":
            print(f"warning: {warning}")
    for note in case.notes:
        print(f"note: {note}")
    print("Research demonstration. Not a medical device.")
