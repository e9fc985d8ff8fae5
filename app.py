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

if TYPE_CHECKING:
    from mrrag.pipeline import Pipeline

HERE = Path(__file__).resolve().parent


def main() -> int:
    """Serve the page at once, then load the model; return the exit status."""
    parser = argparse.ArgumentParser(description="Serve the MR-RAG page.")
    parser.add_argument(
        "--host",
        default=os.environ.get("GRADIO_SERVER_NAME", "127.0.0.1"),
        help="address to listen on (default: 127.0.0.1, or GRADIO_SERVER_NAME as on a Space)",
    )
    parser.add_argument("--port", type=int, help="port (default: the first free one from 7860)")
    parser.add_argument(
        "--assets", type=Path, default=HERE / "assets", help="model, encoder and knowledge base"
    )
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")

    # Ended by a signal we still leave in order, so that the folder below goes.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    # Uploads pass through this folder, which only this user can read; it goes when we go.
    with tempfile.TemporaryDirectory(prefix="mr-rag-") as private:
        os.environ["GRADIO_TEMP_DIR"] = private
        os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
        os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
        os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
        return serve(arguments.host, arguments.port, arguments.assets)


def serve(host: str, port: int | None, assets: Path) -> int:
    """Serve until interrupted."""
    # Imported here, after the environment is set, since gradio reads it as it is imported.
    from app.about import read_about
    from app.actions import load_samples
    from app.page import build_page, launch_options
    from mrrag.errors import MRRAGError

    engine: Future[Pipeline] = Future()
    try:
        about = read_about(assets)
        page = build_page(about, load_samples(HERE / "sample_cases"), engine)
        _, address, _ = page.launch(**launch_options(host, port), prevent_thread_lock=True)
        print(f"MR-RAG is at {address} (loading the model; stop with Ctrl-C)", flush=True)

        # Torch takes seconds to import; the page is already there while it does.
        from mrrag.pipeline import load_pipeline

        engine.set_result(load_pipeline(assets))
        print("The model is ready.", flush=True)
    except MRRAGError as error:
        print(error, file=sys.stderr)
        return 1
    page.block_thread()
    return 0


if __name__ == "__main__":
    sys.exit(main())
