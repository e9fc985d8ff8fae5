"""Serve the page: options, choice of the model, and loading it while the page is served."""

from __future__ import annotations

import argparse
import importlib.util
import ipaddress
import os
import re
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from app.about import About, read_about
from app.choice import Choice, Offer, choose_model, further_models, has_cuda, instead_of
from mrrag.cli.options import knowledge_base
from mrrag.data.dicomweb_request import Archive, archive_at, log_no_addresses
from mrrag.errors import MRRAGError
from mrrag.files import ASSETS
from mrrag.retrieval.address import Place
from mrrag.types import BUNDLED, LLAVA_MED

if TYPE_CHECKING:
    from app.backend import Backend
    from mrrag.pipeline import Pipeline

SAMPLES = Path(__file__).resolve().parents[1] / "sample_cases"
EPILOG = """\
example, over your own reports and with a login:
  MRRAG_USER=reader MRRAG_PASSWORD=... python app.py --kb runs/kb --port 8000

Set MRRAG_USER and MRRAG_PASSWORD to ask visitors for a login.
"""


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the options of the command line; ``login`` is the user and password, or None."""
    parser = argparse.ArgumentParser(
        description="Serve the MR-RAG page.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_address(parser)
    add_model(parser)
    add_programs(parser)
    add_archive(parser)
    parsed = parser.parse_args(arguments)
    login = (os.environ.get("MRRAG_USER", ""), os.environ.get("MRRAG_PASSWORD", ""))
    if any(login) and not all(login):
        parser.error("MRRAG_USER and MRRAG_PASSWORD go together: set both, or neither.")
    parsed.login = login if all(login) else None
    parsed.archive = archive_of(parser, parsed)
    if parsed.mcp and importlib.util.find_spec("mcp") is None:
        parser.error('--mcp needs the package mcp. Install it: pip install "mcp>=1.21,<2"')
    parsed.api = parsed.api or parsed.mcp
    return parsed


def add_address(parser: argparse.ArgumentParser) -> None:
    """Add the options of where the page is served."""
    parser.add_argument(
        "--host",
        default=os.environ.get("GRADIO_SERVER_NAME", "127.0.0.1"),
        help="address to listen on (default: GRADIO_SERVER_NAME, else 127.0.0.1)",
    )
    parser.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="accept requests to this host name, besides --host and the machine's own names; "
        "repeatable",
    )
    parser.add_argument("--port", type=int, help="port (default: the first free one from 7860)")
    parser.add_argument(
        "--root-path",
        type=root_path,
        default=os.environ.get("GRADIO_ROOT_PATH", ""),
        metavar="PATH",
        help="path under which a proxy serves the page, such as /xray (default: GRADIO_ROOT_PATH, "
        "else none)",
    )


def root_path(text: str) -> str:
    """Return the path under which a proxy serves the page, without a slash at its end.

    Raises
    ------
    argparse.ArgumentTypeError
        If it is no path; gradio would then serve a page that does not work.
    """
    path = text.rstrip("/")
    if path and not re.fullmatch(r"(https?://[\w.:\[\]-]+)?(/[\w.~-]+)*", path, re.ASCII):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a path. It begins with / and has letters, digits and - . _ ~ only, "
            "such as /xray; or it is a whole address, such as https://example.org/xray."
        )
    return path


def add_model(parser: argparse.ArgumentParser) -> None:
    """Add the options of the model and the knowledge bases."""
    parser.add_argument(
        "--assets",
        type=Path,
        default=ASSETS,
        help="folder of the bundled model, encoder and knowledge base (default: %(default)s)",
    )
    parser.add_argument(
        "--model",
        action="append",
        default=[],
        metavar="NAME_OR_FOLDER",
        help=f"a checkpoint on the hub or in a folder, or {BUNDLED!r}; repeatable, visitors may "
        f"have the others loaded (default: {LLAVA_MED} on a CUDA GPU, else {BUNDLED!r})",
    )
    parser.add_argument(
        "--kb",
        type=knowledge_base,
        action="append",
        metavar="KB",
        help="a knowledge base of your own: a folder, or milvus:URI/COLLECTION (see "
        "docs/scale.md); repeatable, visitors then choose one (default: the bundled one)",
    )
    parser.add_argument("--revision", help="branch, tag or commit of the first model's repository")
    parser.add_argument(
        "--vision-tower",
        "--tower",
        default="checkpoint",
        help="vision tower: 'checkpoint' (default), 'stock' for the CLIP that training started "
        "from, or a name or folder",
    )
    parser.add_argument(
        "--quantize", choices=("int8", "int4"), help="for a GPU with too little memory"
    )


def add_programs(parser: argparse.ArgumentParser) -> None:
    """Add the options of what programs may do."""
    parser.add_argument(
        "--api",
        action="store_true",
        help="let programs ask and retrieve, through gradio's API (default: only the page)",
    )
    parser.add_argument(
        "--mcp",
        action="store_true",
        help="--api, and the same as tools for assistants (needs the package mcp)",
    )


def add_archive(parser: argparse.ArgumentParser) -> None:
    """Add the option of a picture archive."""
    parser.add_argument(
        "--dicomweb",
        metavar="URL",
        help="open pictures from the archive at this address, too; needs a login, unless only "
        "this machine is served (see docs/hospital.md)",
    )


def archive_of(parser: argparse.ArgumentParser, parsed: argparse.Namespace) -> Archive | None:
    """Return the archive, or None; end with a sentence where it cannot be used.

    Whoever sees the page sees who the patients are. Without a login it is served to this machine
    only, and so not to a proxy, which serves others.
    """
    if not parsed.dicomweb:
        return None
    if parsed.login is None and not only_here(parsed):
        parser.error(
            "--dicomweb shows who the patients are, so visitors must log in: set MRRAG_USER and "
            "MRRAG_PASSWORD. Without them, leave out --host, --allow-host and --root-path."
        )
    try:
        return archive_at(parsed.dicomweb, os.environ)
    except MRRAGError as error:
        parser.error(str(error))


def only_here(parsed: argparse.Namespace) -> bool:
    """Return whether the page is served to this machine alone, and so not to a proxy."""
    return is_loopback(parsed.host) and not parsed.root_path and not parsed.allow_host


def is_loopback(host: str) -> bool:
    """Return whether an address is reached from this machine only."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@contextmanager
def private_folder() -> Iterator[Path]:
    """Make a folder for uploads that only this user can read; delete it at the end.

    A signal ends the process in order, so that the folder is deleted then, too. Gradio reads
    the environment as it is imported, which must not happen before.
    """
    for name in ("SIGTERM", "SIGINT", "SIGHUP"):
        if hasattr(signal, name):  # Windows has no SIGHUP
            signal.signal(getattr(signal, name), lambda *_: sys.exit(0))
    with tempfile.TemporaryDirectory(prefix="mr-rag-") as private:
        tempfile.tempdir = os.environ["GRADIO_TEMP_DIR"] = private
        os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
        os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
        yield Path(private)


def choose(arguments: argparse.Namespace, *, zero_gpu: bool) -> tuple[Choice, Path | None]:
    """Choose the model, and download it if need be.

    Returns
    -------
    Choice
        The bundled model where the default one cannot be loaded here.
    Path or None
        The folder of the checkpoint; None for the bundled model.

    Raises
    ------
    MRRAGError
        If a model that was asked for cannot be loaded here.
    """
    asked = next(iter(arguments.model), None)
    choice = choose_model(asked, cuda=zero_gpu or has_cuda(), zero_gpu=zero_gpu)
    if choice.model != BUNDLED:
        try:
            return choice, checkpoint_folder(choice, arguments, arguments.revision)
        except MRRAGError as error:
            choice = instead_of(choice, error)
            print(choice.why, flush=True)
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    return choice, None


def checkpoint_folder(
    choice: Choice, arguments: argparse.Namespace, revision: str | None = None
) -> Path:
    """Download a checkpoint if need be, and check that it can be loaded here."""
    from mrrag.model.checkpoint import check_loadable, find_checkpoint

    folder = find_checkpoint(choice.model, revision, announce=lambda line: print(line, flush=True))
    check_loadable(folder, device=choice.device, quantize=arguments.quantize)
    return folder


def serve(
    choice: Choice, folder: Path | None, arguments: argparse.Namespace, *, zero_gpu: bool
) -> None:
    """Serve the page at once, then load the model; on ZeroGPU the other way round."""
    from app.backend import Backend
    from app.internals import log_tools_in
    from app.launch import launch_options, log_error_types_only
    from app.models import Models
    from app.page import build_page
    from app.sections.case import load_samples

    backends = [Backend(about, Future()) for about in abouts_of(choice, folder, arguments)]
    offers = (
        () if zero_gpu else further_models(arguments.model, choice, only_here=only_here(arguments))
    )
    if zero_gpu:
        load(backends, choice, arguments)
        backends = borrowing(backends, choice)
    models = Models(backends, offers, partial(load_further, backends, arguments))
    page = build_page(models, load_samples(SAMPLES), api=arguments.api, archive=arguments.archive)
    options = launch_options(
        arguments.host,
        arguments.port,
        arguments.allow_host,
        arguments.login,
        root_path=arguments.root_path,
        mcp=arguments.mcp,
    )
    log_error_types_only()
    log_no_addresses()
    _, address, _ = page.launch(**options, prevent_thread_lock=True)
    try:
        if arguments.mcp:
            log_tools_in(page, address, arguments.login)
        if not zero_gpu:
            print(f"MR-RAG is at {address} (loading the model; stop with Ctrl-C)", flush=True)
            load(backends, choice, arguments)
        print(f"The model is ready, at {address}.", flush=True)
        page.block_thread()
    finally:
        page.close(verbose=False)


def abouts_of(
    choice: Choice, folder: Path | None, arguments: argparse.Namespace, number: int = 0
) -> list[About]:
    """Return what the page shows of a model, with this number, over each knowledge base."""
    bases: list[Place | None] = arguments.kb or [None]
    return [
        read_about(
            arguments.assets,
            model=choice.model,
            folder=folder,
            knowledge_base=base,
            number=number * len(bases) + n,
            why=choice.why,
        )
        for n, base in enumerate(bases)
    ]


def load_further(
    first: Sequence[Backend], arguments: argparse.Namespace, offer: Offer, number: int
) -> list[Backend]:
    """Load one more model over the same knowledge bases; its files are downloaded if need be.

    Raises
    ------
    MRRAGError
        If it cannot be loaded here.
    """
    from app.backend import Backend
    from mrrag.loading import with_model

    choice = choose_model(offer.name, cuda=has_cuda())
    folder = None if choice.model == BUNDLED else checkpoint_folder(choice, arguments)
    backends = [Backend(about, Future()) for about in abouts_of(choice, folder, arguments, number)]
    pipelines = with_model(
        [backend.loading.result() for backend in first],
        arguments.kb or [None],
        assets=arguments.assets,
        model=choice.model,
        device=choice.device,
        quantize=arguments.quantize if choice.model != BUNDLED else None,
    )
    for backend, pipeline in zip(backends, pipelines, strict=True):
        backend.loading.set_result(pipeline)
    return backends


def load(backends: Sequence[Backend], choice: Choice, arguments: argparse.Namespace) -> None:
    """Load the model once, and each backend's knowledge base."""
    # Torch takes seconds to import; the page is already there while it does.
    from mrrag.loading import load_pipeline, with_knowledge_base

    bases: list[Place | None] = arguments.kb or [None]
    first = load_pipeline(
        arguments.assets,
        model=choice.model,
        knowledge_base=bases[0],
        revision=arguments.revision,
        device=choice.device,
        vision_tower=arguments.vision_tower,
        quantize=arguments.quantize,
    )
    pipelines: list[Pipeline] = [first]
    for base in bases[1:]:
        if base is not None:
            pipelines.append(
                with_knowledge_base(first, base, assets=arguments.assets, model=choice.model)
            )
    for backend, pipeline in zip(backends, pipelines, strict=True):
        backend.loading.set_result(pipeline)


def borrowing(backends: Sequence[Backend], choice: Choice) -> list[Backend]:
    """Return the backends with answers on a borrowed GPU; the bundled model needs none.

    The functions that borrow are made for either model, since ZeroGPU ends a Space without one.
    """
    from app.zero_gpu import lend

    lent = [backend._replace(lent=lend(backend.pipeline())) for backend in backends]
    return list(backends) if choice.model == BUNDLED else lent
