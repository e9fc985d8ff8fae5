"""The command line: ``python -m mrrag COMMAND``.

Made to be read from top to bottom: one function a command, and the parser below them.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mrrag.errors import MRRAGError, SettingsError
from mrrag.files import ASSETS
from mrrag.types import BUNDLED, METHODS, Query, Weights

if TYPE_CHECKING:
    from mrrag.data.corpus import Corpus, Record
    from mrrag.pipeline import Pipeline
    from mrrag.retrieval.knowledge_base import KnowledgeBase

RUNS = Path("runs")


def ticker(items: Iterable[Any], total: int, label: str) -> Iterable[Any]:
    """A progress bar on stderr."""
    from tqdm import tqdm

    bar: Iterable[Any] = tqdm(items, total=total, desc=label, mininterval=2, file=sys.stderr)
    return bar


def device_for(heavy: bool) -> str:
    """Every GPU there is for a model that needs one; the CPU for the bundled one."""
    import torch

    return "auto" if heavy and torch.cuda.is_available() else "cpu"


def chosen_pipeline(args: argparse.Namespace, device: str | None = None) -> Pipeline:
    """The model and the knowledge base that the options name."""
    from mrrag.pipeline import load_pipeline

    return load_pipeline(
        args.assets,
        model=args.model,
        knowledge_base=args.kb,
        revision=args.revision,
        device=device or device_for(args.model != BUNDLED),
        vision_tower=args.tower,
        quantize=args.quantize,
    )


# Commands that answer


def ask(args: argparse.Namespace) -> None:
    """Answer one question about one image, three ways; or an exported case again."""
    from mrrag.case import Case, Settings
    from mrrag.data.images import load_image
    from mrrag.errors import SettingsError
    from mrrag.explain import explain
    from mrrag.pipeline import answer, find_evidence
    from mrrag.report.export import case_to_json, differences, read_case

    saved = None
    if args.saved is not None:
        saved = read_case(read_json(args.saved))
        question, settings, frame = saved.question, saved.settings, saved.frame
    elif args.question is None:
        raise SettingsError("There is no question. Give one, or an exported case with --from.")
    else:
        question, frame = args.question, 0
        settings = Settings(
            k=args.k,
            weights=None if args.weights is None else Weights(*args.weights),
            strength=args.strength,
            layers=None if args.layers is None else tuple(args.layers),
            form=args.form,
            noise=args.noise,
        )
    image = load_image(args.image, frame=frame)
    pipeline = chosen_pipeline(args)
    query = Query(image, question)
    evidence = find_evidence(pipeline, query, settings)
    *_, case = answer(pipeline, query, evidence, settings)
    assert isinstance(case, Case)
    case = explain(pipeline, query, case)
    exported = case_to_json(case, image)
    if args.html:
        from mrrag.report.case_page import case_to_html

        pixels = (image, pipeline.knowledge_base) if args.pixels else None
        args.html.write_text(case_to_html(case, exported, pixels), encoding="utf-8")
    if args.json:
        print(json.dumps(exported, ensure_ascii=False))
    else:
        print_case(case)
    if saved is not None:
        around, found = differences(saved, exported)
        for sentence in (*around, *found):
            print(f"differs: {sentence}", file=sys.stderr)
        if found:
            raise SettingsError("The case is not answered as it was; see above for what differs.")
        print("The answers are those of the exported case.", file=sys.stderr)


def print_case(case: Any) -> None:
    """A case as text."""
    from mrrag.study.tables import NAMES

    print("score = α·image-report + β·image-image + γ·question-report")
    for n, r in enumerate(case.retrieved):
        a, b, c = r.terms
        said = ""
        if case.influence:
            word, before, after = (
                case.influence.word, case.influence.before[n], case.influence.after[n],
            )  # fmt: skip
            said = f"  influence on P({word}) {before:+.3f} (RAG) {after:+.3f} (MR-RAG)"
        print(f"{r.rank:2d}. {r.score:.3f} = {a:+.3f} {b:+.3f} {c:+.3f}  λ {r.relevance:.2f}{said}")
        print(f"    {' '.join(r.document.report.split())}")
    print()
    for method in METHODS:
        answered = case.answers[method]
        print(
            f"{NAMES[method]:20s} P(yes) {answered.p_yes:.3f}  P(no) {answered.p_no:.3f}  "
            f"{answered.text}"
        )
    for warning in case.warnings.values():
        print(f"warning: {warning}")
    for note in case.notes:
        print(f"note: {note}")
    print("Research demonstration. Not a medical device.")


def read_json(path: Path) -> object:
    """A JSON file that a person names."""
    from mrrag.errors import SettingsError

    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SettingsError(
            f"{path.name} cannot be read as JSON ({type(error).__name__}). Check its path, or "
            "export the case again."
        ) from None


def evaluate(args: argparse.Namespace) -> None:
    """The paper's experiments: methods × K × irrelevant reports, and ablations."""
    from mrrag.pipeline import versions
    from mrrag.report.experiment_page import report_html
    from mrrag.study.experiment import answer_all, choose_questions, read_answers
    from mrrag.study.plan import ABLATIONS, Plan, cells_of
    from mrrag.study.tables import metric_rows, tables, text, write_csv, write_json

    ablations = ABLATIONS if args.ablations == [] else args.ablations or ()
    plan = Plan(
        ks=tuple(dict.fromkeys(args.k)),
        shares=tuple(dict.fromkeys(args.noise)),
        methods=tuple(dict.fromkeys(args.methods)),
        ablations=tuple(ablations),
        seed=args.seed,
        answer_tokens=args.answer_tokens,
    )
    part, parts, device, wait = processes()
    if part:  # the first may have to draw the bundled world
        wait()
    read = experiment_data(args)
    if not part:
        wait()
    skipped = read.skipped_questions
    questions = choose_questions(read.records, read.questions, args.split, args.questions, skipped)
    pipeline = chosen_pipeline(args, device)
    made_of = {
        "model": pipeline.backbone.fingerprint,
        "encoder": pipeline.encoder.fingerprint,
        "knowledge_base": pipeline.knowledge_base.fingerprint,
        "tower": args.tower,
        "quantize": args.quantize or "",
    }
    cells = cells_of(plan, pipeline.learnt, pipeline.backbone.layers)
    answer_all(
        pipeline,
        questions,
        cells,
        plan,
        args.folder,
        made_of=made_of,
        part=part,
        parts=parts,
        ticker=ticker,
    )
    wait()
    if part:
        return
    result, predictions = tables(
        questions,
        cells,
        read_answers(args.folder),
        plan,
        pipeline.knowledge_base,
        pipeline.learnt,
        made_of,
    )
    result["data"] = str(args.data) if args.data else "the bundled world"
    result["versions"] = versions(pipeline)
    config = {k: result[k] for k in ("data", "data_fingerprint", "split", "plan", "versions")}
    write_json(args.folder / "config.json", config | {"made_of": made_of})
    write_json(args.folder / "result.json", result)
    write_csv(args.folder / "predictions.csv", predictions)
    for path in (args.folder / "metrics.csv", args.csv):
        if path:
            write_csv(path, metric_rows(result))
    if args.output:
        write_json(args.output, result)
    for path in (args.folder / "report.html", args.html):
        if path:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(report_html(result), encoding="utf-8")
    print(json.dumps(result) if args.json else text(result))


def experiment_data(args: argparse.Namespace) -> Corpus:
    """The data set or VQA file that the options name; the bundled world without one."""
    from mrrag.data.corpus import read_corpus

    if args.data is not None:
        return read_corpus(args.data, args.layout, images=args.images)
    if args.split == "all":
        raise SettingsError("The bundled world is drawn a split at a time. Name one with --split.")
    return read_corpus(bundled_world(args.assets, args.split or "test"))


def processes() -> tuple[int, int, str | None, Callable[[], None]]:
    """This process's number, how many there are, its device, and how to wait for all.

    There are several under `accelerate launch`; one alone has the choice of device.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return 0, 1, None, lambda: None
    from datetime import timedelta

    import torch
    from accelerate import PartialState

    gpu = torch.cuda.is_available()
    state = PartialState(cpu=not gpu, timeout=timedelta(days=30))
    device = str(state.device) if gpu else "cpu"
    return state.process_index, state.num_processes, device, state.wait_for_everyone


def bundled_world(assets: Path, split: str) -> Path:
    """The world that the bundled model was made for, with the pictures of one split.

    Drawn again from its seed where it is not there yet, and gone on with where it is.
    """
    recipe = json.loads((assets / "world.json").read_text(encoding="utf-8"))
    directory = RUNS / f"phantoms-{recipe['seed']}-{recipe['patients']}"
    draw_world(directory, **recipe, only=split)
    return directory


def bench(args: argparse.Namespace) -> None:
    """Time three answers with their trace against transformers' own generate()."""
    from mrrag.bench.answers import Bench, bench_text
    from mrrag.bench.answers import bench as run_bench

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


def bench_search(args: argparse.Namespace) -> None:
    """Time a fused search at several sizes; with --data, the building of a knowledge base."""
    if args.data is not None:
        spare_the_cores()
    from mrrag.bench.search import bench_index, bench_search_text, random_paper_tower
    from mrrag.bench.search import bench_search as run_bench

    if args.data is None:
        rows = run_bench(args.documents, dimension=args.dimension)
        print(json.dumps(rows) if args.json else bench_search_text(rows))
        return
    from mrrag.data.corpus import read_corpus
    from mrrag.retrieval.encoders import load_encoder

    cases = [c for c in read_corpus(args.data).records if c.document.report][: args.cases]
    given = load_encoder(args.encoder or args.assets / "encoder")
    encoder = random_paper_tower(given.tokenizer) if args.random_paper_tower else given
    result = bench_index(cases, encoder)
    text = (
        "{cases} cases, {encoder}: the encoder alone {encoder_alone_per_s:.1f} a second, "
        "from files to a knowledge base {index_per_s:.1f} a second ({share:.0%})"
    )
    print(json.dumps(result) if args.json else text.format(**result))


def spare_the_cores() -> None:
    """Let torch's threads sleep, not spin, where other processes want the cores meanwhile.

    To be called before torch is imported.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def conformance(args: argparse.Namespace) -> None:
    """Read every file that pydicom ships, and any given, and compare the pictures."""
    from mrrag.bench.conformance import conform, files_in, shipped

    paths = files_in([shipped(), *args.folders])
    report_outcomes(list(ticker(conform(paths), len(paths), "reading")), args.json, paths=True)


def fuzz(args: argparse.Namespace) -> None:
    """Read mutated files: none may do more than be refused."""
    from mrrag.bench.conformance import fuzz as run_fuzz

    outcomes = list(ticker(run_fuzz(args.count, args.seed), args.count, "reading"))
    report_outcomes(outcomes, args.json, paths=False)


def report_outcomes(outcomes: list[Any], as_json: bool, *, paths: bool) -> None:
    """Print each file's outcome (of mutated ones, the failures) and the totals."""
    from dataclasses import asdict

    from mrrag.bench.conformance import FAILURES, totals

    failed = [outcome for outcome in outcomes if outcome.kind in FAILURES]
    shown = outcomes if paths else failed
    counts, slowest = totals(outcomes), max((o.seconds for o in outcomes), default=0.0)
    if as_json:
        rows = [asdict(outcome) for outcome in shown]
        print(json.dumps({"totals": counts, "slowest": slowest, "files": rows}))
    else:
        for o in shown:
            print(f"{o.name:44.44s} {o.syntax:34.34s} {o.kind:14s} {o.detail}")
        print("; ".join(f"{kind}: {n}" for kind, n in counts.items()), end="; ")
        print(f"slowest {slowest:.2f} s of CPU")
    if failed:
        raise MRRAGError(f"{len(failed)} of {len(outcomes)} files were not read as they must be.")


# Commands that make what the others use


def fetch(args: argparse.Namespace) -> None:
    """Download a public data set to a folder that the other commands read."""
    from tqdm import tqdm

    from mrrag.data.fetch import fetch_iu_xray

    bars: dict[str, Any] = {}

    def progress(name: str, done: int, total: int) -> None:
        if name not in bars:
            bars[name] = tqdm(desc=name, total=total, unit="B", unit_scale=True, mininterval=1)
        bars[name].update(done - bars[name].n)

    counts = fetch_iu_xray(args.directory, source=args.source, progress=progress)
    for bar in bars.values():
        bar.close()
    print(", ".join(f"{n} files in {args.directory / folder}" for folder, n in counts.items()))


def corpus(args: argparse.Namespace) -> None:
    """Read a data set, and say what it holds and what was skipped, by reason."""
    from mrrag.data.corpus import detect_layout, read_corpus

    layout = args.layout or detect_layout(args.path)
    print(
        corpus_text(read_corpus(args.path, layout, images=args.images), layout, args.list_skipped)
    )


def corpus_text(read: Corpus, layout: str, list_skipped: bool = False) -> str:
    """What a data set holds, in lines."""
    documents = [case.document for case in read.records]
    splits = Counter(case.split or "none" for case in read.records)
    by_type = Counter(question.answer_type for question in read.questions)
    lines = [
        f"layout          {layout}",
        f"source          {'; '.join(dict.fromkeys(d.source for d in documents)) or 'not stated'}",
        f"licence         {'; '.join(dict.fromkeys(d.licence for d in documents)) or 'not stated'}",
        f"cases           {len(documents)}",
        f"  with a report {sum(bool(d.report) for d in documents)}",
        f"patients        {len({d.patient for d in documents})}",
        f"studies         {len({d.study for d in documents})}",
        f"splits          {', '.join(f'{name} {n}' for name, n in splits.items())}",
        f"other images    {read.other_images} of these cases",
        f"questions       {len(read.questions)}"
        + "".join(f", {n} {name}" for name, n in sorted(by_type.items())),
    ]
    for what, skipped in (("row", read.skipped), ("question", read.skipped_questions)):
        for reason, rows in skipped.items():
            lines.append(f"skipped {what:8s}{len(rows):6d}  {reason}")
            if list_skipped:
                lines += [f"    {row}" for row in rows]
    return "\n".join(lines)


def draw_world(
    directory: Path,
    patients: int,
    seed: int,
    size: int,
    only: str | None = None,
    form: str = "iu-xray",
) -> None:
    """Write a phantom world; pictures that are there already are not drawn again."""
    from mrrag.phantom.write import LAYOUTS

    LAYOUTS[form](
        directory,
        patients=patients,
        seed=seed,
        size=size,
        only=only,
        progress=lambda items, total: ticker(items, total, "rendering"),
    )


def phantom(args: argparse.Namespace) -> None:
    """Draw a phantom world in the layout of IU-Xray, MIMIC-CXR-JPG or Harvard-FairVLMed."""
    draw_world(args.directory, args.patients, args.seed, args.size, form=args.form)


def train_retriever(args: argparse.Namespace) -> None:
    """Train the bi-tower: the bundled one, or one from public weights on your own data."""
    if args.image_tower or args.text_tower or args.output:
        train_own_retriever(args)
        return
    from mrrag.training.data import read_data_set
    from mrrag.training.recipe import make_retriever

    make_retriever(read_data_set(args.data), args.runs, args.assets, args.steps, args.fact_steps)


def train_own_retriever(args: argparse.Namespace) -> None:
    """From public weights, on any data set."""
    from mrrag.data.corpus import read_corpus, with_questions_as_reports
    from mrrag.retrieval.encoders import BERT, RESNET
    from mrrag.training.data import to_learn_from
    from mrrag.training.retriever import RetrieverOptions, train_from_public

    read = read_corpus(args.data, args.layout, images=args.images)
    data = to_learn_from(with_questions_as_reports(read) if args.vqa else read, args.data)
    lesson = RetrieverOptions(
        image_tower=args.image_tower or RESNET,
        text_tower=args.text_tower or BERT,
        image_revision=args.image_revision,
        text_revision=args.text_revision,
        dimension=args.dimension,
        image_size=args.image_size,
        text_tokens=args.text_tokens,
        steps=args.steps,
        fact_steps=args.fact_steps,
        batch=args.batch,
        learning_rate=args.learning_rate,
    )
    output = args.output or args.runs / "encoder"
    counts = ", ".join(f"{len(data.rows(name))} {name}" for name in ("train", "validation"))
    print(f"{len(data.records)} cases with a report: {counts}", flush=True)
    device = "cuda" if device_for(True) != "cpu" else "cpu"
    train_from_public(args.runs / f"retriever-{output.name}", data, lesson, output, device=device)
    print(f"Written to {output}; use it with `index --encoder {output}`.")


def index(args: argparse.Namespace) -> None:
    """Build a knowledge base, go on with a stopped one, or bring one up to date."""
    spare_the_cores()
    import torch
    from tqdm import tqdm

    from mrrag.retrieval.encoders import load_encoder
    from mrrag.retrieval.knowledge_base import build_knowledge_base, build_share, load_encoder_of

    cases = indexed_cases(args)
    directory, bundled = args.kb or args.assets / "knowledge_base", args.assets / "encoder"
    encoder = (
        load_encoder_of(directory, bundled)
        if args.update and args.encoder is None
        else load_encoder(
            args.encoder or bundled, revision=args.encoder_revision, base=args.encoder_base
        )
    )
    processes = int(os.environ.get("WORLD_SIZE", "1"))  # as `accelerate launch` says
    state = None
    if processes > 1:
        from accelerate import PartialState

        # They wait for the slowest of them, however long that takes.
        state = PartialState(cpu=not torch.cuda.is_available(), timeout=timedelta(days=30))
        encoder.to(state.device)
        together = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        args.workers = args.workers or max(1, (os.cpu_count() or 1) // together)
    elif torch.cuda.is_available():
        encoder.cuda()
    bar = tqdm(
        # A share is of whole batches.
        total=min(len(cases), args.batch * -(-len(cases) // (args.batch * processes))),
        disable=state is not None and not state.is_main_process,
        desc="indexing",
        unit="case",
        mininterval=2,
        file=sys.stderr,
    )

    def progress(done: int, total: int) -> None:
        if not bar.n and done > args.batch:  # a stopped build's, which say nothing of speed
            bar.initial = done
        bar.update(done - bar.n)

    settings = {
        "thumbnail_size": args.thumbnail_size,
        "batch": args.batch,
        "workers": args.workers,
        "overwrite": args.overwrite,
        "update": args.update,
        "progress": progress,
    }
    built: KnowledgeBase | None
    if state is None:
        built = build_knowledge_base(directory, cases, encoder, **settings)
    else:
        share = (state.process_index, state.num_processes)
        built = build_share(directory, cases, encoder, share, state.wait_for_everyone, **settings)
    bar.close()
    if built is None:
        return
    for reason, ids in built.manifest["skipped"].items():
        if ids:
            print(f"left out: {len(ids)}, {reason} (listed in {built.directory / 'manifest.json'})")
    patients = built.manifest["patients"]
    print(f"{len(built)} documents of {patients} patients, fingerprint {built.fingerprint[:12]}")


def indexed_cases(args: argparse.Namespace) -> Sequence[Record]:
    """The cases that go into a knowledge base: the training split's, unless told otherwise."""
    from mrrag.data.corpus import read_corpus, with_questions_as_reports

    if args.kb is None:  # the bundled world's, by its recipe
        from mrrag.training.data import read_data_set
        from mrrag.training.recipe import knowledge_base_rows

        data = read_data_set(args.data)
        return [data.records[n] for n in knowledge_base_rows(data)]
    read = read_corpus(args.data, args.layout, images=args.images)
    if args.vqa:
        read = with_questions_as_reports(read)
    splits = Counter(case.split for case in read.records)
    split = args.split or ("train" if splits["train"] else "all")
    cases = [case for case in read.records if split in ("all", case.split)]
    skipped = sum(map(len, read.skipped.values()))
    print(f"{len(cases)} of {len(read.records)} cases (split: {split}); {skipped} rows skipped")
    if not cases:
        has = ", ".join(f"{n} {name or 'without one'}" for name, n in splits.items())
        raise SettingsError(f"No case is of the split {split}. The data set has {has}.")
    if not any(case.document.report for case in cases):
        raise SettingsError(
            f"{args.data} has no reports. Give --vqa to let questions and their answers stand in."
        )
    return cases


def train_model(args: argparse.Namespace) -> None:
    """Train the small LLaVA: its tower, reading, weighing."""
    from mrrag.training.data import read_data_set
    from mrrag.training.recipe import make_model, make_reader, make_tower

    data = read_data_set(args.data)
    make_tower(data, args.runs, args.vision_steps)
    make_reader(data, args.runs, args.reading_steps)
    make_model(data, args.runs, args.assets, args.weighing_steps)


def train_adapter(args: argparse.Namespace) -> None:
    """Learn α, β, γ for a model on a knowledge base, from training questions."""
    from mrrag.training.learn import learn_weights

    print(learnt_from(args, "adapter", learn_weights))


def find_layers(args: argparse.Namespace) -> None:
    """Find a model's critical layers, and IFA's strength, with validation questions."""
    from mrrag.training.learn import learn_layers

    print(learnt_from(args, "layers", learn_layers, window=args.window, stride=args.stride))


def learnt_from(
    args: argparse.Namespace, step: str, learn: Callable[..., str], **options: int
) -> str:
    """Learn from the data set that the options name; what came of it, in words."""
    from mrrag.data.corpus import read_corpus
    from mrrag.learnt import learnt_path
    from mrrag.training.learn import learning_set
    from mrrag.training.recipe import bundled_pipeline

    path = learnt_path(args.model, args.kb, args.assets)
    bundled = path.parent == args.assets
    pipeline = bundled_pipeline(args.assets) if bundled else chosen_pipeline(args)
    read = read_corpus(args.data, args.layout, images=args.images)
    lessons = learning_set(read, pipeline.knowledge_base)
    for reason, count in lessons.left_out.items():
        print(f"left out: {count} questions {reason}", file=sys.stderr)
    folder = args.runs / (step if bundled else f"{step}-{path.parent.name}")
    asked = {"model": args.model, "questions": args.questions, "k": args.k}
    said = learn(pipeline, lessons, folder, path, **asked, **options, ticker=ticker)
    return f"{said}\nWritten to {path}; plots and figures are in {folder}."


def samples(args: argparse.Namespace) -> None:
    """Choose the sample cases on the held-out split, and write them."""
    from mrrag.phantom.world import draw_studies
    from mrrag.pipeline import load_pipeline
    from mrrag.training.data import read_data_set
    from mrrag.training.recipe import asked_of
    from mrrag.training.samples import choose, write_samples

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

    def in_a_layout(sub: argparse._ActionsContainer) -> None:
        sub.add_argument("--layout", help="which layout it has (default: found on disk)")
        sub.add_argument("--images", type=Path, help="where a VQA file's images lie")

    def reading(sub: argparse._ActionsContainer, required: bool = True, help: str = "") -> None:
        sub.add_argument(
            "--data", type=Path, required=required, help=help or "a data set, in any layout"
        )
        in_a_layout(sub)

    sub = asking("ask", ask)
    sub.add_argument("image", type=Path, help="a DICOM, PNG or JPEG file")
    sub.add_argument("question", nargs="?")
    sub.add_argument("--k", type=int, default=8, help="how many reports (%(default)s)")
    sub.add_argument("--weights", type=float, nargs=3, metavar=("ALPHA", "BETA", "GAMMA"))
    sub.add_argument("--strength", type=float, help="multiplies IFA's λ")
    sub.add_argument("--layers", type=int, nargs="*", help="where IFA acts, counted from 0")
    sub.add_argument(
        "--form", help="ifa, as in the paper, or balanced, as a prior (default: as learnt)"
    )
    sub.add_argument("--noise", type=int, default=0, help="irrelevant reports among the k")
    sub.add_argument("--json", action="store_true")
    sub.add_argument("--html", type=Path, metavar="FILE", help="also write the case as a page")
    sub.add_argument("--pixels", action="store_true", help="with the pictures in that page")
    sub.add_argument(
        "--from", dest="saved", type=Path, metavar="CASE.json",
        help="ask an exported case again, by its own question and settings",
    )  # fmt: skip

    from mrrag.study.plan import ABLATIONS, ANSWER_TOKENS, SHARES, WAYS

    sub = asking("evaluate", evaluate)
    reading(sub, required=False, help="a data set or VQA file (default: the bundled world)")
    sub.add_argument("--split", help='"all" or one (default: test where there is one, else all)')
    sub.add_argument("--questions", type=int, default=4000, help="at most so many (%(default)s)")
    sub.add_argument("--k", type=int, nargs="+", default=[8], help="how many reports (%(default)s)")
    sub.add_argument(
        "--noise", type=float, nargs="*", default=SHARES, metavar="SHARE",
        help="shares of them that are irrelevant (%(default)s)",
    )  # fmt: skip
    sub.add_argument("--methods", nargs="+", default=WAYS, choices=WAYS)
    sub.add_argument(
        "--ablations", nargs="*", choices=ABLATIONS, help="all of them, or those that are named"
    )
    sub.add_argument("--seed", type=int, default=0)
    sub.add_argument("--answer-tokens", type=int, default=ANSWER_TOKENS, help="where it is cut")
    folder = RUNS / "evaluate"
    sub.add_argument(
        "--folder", type=Path, default=folder,
        help="answers and tables; what it holds is not asked again (%(default)s)",
    )  # fmt: skip
    sub.add_argument("--csv", type=Path, metavar="FILE", help="also write the figures there")
    sub.add_argument("--html", type=Path, metavar="FILE", help="also write a report as a page")
    sub.add_argument("--output", type=Path, help="write the result as JSON")
    sub.add_argument("--json", action="store_true")

    sub = answering("bench", bench)
    sub.add_argument("--random-weights", choices=("7b",), help="this shape, and no download")
    sub.add_argument("--dtype", choices=("bfloat16", "float16", "float32"))
    sub.add_argument("--k", type=int, default=15)
    sub.add_argument("--new-tokens", type=int, default=64)
    sub.add_argument("--repeats", type=int, default=5)
    sub.add_argument("--json", action="store_true")

    sub = command("bench-search", bench_search)
    sizes = (10_000, 100_000, 377_110)
    sub.add_argument("--documents", type=int, nargs="+", default=sizes, help="(%(default)s)")
    sub.add_argument("--dimension", type=int, default=128, help="D of each of the two vectors")
    sub.add_argument("--data", type=Path, help="time indexing this data set instead")
    sub.add_argument("--cases", type=int, default=640, help="at most so many of it")
    sub.add_argument("--encoder", help="with this one (default: the bundled bi-tower)")
    sub.add_argument(
        "--random-paper-tower", action="store_true",
        help="with the paper's shapes and random weights; no download",
    )  # fmt: skip
    sub.add_argument("--json", action="store_true")

    from mrrag.data.fetch import OPENI

    sub = command("fetch", fetch)
    sub.add_argument("data_set", choices=("iu-xray",), help="the chest radiographs of Open-i")
    default = RUNS / "iu-xray"
    sub.add_argument("directory", type=Path, nargs="?", default=default, help="(%(default)s)")
    sub.add_argument("--source", default=OPENI, help="where the archives lie (%(default)s)")

    sub = command("corpus", corpus)
    sub.add_argument("path", type=Path, help="the folder of a data set, or a VQA file")
    in_a_layout(sub)
    sub.add_argument("--list-skipped", action="store_true", help="name every skipped row")
    sub = command("conformance", conformance)
    sub.add_argument("folders", type=Path, nargs="*", metavar="FOLDER", help="more files")
    sub.add_argument("--json", action="store_true")

    sub = command("fuzz", fuzz)
    sub.add_argument("--count", type=int, default=10_000)
    sub.add_argument("--seed", type=int, default=0)
    sub.add_argument("--json", action="store_true")

    sub = command("phantom", phantom)
    sub.add_argument("directory", type=Path)
    sub.add_argument("--patients", type=int, default=8000)
    sub.add_argument("--seed", type=int, default=2026)
    sub.add_argument("--size", type=int, default=512, help="rows and columns, px")
    forms = ("iu-xray", "mimic-cxr-jpg", "fairvlmed")
    sub.add_argument("--form", choices=forms, default=forms[0], help="chests, chests, eyes")

    def learning(name: str, run: Callable[[argparse.Namespace], None]) -> argparse.ArgumentParser:
        sub = command(name, run)
        sub.add_argument("--data", type=Path, required=True, help="what `phantom` wrote")
        sub.add_argument("--runs", type=Path, default=RUNS, help="checkpoints, figures")
        return sub

    sub = learning("train-retriever", train_retriever)
    sub.add_argument("--steps", type=int, default=1000, help="by pairs of image and report")
    sub.add_argument("--fact-steps", type=int, default=600, help="then by agreeing problems")
    own = sub.add_argument_group(
        "from public weights", "any of the first three; --data may then be in any layout"
    )
    own.add_argument("--image-tower", help="a hub name or folder (default: microsoft/resnet-50)")
    own.add_argument("--text-tower", help="the same (default: emilyalsentzer/Bio_ClinicalBERT)")
    own.add_argument("--output", type=Path, help="where to (default: runs/encoder)")
    own.add_argument("--image-revision", help="of the hub's repository")
    own.add_argument("--text-revision", help="of the hub's repository")
    in_a_layout(own)
    own.add_argument("--vqa", action="store_true", help="let questions stand in for reports")
    own.add_argument("--batch", type=int, default=96, help="(%(default)s)")
    own.add_argument("--learning-rate", type=float, default=1e-4, help="(%(default)s)")
    own.add_argument("--dimension", type=int, default=512, help="of the vectors (%(default)s)")
    own.add_argument("--image-size", type=int, default=224, help="px (%(default)s)")
    own.add_argument("--text-tokens", type=int, default=256, help="at most (%(default)s)")
    sub = command("index", index)
    reading(sub)
    sub.add_argument("--kb", type=Path, help="where to (default: the bundled one, by its recipe)")
    sub.add_argument("--vqa", action="store_true", help="let questions stand in for reports")
    sub.add_argument("--split", help='"all" or one (default: train where there is one, else all)')
    sub.add_argument(
        "--encoder",
        help="a folder, a hub name or a file of open_clip's training (default: the bundled "
        "bi-tower; with --update, that of the knowledge base)",
    )
    sub.add_argument("--encoder-revision", help="of the hub's repository")
    sub.add_argument(
        "--encoder-base", help="for a file: folder or hub name whose configuration is its own"
    )
    sub.add_argument("--thumbnail-size", type=int, default=256, help="longer side, px")
    sub.add_argument("--batch", type=int, default=32, help="cases encoded together")
    sub.add_argument("--workers", type=int, help="processes that open images (default: all cores)")
    sub.add_argument("--overwrite", action="store_true", help="replace a knowledge base")
    sub.add_argument("--update", action="store_true", help="add and remove, encode only the rest")
    sub = learning("train-model", train_model)
    sub.add_argument("--vision-steps", type=int, default=1000)
    sub.add_argument("--reading-steps", type=int, default=1000)
    sub.add_argument("--weighing-steps", type=int, default=700)

    def of_own(name: str, run: Callable[[argparse.Namespace], None], questions: int) -> Any:
        sub = asking(name, run)
        reading(sub)
        sub.add_argument("--runs", type=Path, default=RUNS, help="the run's folder is here")
        sub.add_argument("--questions", type=int, default=questions, help="at most (%(default)s)")
        sub.add_argument("--k", type=int, default=8, help="reports that are read (%(default)s)")
        return sub

    of_own("train-adapter", train_adapter, 1500)
    sub = of_own("find-layers", find_layers, 1000)
    sub.add_argument("--window", type=int, default=1, help="layers blocked together (%(default)s)")
    sub.add_argument("--stride", type=int, default=1, help="from window to window (%(default)s)")
    sub = learning("samples", samples)
    sub.add_argument("--directory", type=Path, default=Path("sample_cases"))
    sub.add_argument("--questions", type=int, default=600)
    return top


def main() -> int:
    """Run a command; an error that a person can mend is one line, and 1 is returned."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    logging.getLogger("faiss").setLevel(logging.WARNING)
    args = parser().parse_args()
    try:
        args.run(args)
    except MRRAGError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
