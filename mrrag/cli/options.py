"""Options that several commands share, and what they stand for."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mrrag.errors import SettingsError
from mrrag.files import ASSETS, read_json
from mrrag.retrieval.address import MilvusCollection, Place, place_of
from mrrag.types import BUNDLED

if TYPE_CHECKING:
    from mrrag.data.records import Corpus
    from mrrag.pipeline import Pipeline

RUNS = Path("runs")
# A copy of mrrag.data.corpus.LAYOUTS, which would double the time that --help takes.
LAYOUTS = "indiana, openi, r2gen, mimic-cxr, fairvlmed, rule, vqa-rad, slake, folder"

# A copy of the keys of mrrag.retrieval.milvus_client.INDEXES, for the same reason.
INDEX_TYPES = ("FLAT", "IVF_FLAT", "HNSW")

Commands = Any  # argparse's own type of a group of subparsers is private
Run = Callable[[argparse.Namespace], None]


def add_command(
    commands: Commands, name: str, run: Run, text: str, example: str
) -> argparse.ArgumentParser:
    """Add a command with its description, its example, and what every command takes."""
    summary = text.partition("\n\n")[0]
    command: argparse.ArgumentParser = commands.add_parser(
        name,
        help=" ".join(summary.split()),
        description=text,
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.set_defaults(run=run)
    command.add_argument(
        "--assets",
        type=Path,
        default=ASSETS,
        metavar="DIR",
        help="directory of the bundled model, encoder and knowledge base "
        "(default: the package's own)",
    )
    return command


def add_model(command: argparse.ArgumentParser) -> None:
    """Add the options that choose a model."""
    command.add_argument(
        "--model",
        default=BUNDLED,
        help='"bundled", a checkpoint directory, or a name on the Hugging Face hub '
        "(default: %(default)s)",
    )
    command.add_argument(
        "--quantize",
        choices=("int8", "int4"),
        help="quantise the weights to 8 or 4 bits, for a smaller GPU (needs bitsandbytes)",
    )


def add_pipeline(command: argparse.ArgumentParser) -> None:
    """Add the options that choose a model and a knowledge base."""
    add_model(command)
    add_kb(command)
    command.add_argument("--revision", help="branch, tag or commit of the model on the hub")
    command.add_argument(
        "--vision-tower",
        "--tower",
        default="checkpoint",
        metavar="SOURCE",
        help='vision tower: "checkpoint" (its own), "stock" (the CLIP that it names), or a '
        "directory or hub name (default: %(default)s)",
    )
    command.add_argument(
        "--adapter",
        metavar="SOURCE",
        help="LoRA adapter to merge into the model: a directory or hub name, in peft's format, as "
        "safetensors",
    )


def add_kb(command: argparse._ActionsContainer) -> None:
    """Add the option that names a knowledge base."""
    command.add_argument(
        "--kb",
        type=knowledge_base,
        metavar="KB",
        help="knowledge base: a folder, or milvus:URI/COLLECTION (default: the bundled one)",
    )


def knowledge_base(text: str) -> Place:
    """Return the folder or the collection of Milvus that ``--kb`` names."""
    try:
        return place_of(text)
    except SettingsError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def add_index_type(command: argparse._ActionsContainer) -> None:
    """Add the option of a collection's index."""
    command.add_argument(
        "--index-type",
        choices=INDEX_TYPES,
        help="index of a collection of Milvus (default: FLAT, which is exact; see docs/scale.md)",
    )


def check_index_type(chosen: str | None, place: Place) -> str:
    """Return the index of a collection; raise SettingsError where it goes with none."""
    if chosen is not None and not isinstance(place, MilvusCollection):
        raise SettingsError(
            f"--index-type is of a collection of Milvus, and {place} is a folder, whose index is "
            "always exact. Leave it out."
        )
    return chosen or INDEX_TYPES[0]


def add_layout(command: argparse._ActionsContainer) -> None:
    """Add the options that say how a data set is laid out."""
    command.add_argument(
        "--layout",
        metavar="NAME",
        help=f"layout of the data set: {LAYOUTS} (default: recognised from its files)",
    )
    command.add_argument(
        "--images",
        type=Path,
        metavar="DIR",
        help="image directory of a VQA file (default: looked for beside the file)",
    )
    command.add_argument(
        "--views",
        choices=("frontal", "all"),
        help="one frontal picture of each study, or every picture (default: frontal)",
    )


def add_data(
    command: argparse._ActionsContainer,
    required: bool = True,
    text: str = "data set, in any of the supported layouts",
) -> None:
    """Add the options that name a data set."""
    command.add_argument("--data", type=Path, required=required, metavar="PATH", help=text)
    add_layout(command)


def add_ask(command: argparse._ActionsContainer) -> None:
    """Add the option that names the questions about a data set."""
    command.add_argument(
        "--ask",
        type=Path,
        metavar="FILE",
        help="questions about the data set, such as `mrrag questions` writes "
        "(default: its own, or questions.jsonl in its directory)",
    )


def add_questions(command: argparse.ArgumentParser, count: int, of: str = "") -> None:
    """Add how many questions are asked, and with how many reports."""
    command.add_argument(
        "--questions",
        type=int,
        default=count,
        metavar="N",
        help=f"maximum number of questions{of} (default: %(default)s)",
    )
    command.add_argument(
        "--k", type=int, default=8, help="reports in the prompt (default: %(default)s)"
    )


def add_json(command: argparse.ArgumentParser) -> None:
    """Add ``--json``."""
    command.add_argument("--json", action="store_true", help="print JSON instead of text")


def load_chosen(args: argparse.Namespace, device: str | None = None) -> Pipeline:
    """Load the model and the knowledge base that the options name."""
    from mrrag.loading import load_pipeline

    return load_pipeline(
        args.assets,
        model=args.model,
        knowledge_base=args.kb,
        revision=args.revision,
        device=device,
        vision_tower=args.vision_tower,
        quantize=args.quantize,
        adapter=args.adapter,
    )


def read_chosen(args: argparse.Namespace) -> Corpus:
    """Read the data set that the options name; with ``--vqa``, questions as reports.

    With ``--ask``, its questions are those of that file.
    """
    from mrrag.data.corpus import read_corpus, with_questions, with_questions_as_reports

    read = read_corpus(args.data, args.layout, images=args.images, views=args.views or "frontal")
    if getattr(args, "ask", None) is not None:
        read = with_questions(read, args.ask)
    return with_questions_as_reports(read) if getattr(args, "vqa", False) else read


def ticker(items: Iterable[Any], total: int, label: str) -> Iterable[Any]:
    """Return the items with a progress bar on stderr."""
    from tqdm import tqdm

    bar: Iterable[Any] = tqdm(items, total=total, desc=label, mininterval=2, file=sys.stderr)
    return bar


def draw_world(
    directory: Path,
    patients: int,
    seed: int,
    size: int,
    only: str | None = None,
    layout: str = "iu-xray",
) -> None:
    """Write a phantom world; pictures that exist already are not drawn again."""
    from mrrag.phantom.write import write_data_set

    write_data_set(
        directory,
        layout,
        patients=patients,
        seed=seed,
        size=size,
        only=only,
        progress=lambda items, total: ticker(items, total, "rendering"),
    )


def world_recipe(assets: Path) -> dict[str, Any]:
    """Return the size and the seed of the world that the bundled model was trained on."""
    path = assets / "world.json"
    recipe: dict[str, Any] = read_json(
        path, lambda why: SettingsError(f"{path} cannot be read ({why}). Restore the file.")
    )
    return recipe


def bundled_world(assets: Path, split: str) -> Path:
    """Return the directory of the bundled world with the pictures of one split.

    It is drawn from its seed where it does not exist yet, and resumed where it is partial.
    """
    recipe = world_recipe(assets)
    directory = RUNS / f"phantoms-{recipe['seed']}-{recipe['patients']}"
    draw_world(directory, **recipe, only=split)
    return directory


@dataclass(frozen=True)
class Process:
    """This process's place among those of ``accelerate launch``; alone, the first of one.

    Attributes
    ----------
    device : str or None
        This process's device; None, to choose one, where it is alone.
    local : int
        How many of the processes run on this machine.
    wait : callable
        Returns once all processes have called it.
    """

    index: int = 0
    count: int = 1
    device: str | None = None
    local: int = 1
    wait: Callable[[], None] = lambda: None


def this_process() -> Process:
    """Return this process's place among those that ``accelerate launch`` started."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Process()
    from datetime import timedelta

    import torch
    from accelerate import PartialState

    gpu = torch.cuda.is_available()
    # They wait for the slowest of them, however long that takes.
    state = PartialState(cpu=not gpu, timeout=timedelta(days=30))
    return Process(
        state.process_index,
        state.num_processes,
        str(state.device) if gpu else "cpu",
        int(os.environ.get("LOCAL_WORLD_SIZE", "1")),
        state.wait_for_everyone,
    )


def spare_the_cores() -> None:
    """Let idle torch threads sleep, not spin, where other processes need the cores.

    Call it before torch is imported.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def print_json(value: object) -> None:
    """Print a value as one line of JSON."""
    print(json.dumps(value, ensure_ascii=False))
