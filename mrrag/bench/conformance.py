"""Reads many files and checks that :mod:`mrrag.data.images` keeps its promises.

Each file gives the right picture or one :class:`~mrrag.errors.ImageError`, in bounded time
and memory, and writes no file. There is never another exception, a crash or a wrong picture.
Files are read in a separate process, because a file may end it, hang it or fill its memory.

The reference for a picture is :mod:`mrrag.bench.reference`, with every decoder that is installed
for the file's transfer syntax. The tested reader uses none of them. GDCM is one of the
decoders if ``python-gdcm`` is installed.
"""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import PIL.Image
import pydicom.data
from pydicom import dcmread, uid
from pydicom.dataset import Dataset
from pydicom.pixels.decoders.base import get_decoder

from mrrag.bench import reference
from mrrag.bench.reference import pixel_height, stretch
from mrrag.data.codecs import ALWAYS_LOSSY, J2K
from mrrag.data.dicom import is_dicom
from mrrag.data.images import read_image
from mrrag.data.limits import MAX_BYTES
from mrrag.errors import ImageError, MRRAGError
from mrrag.types import Image

Array = npt.NDArray[Any]

MAX_MEMORY = 3 * 2**30  # bytes: the largest picture's pixels in float64, and a few copies
SECONDS = 60.0  # of wall-clock time, after which the process is killed
CPU_SECONDS = 10.0

RIGHT, ALONE, REFUSED = "right", "no reference", "refused"
WRONG, RAISED, CRASHED, STUCK, SLOW, FULL, LEFT = FAILURES = (
    *("wrong picture", "traceback", "crash", "hang", "slow", "out of memory", "file left"),
)


@dataclass(frozen=True)
class FileOutcome:
    """The result for one file; ``kind`` is one of the constants above."""

    name: str
    kind: str
    detail: str = ""
    syntax: str = ""
    seconds: float = 0.0  # of CPU time


# One file: these jobs run in the separate process. Each returns a kind and a detail.


def read_file(data: bytes) -> tuple[str, str]:
    """Read the bytes of a file."""
    try:
        image = read_image(data)
    except ImageError as error:
        causes = (error.__cause__, error.__context__)
        return (FULL if any(isinstance(c, MemoryError) for c in causes) else REFUSED), str(error)
    except Exception as error:
        return RAISED, f"{type(error).__name__}: {error}"
    display = image.display
    if display.dtype != np.uint8 or display.shape[2:] not in ((), (3,)) or not display.size:
        return WRONG, f"the display is {display.dtype} {display.shape}"
    if image.values is not None and image.values.shape != display.shape[:2]:
        return WRONG, f"the values are {image.values.shape}, the display {display.shape}"
    return ALONE, ""


def read_path(path: str) -> tuple[str, str]:
    """Read a file from disk."""
    with open(path, "rb") as file:
        return read_file(file.read(MAX_BYTES + 1))


def transfer_syntax(path: str) -> tuple[str, str]:
    """Return the name of a file's transfer syntax, or "", in place of the kind."""
    try:
        syntax = dcmread(path, force=True, stop_before_pixels=True).file_meta.TransferSyntaxUID
    except Exception:
        return "", ""
    return syntax.name, ""


def compare_path(path: str) -> tuple[str, str]:
    """Compare a file's picture with every reference that is available."""
    with open(path, "rb") as file:
        image = read_image(file.read(MAX_BYTES + 1))
    if "format" in image.tags:
        return _compare_picture(image, path)
    dataset = dcmread(path, force=True)
    dataset.file_meta.TransferSyntaxUID = uid.UID(
        dataset.file_meta.get("TransferSyntaxUID") or _plain_syntax(dataset)
    )
    _lift_functional_groups(dataset)
    try:
        decoder = get_decoder(dataset.file_meta.TransferSyntaxUID)
    except NotImplementedError:
        return ALONE, "pydicom does not know this transfer syntax"
    agreed, differing = [], []
    # An uncompressed syntax needs no plugin: pydicom reads it itself.
    for plugin in decoder.available_plugins or ("",):
        name = plugin or "pydicom"
        try:
            pixels, found = decoder.as_array(dataset, index=0, raw=True, decoding_plugin=plugin)
            if plugin == "pillow" and _signed_unlike_header(dataset):
                # Pillow adds half of the range to signed pixels.
                pixels = pixels ^ pixels.dtype.type(1 << (8 * pixels.itemsize - 1))
            difference = _compare(image, dataset, pixels, str(found["photometric_interpretation"]))
        except Exception:
            continue  # this reference cannot read the file
        if difference:
            differing.append(f"{name}: {difference}")
        else:
            agreed.append(name)
    detail = "; ".join([", ".join(agreed)] * bool(agreed) + differing) or "no decoder reads it"
    # If the references differ from each other, agreeing with one of them is enough.
    return (RIGHT if agreed else WRONG if differing else ALONE), detail


def _compare(image: Image, dataset: Dataset, pixels: Array, photometric: str) -> str:
    """Return how a picture differs from the reference that decoded pixels give, or "".

    Lossless pixels must be equal to the last bit, and the display up to rounding. Decoders
    of lossy pixels round differently, by about a hundredth of the range.
    """
    allowed = 0.02 if _is_lossy(dataset) else 0.0
    shape = _square_shape(dataset, pixels.shape)
    if image.display.shape[:2] != shape:
        return f"shape {image.display.shape[:2]}, not {shape}"
    if photometric not in ("MONOCHROME1", "MONOCHROME2"):
        colours = stretch(reference.colours(dataset, pixels, photometric), shape)
        if image.display.ndim == 2 and np.ptp(colours, axis=-1).max() < 1:
            colours = colours[..., 0]  # stored in colour, but grey
        rounding = 0.51 if pixels.shape[:2] == shape else 1.01  # twice, where resampled
        return _compare_levels(image.display, colours, allowed, rounding)
    stored = _signed_as_coded(dataset, pixels)
    values = reference.grey_values(dataset, stored)
    padding = reference.padding_of(dataset, stored)
    if image.values is None or image.values.shape != shape:
        return "the values are absent, or of another shape"
    between = stretch(padding, shape)  # of values and padding, more than one mean is right
    off = np.abs(image.values.astype(np.float64) - stretch(values, shape))[between == 0]
    bound = allowed * float(np.ptp(values)) + 1e-6 * float(np.abs(values).max())
    bound += 0.5 * (shape != values.shape and image.values.dtype.kind in "iu")
    if off.size and np.quantile(off, 0.999 if allowed else 1.0) > bound:
        return f"values differ by up to {off.max():g}"
    shown = np.ones(shape, bool) if image.padding is None else ~image.padding
    if shown[between > 0.5].any() or not shown[between < 0.5].all():
        return "other pixels are padding"
    levels = reference.grey_display(image.values, shown, dataset, photometric, image.voi_function)
    return _compare_levels(image.display, levels, 0.0, 0.51)


def _compare_levels(display: Array, expected: Array, allowed: float, rounding: float) -> str:
    if display.shape != expected.shape:
        return f"shape {display.shape}, not {expected.shape}"
    off = np.abs(np.clip(expected, 0, 255) - display)
    if np.quantile(off, 0.999 if allowed else 1.0) > rounding + 255 * allowed:
        return f"display differs by up to {off.max():.1f}, {off.mean():.2f} on average"
    return ""


def _square_shape(dataset: Dataset, shape: tuple[int, ...]) -> tuple[int, int]:
    """Return the rows and columns that square pixels have: the longer side of each is divided."""
    height = pixel_height(dataset)
    if abs(height - 1) <= 0.01:
        return shape[0], shape[1]
    return round(shape[0] * max(height, 1)), round(shape[1] * max(1 / height, 1))


def _signed_as_coded(dataset: Dataset, pixels: Array) -> Array:
    """Return JPEG 2000 pixels with the sign that the codestream gives."""
    return pixels.view(f"i{pixels.itemsize}") if _signed_unlike_header(dataset) else pixels


def _signed_unlike_header(dataset: Dataset) -> bool:
    """Return whether a JPEG 2000 codestream is signed (T.800 A.5.1, Ssiz) but the header is not."""
    at = bytes(dataset.PixelData).find(J2K)
    syntax = dataset.file_meta.TransferSyntaxUID
    if syntax not in uid.JPEG2000TransferSyntaxes or at < 0 or dataset.PixelRepresentation:
        return False
    return bool(dataset.PixelData[at + 42] & 0x80)


def _plain_syntax(dataset: Dataset) -> str:
    implicit, little = dataset.original_encoding
    if implicit:
        return uid.ImplicitVRLittleEndian
    return uid.ExplicitVRLittleEndian if little else uid.ExplicitVRBigEndian


def _lift_functional_groups(dataset: Dataset) -> None:
    """Copy the first frame's functional groups to the top level (PS3.3 C.7.6.16)."""
    keywords = ("PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence")
    groups = [group for keyword in keywords for group in list(dataset.get(keyword) or [])[:1]]
    macros = [m for group in groups for m in group if m.VR == "SQ" and m.value]
    for element in [element for macro in macros for element in macro.value[0]]:
        if element.tag not in dataset:
            dataset.add(element)


def _is_lossy(dataset: Dataset) -> bool:
    syntax = dataset.file_meta.TransferSyntaxUID
    return syntax in (*ALWAYS_LOSSY, uid.JPEG2000, uid.JPEGLSNearLossless, uid.HTJ2K)


def _compare_picture(image: Image, path: str) -> tuple[str, str]:
    """Compare a picture that is no DICOM file with what Pillow reads."""
    with PIL.Image.open(path) as picture:
        mode = "L" if image.display.ndim == 2 else "RGB"
        if picture.mode not in ("L", "RGB") or picture.getexif().get(0x0112, 1) != 1:
            return ALONE, ""
        plain = np.asarray(picture.convert(mode))
    return (RIGHT, "Pillow") if np.array_equal(plain, image.display) else (WRONG, "Pillow differs")


# The separate process


def _serve(pipe: Connection, folder: str) -> None:
    """Run the jobs that come through a pipe, in bounded memory and an empty folder."""
    import resource

    os.chdir(folder)
    os.environ["TMPDIR"] = tempfile.tempdir = folder
    resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY, MAX_MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    warnings.simplefilter("ignore")
    while True:
        job, arguments = pipe.recv()
        began = time.process_time()
        kind, detail = job(*arguments)
        seconds = time.process_time() - began
        left = next(iter(os.listdir(folder)), "")
        if left:
            kind, detail = LEFT, left
        elif seconds > CPU_SECONDS:
            kind, detail = SLOW, f"{seconds:.1f} s"
        pipe.send((kind, detail, seconds))


class Reader:
    """A process that reads files, restarted after a file has ended it."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.process: multiprocessing.process.BaseProcess | None = None

    def run(
        self, job: Callable[..., tuple[str, str]], *arguments: object
    ) -> tuple[str, str, float]:
        """Run a job in the process, and return kind, detail and CPU seconds."""
        if self.process is None:
            context = multiprocessing.get_context("spawn")
            self.pipe, theirs = context.Pipe()
            self.process = context.Process(target=_serve, args=(theirs, self.folder), daemon=True)
            self.process.start()
            theirs.close()
        self.pipe.send((job, arguments))
        try:
            if self.pipe.poll(SECONDS):
                answer: tuple[str, str, float] = self.pipe.recv()
                return answer
            answer = STUCK, f"no answer in {SECONDS:g} s", SECONDS
        except (EOFError, ConnectionError):
            self.process.join()
            answer = CRASHED, f"ended with {self.process.exitcode}", 0.0
        self.end()
        return answer

    def end(self) -> None:
        """Kill the process."""
        if self.process is not None:
            self.process.kill()
            self.process.join()
            self.pipe.close()
            self.process = None


@contextmanager
def reader() -> Iterator[Reader]:
    """Yield a reader in an empty folder, and remove both at the end."""
    with tempfile.TemporaryDirectory(prefix="mr-rag-reader-") as folder:
        running = Reader(folder)
        try:
            yield running
        finally:
            running.end()


# The run over many files


def shipped() -> Path:
    """Return the folder of the files that pydicom ships."""
    return Path(str(pydicom.data.__file__)).parent


def files_in(folders: Iterable[Path]) -> list[Path]:
    """Return every file below the folders but Python source, in a fixed order."""
    return sorted(
        path
        for folder in folders
        for path in (folder.rglob("*") if folder.is_dir() else [folder])
        if path.is_file() and path.suffix not in (".py", ".pyc")
    )


def check_folders(folders: Iterable[Path]) -> None:
    """Raise ``MRRAGError`` if a folder or file is not there, or holds no DICOM file.

    Otherwise a mistyped name would pass as if all its files were right.
    """
    for folder in folders:
        if not folder.exists():
            raise MRRAGError(
                f"There is no folder {folder}. A folder of DICOM files, or a file, is read."
                " Check its name."
            )
        if not any(is_dicom(_beginning(path)) for path in files_in([folder])):
            raise MRRAGError(
                f"There is no DICOM file in {folder}. Folders with at least one are read."
                " Name the folder that holds them, or unpack the archive first."
            )


def _beginning(path: Path) -> bytes:
    with open(path, "rb") as file:
        return file.read(2**16)


def conform(paths: Iterable[Path]) -> Iterator[FileOutcome]:
    """Read each file, and compare its picture with the references."""
    with reader() as running:
        for path in paths:
            syntax, _, _ = running.run(transfer_syntax, str(path))
            kind, detail, seconds = running.run(read_path, str(path))
            if kind == ALONE:
                compared, said, _ = running.run(compare_path, str(path))
                # If the reference ends the process, the picture is not to blame.
                if compared in (RIGHT, WRONG):
                    kind, detail = compared, said
                elif compared != ALONE:
                    detail = f"the reference: {compared}"
            yield FileOutcome(
                path.name, kind, detail, "" if syntax in FAILURES else syntax, seconds
            )


def totals(outcomes: Iterable[FileOutcome]) -> dict[str, int]:
    """Return the number of files of each kind, the most frequent first."""
    return dict(Counter(outcome.kind for outcome in outcomes).most_common())
