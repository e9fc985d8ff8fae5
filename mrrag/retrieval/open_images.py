"""Open the images of a knowledge base in worker processes, a few batches ahead.

It knows files and pixels; it knows no document and no vector.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

from threadpoolctl import threadpool_limits

from mrrag.data.images import load_image, thumbnail
from mrrag.errors import ImageError
from mrrag.types import FloatArray, Image


class OpenedImage(NamedTuple):
    """One image file, prepared and reduced; ``error`` says why it could not be read."""

    pixels_CYX: FloatArray | None
    jpeg: bytes
    stamp: tuple[int, int]
    error: str = ""


class ImageSource(NamedTuple):
    """Where the images of records are: how one is loaded, and what changes when it does.

    Both take a record's ``image_path``, in worker processes too. A stamp is two whole numbers of
    which the first is at least 0, or (-1, -1) where there is no image.
    """

    load: Callable[[Path], Image]
    stamp: Callable[[Path], tuple[int, int]]


def image_stamp(path: Path) -> tuple[int, int]:
    """Return size and time of a file; (-1, -1) if it is missing."""
    try:
        status = path.stat()
    except OSError:
        return -1, -1
    return status.st_size, status.st_mtime_ns


FILES = ImageSource(load_image, image_stamp)


def open_images(
    prepare: Callable[[Sequence[Image]], FloatArray],
    size: int,
    images: ImageSource,
    paths: Sequence[Path],
) -> list[OpenedImage]:
    """Decode, prepare and reduce images; runs in a worker process."""
    opened = []
    for path in paths:
        stamp = images.stamp(path)
        try:
            image = images.load(path)
        except ImageError as error:
            opened.append(OpenedImage(None, b"", stamp, str(error)))
        else:
            opened.append(OpenedImage(prepare([image])[0], thumbnail(image, size), stamp))
    return opened


def open_in_order(
    open_batch: Callable[[Sequence[Path]], list[OpenedImage]],
    batches: Sequence[Sequence[Path]],
    workers: int,
    method: str | None = None,
) -> Iterator[list[OpenedImage]]:
    """Yield the batches in order, opened by worker processes a few batches ahead.

    ``method`` is how they are started (``multiprocessing``'s name of it).
    """
    if workers < 2:
        yield from map(open_batch, batches)
        return
    # One thread per process: more would wait for each other.
    with ProcessPoolExecutor(
        workers, get_context(method), initializer=threadpool_limits, initargs=(1,)
    ) as pool:
        waiting: deque[list[Future[list[OpenedImage]]]] = deque()
        for paths in batches:
            size = max(1, -(-len(paths) // workers))
            parts = (paths[i : i + size] for i in range(0, len(paths), size))
            waiting.append([pool.submit(open_batch, part) for part in parts])
            if len(waiting) > 4:  # enough to keep all workers busy, few enough to hold
                yield [item for job in waiting.popleft() for item in job.result()]
        while waiting:
            yield [item for job in waiting.popleft() for item in job.result()]
