"""All that is learnt: ``phantom``, ``train-*``, ``measure-world``, ``find-layers``, ``samples``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from mrrag.cli.options import (
    RUNS,
    Commands,
    Run,
    add_ask,
    add_command,
    add_data,
    add_pipeline,
    add_questions,
    draw_world,
    load_chosen,
    read_chosen,
    ticker,
    world_recipe,
)
from mrrag.errors import SettingsError
from mrrag.files import ASSETS

TRAINING = (
    *("start", "revision", "image_tower", "image_revision", "text_tower", "text_revision"),
    *("dimension", "image_size", "text_tokens", "vocabulary", "steps", "fact_steps"),
    *("fact_weight", "batch", "learning_rate", "patience", "seed"),
)
RECIPE_OPTIONS = ("steps", "fact_steps")
WORLDS = ("iu-xray", "mimic-cxr-jpg", "fairvlmed")


def add_commands(commands: Commands) -> None:
    """Add the commands that make what the others use."""
    _add_phantom(commands)
    _add_train_retriever(commands)
    _add_train_model(commands)
    _add_measure_world(commands)
    _add_train_adapter(commands)
    _add_find_layers(commands)
    _add_samples(commands)


def _add_phantom(commands: Commands) -> None:
    phantom = add_command(
        commands,
        "phantom",
        run_phantom,
        "Draw the phantom world: synthetic radiographs with reports and questions.\n\n"
        "Drawing that was stopped is resumed.",
        "mrrag phantom runs/phantoms --patients 100",
    )
    phantom.add_argument("directory", type=Path, help="output directory")
    phantom.add_argument(
        "--patients",
        type=int,
        default=8000,
        metavar="N",
        help="number of patients (default: %(default)s)",
    )
    phantom.add_argument(
        "--seed", type=int, default=2026, help="seed of the world (default: %(default)s)"
    )
    phantom.add_argument(
        "--size",
        type=int,
        default=512,
        metavar="PX",
        help="rows and columns of an image, in pixels (default: %(default)s)",
    )
    phantom.add_argument(
        "--layout",
        choices=WORLDS,
        default=WORLDS[0],
        help="output layout: IU-Xray or MIMIC-CXR-JPG (chest), FairVLMed (fundus) "
        "(default: %(default)s)",
    )


def _add_training(
    commands: Commands, name: str, run: Run, text: str, example: str
) -> argparse.ArgumentParser:
    command = add_command(commands, name, run, text, example)
    command.add_argument(
        "--data", type=Path, required=True, metavar="DIR", help="directory that `phantom` wrote"
    )
    _add_runs(command)
    return command


def _add_runs(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--runs",
        type=Path,
        default=RUNS,
        metavar="DIR",
        help="directory of run directories: checkpoints, figures (default: %(default)s)",
    )


def _add_learning(
    commands: Commands, name: str, run: Run, text: str, example: str, questions: int
) -> argparse.ArgumentParser:
    command = add_command(commands, name, run, text, example)
    add_pipeline(command)
    add_data(command)
    add_ask(command)
    _add_runs(command)
    add_questions(command, questions)
    return command


def _add_train_retriever(commands: Commands) -> None:
    train = add_command(
        commands,
        "train-retriever",
        run_train_retriever,
        "Train an encoder for images and reports on your own data.\n\n"
        "Training that was stopped is resumed by the same command. It ends early when\n"
        "validation no longer improves, and the best weights are kept. The included encoder\n"
        "is left alone, except with --recipe bundled.",
        "mrrag train-retriever --data DATA --output runs/encoder",
    )
    add_data(train)
    add_ask(train)
    train.add_argument(
        "--vqa",
        action="store_true",
        help="use questions and their answers as reports, where a data set has none",
    )
    _add_runs(train)
    train.add_argument(
        "--output", type=Path, metavar="DIR", help="output directory (default: RUNS/encoder)"
    )
    train.add_argument(
        "--recipe",
        choices=("bundled",),
        help="make the included encoder again, on the world that `phantom` drew, and write it\n"
        "over ASSETS/encoder; besides it only --data, --runs, --assets and the steps",
    )
    _add_start(train)
    _add_settings(train)


def _add_start(train: argparse.ArgumentParser) -> None:
    start = train.add_argument_group(
        "start",
        "--start small: a small encoder with random weights. --start bundled: the included\n"
        "encoder's image half, and a new text half with a tokenizer of your texts.\n"
        "--start SOURCE: a directory, file or hub name of an encoder, such as BiomedCLIP or a\n"
        "ResNet-50 of open_clip; all its weights go on. --start public, or one of\n"
        "--image-tower and --text-tower: a public ResNet and BERT.",
    )
    start.add_argument("--start", metavar="START", help="where training starts (default: bundled)")
    start.add_argument("--revision", help="branch, tag or commit of --start on the hub")
    towers = (("image", "microsoft/resnet-50"), ("text", "emilyalsentzer/Bio_ClinicalBERT"))
    for kind, default in towers:
        start.add_argument(
            f"--{kind}-tower",
            metavar="SOURCE",
            help=f"hub name or directory of the {kind} encoder (default: {default})",
        )
        start.add_argument(
            f"--{kind}-revision", help=f"branch, tag or commit of the {kind} encoder"
        )
    sizes = (
        ("dimension", "D", "length of the vectors (default: small 128, public 512)"),
        ("image-size", "PX", "rows and columns of an image (default: small 128, public 224)"),
        ("text-tokens", "N", "maximum length of a report (default: small 192, public 256)"),
        ("vocabulary", "N", "tokens of a new tokenizer, at most (default: 3000)"),
    )
    for name, unit, text in sizes:
        start.add_argument(f"--{name}", type=int, metavar=unit, help=text)


def _add_settings(train: argparse.ArgumentParser) -> None:
    group = train.add_argument_group("settings of the training")
    settings: tuple[tuple[str, str, Callable[[str], int | float], str], ...] = (
        ("steps", "N", int, "steps on pairs of image and report (default: 1200)"),
        ("fact-steps", "N", int, "further steps on common findings alone (default: 0)"),
        ("fact-weight", "W", float, "weight of common findings in the former (default: 1)"),
        ("batch", "N", int, "studies in a batch (default: 96)"),
        ("learning-rate", "RATE", float, "peak (default: small and bundled 0.001, else 0.0001)"),
        (
            "patience",
            "N",
            int,
            "end after N of 20 evaluations without a gain; 0: never (default: 6)",
        ),
        ("seed", "N", int, "seed of weights and batches (default: 0)"),
    )
    for name, unit, kind_of, text in settings:
        group.add_argument(f"--{name}", type=kind_of, metavar=unit, help=text)


def _add_train_model(commands: Commands) -> None:
    train = _add_training(
        commands,
        "train-model",
        run_train_model,
        "Train the bundled vision-language model, in three stages.\n\n"
        "The stages are its vision tower, reading a report, and describing a picture with\n"
        "reports of its own study. Training that was stopped is resumed.",
        "mrrag train-model --data runs/phantoms",
    )
    for stage, steps in (("vision", 1000), ("reading", 600), ("describing", 1450)):
        train.add_argument(
            f"--{stage}-steps",
            type=int,
            default=steps,
            metavar="N",
            help=f"steps of the {stage} stage (default: %(default)s)",
        )
    train.add_argument(
        "--seed",
        type=int,
        default=0,
        metavar="N",
        help="seed of weights and batches; each seed needs its own --runs (default: %(default)s)",
    )


def _add_train_adapter(commands: Commands) -> None:
    _add_learning(
        commands,
        "train-adapter",
        run_train_adapter,
        "Learn α, β, γ for a model on a knowledge base, from yes/no training questions.\n\n"
        "They are written to the knowledge base's learnt.json, which page and commands use.",
        "mrrag train-adapter --data VQA_RAD --kb runs/kb",
        questions=1500,
    )


def _add_find_layers(commands: Commands) -> None:
    layers = _add_learning(
        commands,
        "find-layers",
        run_find_layers,
        "Find the layers in which a model reads reports, and the form and strength of IFA\n"
        "that help most on validation questions.\n\n"
        "They are written to the knowledge base's learnt.json, which page and commands use.",
        "mrrag find-layers --data VQA_RAD --kb runs/kb --window 4 --stride 2",
        questions=1000,
    )
    layers.add_argument(
        "--window",
        type=int,
        default=1,
        metavar="N",
        help="layers that are blocked together (default: %(default)s)",
    )
    layers.add_argument(
        "--stride",
        type=int,
        default=1,
        metavar="N",
        help="layers from one window to the next (default: %(default)s)",
    )


def _add_samples(commands: Commands) -> None:
    samples = _add_training(
        commands,
        "samples",
        run_samples,
        "Choose the sample cases from the held-out split, and write them.",
        "mrrag samples --data runs/phantoms --questions 400",
    )
    samples.add_argument(
        "--directory",
        type=Path,
        default=Path("sample_cases"),
        metavar="DIR",
        help="output directory (default: %(default)s)",
    )
    samples.add_argument(
        "--questions",
        type=int,
        default=600,
        metavar="N",
        help="maximum number of questions to choose from (default: %(default)s)",
    )


def _add_measure_world(commands: Commands) -> None:
    add_command(
        commands,
        "measure-world",
        run_measure_world,
        "Summarise the pictures that the included model was trained on.\n\n"
        "Every picture is then held against them, and answers about one that is unlike them\n"
        "carry a warning. `train-model` does this at its end.",
        "mrrag measure-world",
    )


def run_phantom(args: argparse.Namespace) -> None:
    """Draw a phantom world."""
    draw_world(args.directory, args.patients, args.seed, args.size, layout=args.layout)


def run_train_retriever(args: argparse.Namespace) -> None:
    """Train an encoder of one's own, or make the bundled one again."""
    given = {name: value for name in TRAINING if (value := getattr(args, name)) is not None}
    if args.recipe:
        _make_bundled_retriever(args, given)
        return
    import torch

    from mrrag.training.data import split_for_training
    from mrrag.training.retriever import check_options, train_tower
    from mrrag.training.starts import options_for, start_tower

    public = args.image_tower or args.text_tower
    options = options_for(str(given.get("start") or ("public" if public else "bundled")), given)
    check_options(options)
    if args.assets != ASSETS and options.start != "bundled":
        raise SettingsError("--assets goes with --start bundled or --recipe bundled. Leave it out.")
    output = args.output or args.runs / "encoder"
    if output.resolve() == Path(options.start).resolve():
        raise SettingsError(f"{output} is also where training starts. Choose another --output.")
    data = split_for_training(read_chosen(args), args.data)
    tower, kept = start_tower(options, data, output.resolve().name, assets=args.assets)
    counts = ", ".join(f"{len(data.rows(name))} {name}" for name in ("train", "validation"))
    print(f"{len(data.records)} cases with a report: {counts}\nStart: {kept}.", flush=True)
    tower.to("cuda" if torch.cuda.is_available() else "cpu")
    said = train_tower(args.runs / f"retriever-{tower.name}", tower, data, options, output)
    print(f"{said}\nWritten to {output}; use it with `index --encoder {output}`.")


def _make_bundled_retriever(args: argparse.Namespace, given: dict[str, object]) -> None:
    from mrrag.training.data import read_data_set
    from mrrag.training.recipe import make_retriever

    others = {name: getattr(args, name) for name in ("layout", "images", "views", "output")}
    others |= {"vqa": args.vqa or None, "views": args.views, "ask": args.ask}
    named = [*(k for k, v in others.items() if v is not None), *given]
    refused = [f"--{name.replace('_', '-')}" for name in named if name not in RECIPE_OPTIONS]
    if refused:
        raise SettingsError(
            f"{', '.join(refused)} cannot be used with --recipe bundled, which fixes them. "
            "Leave out either."
        )
    data = read_data_set(args.data)
    make_retriever(data, args.runs, args.assets, args.steps, args.fact_steps)
    print(f"Written to {args.assets / 'encoder'}, the included encoder.")


def run_train_model(args: argparse.Namespace) -> None:
    """Train the bundled model."""
    from mrrag.training.data import read_data_set
    from mrrag.training.loop import claim_run
    from mrrag.training.recipe import make_model, make_reader, make_tower, written_anew

    data = read_data_set(args.data)
    # Finished stages are not repeated, so another seed would silently get this one's weights.
    claim_run(args.runs / "model", config={}, seed=args.seed, data=data.describe())
    world = world_recipe(args.assets)
    anew = written_anew(data, world["patients"], world["seed"])
    make_tower(data, args.runs, args.vision_steps, args.seed)
    make_reader(data, args.runs, args.reading_steps, args.seed)
    make_model(data, args.runs, args.assets, anew, args.describing_steps, args.seed)
    run_measure_world(args)


def run_measure_world(args: argparse.Namespace) -> None:
    """Summarise the pictures that the included model was trained on."""
    from mrrag.training.recipe import make_world

    world = make_world(args.assets)
    print(f"Written to {args.assets / 'llava'}: the included model knows {world.trained_on}.")


def run_train_adapter(args: argparse.Namespace) -> None:
    """Learn α, β, γ."""
    from mrrag.training.learn import learn_weights

    print(_learn(args, "adapter", learn_weights))


def run_find_layers(args: argparse.Namespace) -> None:
    """Find the critical layers, and IFA's form and strength."""
    from mrrag.training.learn import learn_layers

    print(_learn(args, "layers", learn_layers, window=args.window, stride=args.stride))


def _learn(args: argparse.Namespace, step: str, learn: Callable[..., str], **options: int) -> str:
    """Learn from the data set that the options name; return what was found, in words."""
    from mrrag.learnt import learnt_path
    from mrrag.training.learn import split_questions
    from mrrag.training.recipe import bundled_pipeline

    path = learnt_path(args.model, args.kb, args.assets)
    bundled = path.parent == args.assets
    if bundled and args.adapter:
        raise SettingsError(
            "What is learnt with --adapter is not the included model's. Name where to keep it with "
            "--kb."
        )
    pipeline = bundled_pipeline(args.assets) if bundled else load_chosen(args)
    split = split_questions(read_chosen(args), pipeline.knowledge_base)
    for reason, count in split.left_out.items():
        print(f"left out: {count} questions {reason}", file=sys.stderr)
    folder = args.runs / (step if bundled else f"{step}-{path.parent.name}")
    asked = {"model": args.model, "questions": args.questions, "k": args.k}
    said = learn(pipeline, split, folder, path, **asked, **options, ticker=ticker)
    return f"{said}\nWritten to {path}; plots and figures are in {folder}."


def run_samples(args: argparse.Namespace) -> None:
    """Choose the sample cases, and write them."""
    from mrrag.loading import load_pipeline
    from mrrag.phantom.world import draw_studies
    from mrrag.study.evaluation import encode_items
    from mrrag.training.data import read_data_set
    from mrrag.training.samples import choose, write_samples

    pipeline = load_pipeline(args.assets)
    data = read_data_set(args.data)
    test = data.subset(data.rows("test"))
    items = encode_items(
        pipeline, test.records, test.questions, limit=args.questions, ticker=ticker
    )
    recipe = world_recipe(args.assets)
    chosen = choose(pipeline, items, ticker=ticker)
    write_samples(args.directory, chosen, draw_studies(recipe["patients"], recipe["seed"]))
    print(f"{len(chosen)} sample cases in {args.directory}")
