"""The command line: ``python -m mrrag COMMAND``.

Made to be read from top to bottom: one function a command, and the parser below them.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mrrag.errors import MRRAGError
from mrrag.types import BUNDLED, METHODS, Query, Weights

if TYPE_CHECKING:
    from mrrag.pipeline import Pipeline

ROOT = Path(__file__).resolve().parent.parent
ASSETS = ROOT / "assets"
NAMES = {
    "rag_off": "RAG off",
    "image_report": "RAG, image-report only",
    "image_image": "RAG, image-image only",
    "question_report": "RAG, question-report only",
    "rag": "RAG (MCR)",
    "mr_rag": "MR-RAG (MCR + IFA)",
}


def ticker(items: Iterable[Any], total: int, label: str) -> Iterable[Any]:
    """A progress bar on stderr."""
    from tqdm import tqdm

    bar: Iterable[Any] = tqdm(items, total=total, desc=label, mininterval=2, file=sys.stderr)
    return bar


def write_json(path: Path, value: object) -> None:
    """Write indented JSON, with a newline at its end."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def device_for(heavy: bool) -> str:
    """Every GPU there is for a model that needs one; the CPU for the bundled one."""
    import torch

    return "auto" if heavy and torch.cuda.is_available() else "cpu"


def chosen_pipeline(args: argparse.Namespace) -> Pipeline:
    """The model and the knowledge base that the options name."""
    from mrrag.pipeline import load_pipeline

    return load_pipeline(
        args.assets,
        model=args.model,
        knowledge_base=args.kb,
        revision=args.revision,
        device=device_for(args.model != BUNDLED),
        tower=args.tower,
        quantize=args.quantize,
    )


# Commands that answer


def ask(args: argparse.Namespace) -> None:
    """Answer one question about one image, three ways."""
    from mrrag.export import case_to_json
    from mrrag.images import load_image
    from mrrag.pipeline import CaseResult, Settings, answer, find_evidence

    pipeline = chosen_pipeline(args)
    query = Query(load_image(args.image), args.question)
    settings = Settings(
        k=args.k,
        weights=None if args.weights is None else Weights(*args.weights),
        strength=args.strength,
        layers=None if args.layers is None else tuple(args.layers),
        noise=args.noise,
    )
    evidence = find_evidence(pipeline, query, settings)
    *_, case = answer(pipeline, query, evidence, settings)
    assert isinstance(case, CaseResult)
    if args.json:
        print(json.dumps(case_to_json(case), ensure_ascii=False))
        return
    print("score = α·image-report + β·image-image + γ·question-report")
    for r in case.retrieved:
        a, b, c = r.terms
        print(f"{r.rank:2d}. {r.score:.3f} = {a:+.3f} {b:+.3f} {c:+.3f}  λ {r.relevance:.2f}")
        print(f"    {' '.join(r.document.report.split())}")
    print()
    for method in METHODS:
        said = case.answers[method]
        print(f"{NAMES[method]:20s} P(yes) {said.p_yes:.3f}  P(no) {said.p_no:.3f}  {said.text}")
    for note in case.notes:
        print(f"note: {note}")
    print("Research demonstration. Not a medical device.")


def evaluate(args: argparse.Namespace) -> None:
    """The paper's tables on held-out questions."""
    from mrrag.evaluation import evaluate as run_evaluation
    from mrrag.pipeline import versions
    from mrrag.training.data import read_data_set
    from mrrag.training.recipe import asked_of

    pipeline = chosen_pipeline(args)
    data = read_data_set(args.data or bundled_world(args.assets, args.split))
    items = asked_of(pipeline, data, data.rows(args.split), args.questions, ticker)
    result = run_evaluation(pipeline, items, k=args.k, ticker=ticker)
    result["split"] = args.split
    result["versions"] = versions(pipeline)
    if args.output:
        write_json(args.output, result)
    if args.json:
        print(json.dumps(result))
        return
    print(evaluation_text(result))


def evaluation_text(result: dict[str, Any]) -> str:
    """The evaluation's tables as text."""
    lines = [f"{result['n']} yes/no questions, {result['split']} split, K = {result['k']}", ""]
    lines.append(f"{'':28s}{'accuracy':>26s}{'macro F1':>26s}  unparsed")
    for row in result["methods"]:
        lines.append(
            f"{NAMES[row['method']]:28s}{_interval(row, 'accuracy')}"
            f"{_interval(row, 'macro_f1')}{row['unparsed']:10d}"
        )
    lines += ["", "paired tests (McNemar, exact): only the first / only the second right"]
    for row in result["tests"]:
        lines.append(
            f"{NAMES[row['first']]} vs {NAMES[row['second']]}: "
            f"{row['only_first_right']} / {row['only_second_right']}, p = {row['p']:.2g}"
        )
    lines += ["", f"{'irrelevant reports':20s}{'RAG':>26s}{'MR-RAG':>26s}         p"]
    for row in result["noise"]:
        name = f"{row['irrelevant']} of {row['k']} ({row['share']:.0%})"
        lines.append(
            f"{name:20s}{_interval(row['rag'], 'accuracy')}{_interval(row['mr_rag'], 'accuracy')}"
            f"{row['test']['p']:10.2g}"
        )
    return "\n".join(lines)


def _interval(row: dict[str, Any], name: str) -> str:
    low, high = row[f"{name}_interval"]
    return f"{100 * row[name]:9.1f} ({100 * low:5.1f} to {100 * high:5.1f})"


def bundled_world(assets: Path, split: str) -> Path:
    """The world that the bundled model was made for, with the pictures of one split.

    Drawn again from its seed where it is not there yet, and gone on with where it is.
    """
    recipe = json.loads((assets / "world.json").read_text(encoding="utf-8"))
    directory = ROOT / "runs" / f"phantoms-{recipe['seed']}-{recipe['patients']}"
    draw_world(directory, **recipe, only=split)
    return directory


def bench(args: argparse.Namespace) -> None:
    """Time three answers with their trace against transformers' own generate()."""
    from mrrag.bench import Bench, bench_text
    from mrrag.bench import bench as run_bench

    heavy = args.random_weights is not None or args.model != BUNDLED
    options = Bench(
        args.assets,
        model=args.model,
        random_weights=args.random_weights,
        dtype=args.dtype,
        device=device_for(heavy),
        quantize=args.quantize,
        reports=args.k,
        new_tokens=args.new_tokens,
        repeats=args.repeats,
    )
    result = run_bench(options)
    print(json.dumps(result) if args.json else bench_text(result))


# Commands that make what the others use


def draw_world(
    directory: Path, patients: int, seed: int, size: int, only: str | None = None
) -> None:
    """Write a phantom world; pictures that are there already are not drawn again."""
    from mrrag.phantom.write import write_data_set

    write_data_set(
        directory,
        patients=patients,
        seed=seed,
        size=size,
        only=only,
        progress=lambda items, total: ticker(items, total, "rendering"),
    )


def phantom(args: argparse.Namespace) -> None:
    """Draw a phantom world in the layout of IU-Xray."""
    draw_world(args.directory, args.patients, args.seed, args.size)


def train_retriever(args: argparse.Namespace) -> None:
    """Train the bi-tower."""
    from mrrag.training.data import read_data_set
    from mrrag.training.recipe import make_retriever

    make_retriever(read_data_set(args.data), args.runs, args.assets, args.steps)


def index(args: argparse.Namespace) -> None:
    """Build the knowledge base."""
    from mrrag.encoders import load_encoder
    from mrrag.knowledge_base import build_knowledge_base
    from mrrag.training.data import read_data_set
    from mrrag.training.recipe import knowledge_base_rows

    data = read_data_set(args.data)
    rows = knowledge_base_rows(data)
    built = build_knowledge_base(
        args.assets / "knowledge_base",
        [data.cases[n] for n in rows],
        load_encoder(args.assets / "encoder"),
        thumbnail_size=args.thumbnail_size,
        overwrite=args.overwrite,
        progress=lambda done, total: logging.info("indexed %d of %d", done, total),
    )
    print(f"{len(built)} documents, fingerprint {built.fingerprint[:12]}")


def train_model(args: argparse.Namespace) -> None:
    """Train the small LLaVA: its tower, reading, weighing."""
    from mrrag.training.data import read_data_set
    from mrrag.training.recipe import make_model, make_reader, make_tower

    data = read_data_set(args.data)
    make_tower(data, args.runs, args.vision_steps)
    make_reader(data, args.runs, args.reading_steps)
    make_model(data, args.runs, args.assets, args.weighing_steps)


def train_adapter(args: argparse.Namespace) -> None:
    """Learn α, β, γ on the training split."""
    from mrrag.training.recipe import make_adapter

    print(json.dumps(make_adapter(args.data, args.runs, args.assets, args.questions, ticker)))


def find_layers(args: argparse.Namespace) -> None:
    """Find the critical layers, and IFA's strength, on the validation split."""
    from mrrag.training.recipe import make_layers

    print(json.dumps(make_layers(args.data, args.runs, args.assets, args.questions, ticker)))


def samples(args: argparse.Namespace) -> None:
    """Choose the sample cases on the held-out split, and write them."""
    from mrrag.phantom.samples import choose, write_samples
    from mrrag.phantom.world import draw_studies
    from mrrag.pipeline import load_pipeline
    from mrrag.training.data import read_data_set
    from mrrag.training.recipe import asked_of

    pipeline = load_pipeline(args.assets)
    data = read_data_set(args.data)
    items = asked_of(pipeline, data, data.rows("test"), args.questions, ticker)
    recipe = json.loads((args.assets / "world.json").read_text(encoding="utf-8"))
    chosen = choose(pipeline, items, ticker=ticker)
    write_samples(args.directory, chosen, draw_studies(recipe["patients"], recipe["seed"]))
    print(f"{len(chosen)} sample cases in {args.directory}")


def parser() -> argparse.ArgumentParser:
    """The command line's grammar."""
    top = argparse.ArgumentParser(prog="python -m mrrag", description=__doc__.splitlines()[0])
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Callable[[argparse.Namespace], None]) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=run.__doc__, description=run.__doc__)
        sub.set_defaults(run=run)
        sub.add_argument("--assets", type=Path, default=ASSETS, help="model, encoder, index")
        return sub

    def answering(name: str, run: Callable[[argparse.Namespace], None]) -> argparse.ArgumentParser:
        sub = command(name, run)
        sub.add_argument("--model", default=BUNDLED, help="a hub name or a folder (%(default)s)")
        sub.add_argument("--quantize", choices=("int8", "int4"), help="for a smaller GPU")
        return sub

    def asking(name: str, run: Callable[[argparse.Namespace], None]) -> argparse.ArgumentParser:
        sub = answering(name, run)
        sub.add_argument("--kb", type=Path, help="a knowledge base (default: the bundled one)")
        sub.add_argument("--revision", help="of the hub's repository")
        sub.add_argument(
            "--tower",
            default="checkpoint",
            help="whose vision tower: checkpoint, stock, or a name or folder (%(default)s)",
        )
        return sub

    sub = asking("ask", ask)
    sub.add_argument("image", type=Path, help="a DICOM, PNG or JPEG file")
    sub.add_argument("question")
    sub.add_argument("--k", type=int, default=8, help="how many reports (%(default)s)")
    sub.add_argument("--weights", type=float, nargs=3, metavar=("ALPHA", "BETA", "GAMMA"))
    sub.add_argument("--strength", type=float, help="multiplies IFA's λ")
    sub.add_argument("--layers", type=int, nargs="*", help="where IFA acts, counted from 0")
    sub.add_argument("--noise", type=int, default=0, help="irrelevant reports among the k")
    sub.add_argument("--json", action="store_true")

    sub = asking("evaluate", evaluate)
    sub.add_argument("--data", type=Path, help="a data set (default: the bundled world)")
    sub.add_argument("--split", default="test", choices=("train", "validation", "test"))
    sub.add_argument("--questions", type=int, default=4000)
    sub.add_argument("--k", type=int, default=8)
    sub.add_argument("--output", type=Path, help="write the result as JSON")
    sub.add_argument("--json", action="store_true")

    sub = answering("bench", bench)
    sub.add_argument("--random-weights", choices=("7b",), help="this shape, and no download")
    sub.add_argument("--dtype", choices=("bfloat16", "float16", "float32"))
    sub.add_argument("--k", type=int, default=15)
    sub.add_argument("--new-tokens", type=int, default=64)
    sub.add_argument("--repeats", type=int, default=5)
    sub.add_argument("--json", action="store_true")

    sub = command("phantom", phantom)
    sub.add_argument("directory", type=Path)
    sub.add_argument("--patients", type=int, default=8000)
    sub.add_argument("--seed", type=int, default=2026)
    sub.add_argument("--size", type=int, default=512, help="rows and columns, px")

    def learning(name: str, run: Callable[[argparse.Namespace], None]) -> argparse.ArgumentParser:
        sub = command(name, run)
        sub.add_argument("--data", type=Path, required=True, help="what `phantom` wrote")
        sub.add_argument("--runs", type=Path, default=ROOT / "runs", help="checkpoints, figures")
        return sub

    learning("train-retriever", train_retriever).add_argument("--steps", type=int, default=1200)
    sub = learning("index", index)
    sub.add_argument("--thumbnail-size", type=int, default=256, help="longer side, px")
    sub.add_argument("--overwrite", action="store_true")
    sub = learning("train-model", train_model)
    sub.add_argument("--vision-steps", type=int, default=1000)
    sub.add_argument("--reading-steps", type=int, default=1000)
    sub.add_argument("--weighing-steps", type=int, default=2400)
    learning("train-adapter", train_adapter).add_argument("--questions", type=int, default=1500)
    learning("find-layers", find_layers).add_argument("--questions", type=int, default=1000)
    sub = learning("samples", samples)
    sub.add_argument("--directory", type=Path, default=ROOT / "sample_cases")
    sub.add_argument("--questions", type=int, default=600)
    return top


def main() -> int:
    """Run a command; an error that a person can mend is one line, and 1 is returned."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    args = parser().parse_args()
    try:
        args.run(args)
    except MRRAGError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
