"""Serve the page: ``python app.py``, then open the address it prints."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import tempfile
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING

from mrrag.errors import MRRAGError
from mrrag.types import BUNDLED, LLAVA_MED

if TYPE_CHECKING:
    from app.choice import Choice
    from mrrag.pipeline import Pipeline

HERE = Path(__file__).resolve().parent


def main() -> int:
    """Serve the page at once, then load the model; return the exit status."""
    parser = argparse.ArgumentParser(
        description="Serve the MR-RAG page.",
        epilog="Set MRRAG_USER and MRRAG_PASSWORD to ask for a login.",
    )
    parser.add_argument(
        "--host",
        default=os.environ.get("GRADIO_SERVER_NAME", "127.0.0.1"),
        help="address to listen on (default: 127.0.0.1, or GRADIO_SERVER_NAME as on a Space)",
    )
    parser.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="a name that people reach this machine by, beside --host and its own names",
    )
    parser.add_argument("--port", type=int, help="port (default: the first free one from 7860)")
    parser.add_argument(
        "--assets", type=Path, default=HERE / "assets", help="model, encoder and knowledge base"
    )
    parser.add_argument(
        "--model",
        metavar="NAME_OR_FOLDER",
        help=f"a checkpoint on the hub or in a folder, or {BUNDLED!r} (default: {LLAVA_MED} where "
        f"there is a CUDA GPU, else {BUNDLED!r})",
    )
    parser.add_argument(
        "--kb",
        type=Path,
        action="append",
        metavar="DIR",
        help="a knowledge base of your own; given more than once, the page lets one choose",
    )
    parser.add_argument("--revision", help="of the hub's repository: a branch, tag or commit")
    parser.add_argument(
        "--tower",
        default="checkpoint",
        help="whose vision tower: 'checkpoint' (default), 'stock' for the CLIP that it began "
        "from, or a name or folder",
    )
    parser.add_argument("--quantize", choices=("int8", "int4"), help="for a GPU with less memory")
    arguments = parser.parse_args()
    login = (os.environ.get("MRRAG_USER", ""), os.environ.get("MRRAG_PASSWORD", ""))
    if any(login) and not all(login):
        parser.error("MRRAG_USER and MRRAG_PASSWORD go together: set both, or neither.")
    arguments.login = login if all(login) else None
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")

    # Ended by a signal we still leave in order, so that the folder below goes.
    for name in ("SIGTERM", "SIGINT", "SIGHUP"):
        if hasattr(signal, name):  # Windows has no SIGHUP
            signal.signal(getattr(signal, name), lambda *_: sys.exit(0))
    # Uploads pass through this folder, which only this user can read; it goes when we go.
    with tempfile.TemporaryDirectory(prefix="mr-rag-") as private:
        tempfile.tempdir = os.environ["GRADIO_TEMP_DIR"] = private
        os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
        os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
        return serve(arguments)


def serve(arguments: argparse.Namespace) -> int:
    """Choose the model, serve until interrupted."""
    from app.choice import choose_model, has_cuda, instead_of, on_zero_gpu

    zero_gpu = on_zero_gpu()
    if zero_gpu:
        import spaces  # noqa: F401 (before torch, which it prepares)
    choice = choose_model(arguments.model, cuda=zero_gpu or has_cuda(), zero_gpu=zero_gpu)
    folder = None
    try:
        if choice.model != BUNDLED:
            try:
                folder = prepare(choice, arguments)
            except MRRAGError as error:
                choice = instead_of(choice, error)
                print(choice.why, flush=True)
        if choice.model == BUNDLED:
            os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
        run(choice, folder, arguments, zero_gpu=zero_gpu)
    except MRRAGError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def prepare(choice: Choice, arguments: argparse.Namespace) -> Path:
    """Download a checkpoint where need be, and see that it can be loaded here."""
    from mrrag.model.checkpoint import check_loadable, find_checkpoint

    folder = find_checkpoint(
        choice.model, arguments.revision, announce=lambda said: print(said, flush=True)
    )
    check_loadable(folder, device=choice.device, quantize=arguments.quantize)
    return folder


def run(
    choice: Choice, folder: Path | None, arguments: argparse.Namespace, *, zero_gpu: bool
) -> None:
    """Serve the page at once, then load the model; on ZeroGPU the other way round."""
    # Imported here, after the environment is set, since gradio reads it as it is imported.
    from app.about import read_about
    from app.launch import launch_options, name_failures
    from app.page import Offer, build_page
    from app.sections.case import load_samples

    assets = arguments.assets
    bases: list[Path | None] = arguments.kb or [None]

    def load() -> list[Pipeline]:
        # Torch takes seconds to import; the page is already there while it does.
        from mrrag.pipeline import load_pipeline, with_knowledge_base

        first = load_pipeline(
            assets,
            model=choice.model,
            knowledge_base=bases[0],
            revision=arguments.revision,
            device=choice.device,
            tower=arguments.tower,
            quantize=arguments.quantize,
        )
        rest = [
            with_knowledge_base(first, b, assets=assets, model=choice.model) for b in bases[1:] if b
        ]
        return [first, *rest]

    abouts = [
        read_about(
            assets,
            model=choice.model,
            folder=folder,
            knowledge_base=base,
            number=number,
            why=choice.why,
        )
        for number, base in enumerate(bases)
    ]
    offers = [Offer(about, Future()) for about in abouts]

    def ready() -> None:
        for offer, pipeline in zip(offers, load(), strict=True):
            offer.engine.set_result(pipeline)

    if zero_gpu:
        from app.zero_gpu import lend

        ready()
        # A Space that could borrow nothing is ended, so this is there for either model.
        borrowing = [offer._replace(answer=lend(offer.engine.result())) for offer in offers]
        offers = offers if choice.model == BUNDLED else borrowing
    page = build_page(
        offers[0].about,
        load_samples(HERE / "sample_cases"),
        offers[0].engine,
        offers[0].answer,
        offers[1:],
    )
    options = launch_options(arguments.host, arguments.port, arguments.allow_host, arguments.login)
    name_failures()
    _, address, _ = page.launch(**options, prevent_thread_lock=True)
    try:
        if not zero_gpu:
            print(f"MR-RAG is at {address} (loading the model; stop with Ctrl-C)", flush=True)
            ready()
        print(f"The model is ready, at {address}.", flush=True)
        page.block_thread()
    finally:
        page.close(verbose=False)


if __name__ == "__main__":
    sys.exit(main())
