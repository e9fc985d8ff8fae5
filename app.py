"""Serve the MR-RAG page: ``python app.py``, then open the address that it prints.

A Hugging Face Space runs this file as it is.
"""

from __future__ import annotations

import logging
import sys

from app.choice import on_zero_gpu
from app.serve import choose, parse_arguments, private_folder, serve
from mrrag.errors import MRRAGError


def main() -> int:
    """Serve the page until interrupted; return the exit status."""
    arguments = parse_arguments()
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    with private_folder():
        zero_gpu = on_zero_gpu()
        if zero_gpu:
            import spaces  # noqa: F401 (before torch, which it prepares)
        try:
            choice, folder = choose(arguments, zero_gpu=zero_gpu)
            serve(choice, folder, arguments, zero_gpu=zero_gpu)
        except MRRAGError as error:
            print(error, file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
