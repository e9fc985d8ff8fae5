"""Read many files, whole and mutated, and hold :mod:`mrrag.data.images` to what it promises.

Each file gives the right picture or one :class:`~mrrag.errors.ImageError`, in bounded time
and memory, with no file written: never another exception, a crash or a wrong picture. Files
are read in a process of their own, which a file may therefore end, stop or fill.

The reference for a picture is pydicom's own pipeline, with every decoder that is installed
for the file's transfer syntax: the reader's are its own. GDCM joins where ``python-gdcm`` is.
"""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from io import BytesIO
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
from pydicom.pixels.processing import (
    apply_color_lut,
    apply_modality_lut,
    apply_voi_lut,
    convert_color_space,
)

from mrrag.data.codecs import ALWAYS_LOSSY, J2K
from mrrag.data.dicom import TAGS
from mrrag.data.images import read_image
from mrrag.data.limits import MAX_BYTES
from mrrag.errors import ImageError
from mrrag.types import Image

Array = npt.NDArray[Any]

# Of the largest picture's pixels, in float64 and a few copies.
MAX_MEMORY = 3 * 2**30
SECONDS = 60.0  # by the wall clock, after which a reader is ended
CPU_SECONDS = 10.0

RIGHT, ALONE, REFUSED = "right", "no reference", "refused"
WRONG, RAISED, CRASHED, STUCK, SLOW, FULL, LEFT = FAILURES = (
    *("wrong picture", "traceback", "crash", "hang", "slow", "out of memory", "file left"),
)


@dataclass(frozen=True)
class FileOutcome:
    """What one file came to; ``kind`` is one of those above."""

    name: str
    kind: str
    detail: str = ""
    syntax: str = ""
    seconds: float = 0.0  # of CPU


# ---------------------------------------------------------------- one file, in its own process


def read_file(data: bytes) -> tuple[str, str]:
    """Read a file, as an outcome's kind and detail."""
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
    """Read a file from disk, as an outcome's kind and detail."""
    with open(path, "rb") as file:
        return read_file(file.read(MAX_BYTES + 1))


def transfer_syntax(path: str) -> tuple[str, str]:
    """Name a file's transfer syntax, as it says itself."""
    try:
        syntax = dcmread(path, force=True, stop_before_pixels=True).file_meta.TransferSyntaxUID
    except Exception:
        return "", ""
    return syntax.name, ""


def compare_path(path: str) -> tuple[str, str]:
    """Compare a file's picture with each reference that is to be had."""
    with open(path, "rb") as file:
        image = read_image(file.read(MAX_BYTES + 1))
    if image.tags.get("format") in ("PNG", "JPEG"):
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
    # An uncompressed syntax needs no plugin: pydicom reads it by itself.
    for plugin in decoder.available_plugins or ("",):
        name = plugin or "pydicom"
        try:
            pixels, found = decoder.as_array(dataset, index=0, raw=True, decoding_plugin=plugin)
            if plugin == "pillow" and _signed_unlike_header(dataset):
                # Pillow moves what is signed up by half of its range.
                pixels = pixels ^ pixels.dtype.type(1 << (8 * pixels.itemsize - 1))
            difference = _compare(image, dataset, pixels, str(found["photometric_interpretation"]))
        except Exception:
            continue  # this reference cannot read the file
        if difference:
            differing.append(f"{name}: {difference}")
        else:
            agreed.append(name)
    detail = "; ".join([", ".join(agreed)] * bool(agreed) + differing)
    # Where references differ from each other, a picture need only be one of theirs.
    return (RIGHT if agreed else WRONG if differing else ALONE), detail


def _compare(image: Image, dataset: Dataset, pixels: Array, photometric: str) -> str:
    """What differs between a picture and decoded pixels in pydicom's pipeline, or nothing.

    Lossless pixels are equal to the last bit, and the display to its rounding. Decoders of
    lossy pixels round differently, by a hundredth of the range or so.
    """
    allowed = 0.02 if _is_lossy(dataset) else 0.0
    if photometric not in ("MONOCHROME1", "MONOCHROME2"):
        return _compare_levels(image.display, _colours(dataset, pixels, photometric), allowed)
    values = apply_modality_lut(_signed_as_coded(dataset, pixels), dataset)
    if image.values is None or image.values.shape != values.shape:
        return "the values are absent, or of another shape"
    off = np.abs(image.values.astype(np.float64) - values)
    bound = allowed * float(np.ptp(values)) + 1e-6 * float(np.abs(values).max())
    if np.quantile(off, 0.999 if allowed else 1.0) > bound:
        return f"values differ by up to {off.max():g}"
    return _compare_levels(image.display, _grey_display(image, dataset, photometric), 0.0)


def _compare_levels(display: Array, expected: Array, allowed: float) -> str:
    if display.shape != expected.shape:
        return f"shape {display.shape}, not {expected.shape}"
    off = np.abs(np.clip(expected, 0, 255) - display)
    if np.quantile(off, 0.999 if allowed else 1.0) > 0.51 + 255 * allowed:
        return f"display differs by up to {off.max():.1f}, {off.mean():.2f} on average"
    return ""


def _colours(dataset: Dataset, pixels: Array, photometric: str) -> Array:
    """RGB in levels of 0 to 255, by pydicom (PS3.3 C.7.6.3 and C.7.9)."""
    top = 2.0 ** int(dataset.BitsStored) - 1
    if photometric == "PALETTE COLOR":
        top = 2.0 ** int(dataset.RedPaletteColorLookupTableDescriptor[2]) - 1
        pixels = apply_color_lut(pixels, dataset)[..., :3]
    elif photometric.startswith("YBR_FULL"):
        pixels = convert_color_space(pixels, photometric, "RGB")
    levels: Array = pixels * (255 / top)
    return levels


def _grey_display(image: Image, dataset: Dataset, photometric: str) -> Array:
    """Levels of 0 to 255 of the picture's own values, by pydicom (PS3.3 C.11.2)."""
    values = image.values
    assert values is not None
    low, high = float(values.min()), float(values.max())
    shown = apply_voi_lut(values, dataset, index=0, prefer_lut=True)
    if dataset.get("VOILUTSequence"):
        low, high = 0.0, 2.0 ** int(dataset.VOILUTSequence[0].LUTDescriptor[2]) - 1
    elif dataset.get("WindowCenter") is not None:
        ends = apply_voi_lut(np.array([-1e30, 1e30]), dataset, index=0)
        low, high = float(ends[0]), float(ends[1])
    levels: Array = (shown - low) * (255 / max(high - low, 1e-9))
    return 255 - levels if photometric == "MONOCHROME1" else levels


def _signed_as_coded(dataset: Dataset, pixels: Array) -> Array:
    """Give JPEG 2000 pixels the sign of their codestream."""
    return pixels.view(f"i{pixels.itemsize}") if _signed_unlike_header(dataset) else pixels


def _signed_unlike_header(dataset: Dataset) -> bool:
    """Whether a JPEG 2000 codestream is signed (T.800 A.5.1, Ssiz) and the header is not."""
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
    """Give the data set what its first frame says of itself (PS3.3 C.7.6.16)."""
    for keyword in ("PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence"):
        for group in list(dataset.get(keyword) or [])[:1]:
            for macro in group:
                for element in macro.value[0] if macro.VR == "SQ" and macro.value else ():
                    if element.tag not in dataset:
                        dataset.add(element)


def _is_lossy(dataset: Dataset) -> bool:
    syntax = dataset.file_meta.TransferSyntaxUID
    return syntax in (*ALWAYS_LOSSY, uid.JPEG2000, uid.JPEGLSNearLossless, uid.HTJ2K)


def _compare_picture(image: Image, path: str) -> tuple[str, str]:
    """A PNG or JPEG against Pillow's plain reading of it."""
    with PIL.Image.open(path) as picture:
        mode = "L" if image.display.ndim == 2 else "RGB"
        if picture.mode not in ("L", "RGB") or picture.getexif().get(0x0112, 1) != 1:
            return ALONE, ""
        plain = np.asarray(picture.convert(mode))
    return (RIGHT, "Pillow") if np.array_equal(plain, image.display) else (WRONG, "Pillow differs")


# ---------------------------------------------------------------- mutated files


@cache
def seeds() -> tuple[bytes, ...]:
    """Return what is mutated: pydicom's files of at most 300 kB, and small PNG and JPEG files."""
    paths = [p for p in files_in([shipped() / "test_files"]) if p.stat().st_size <= 300_000]
    grey = np.add.outer(np.arange(48), np.arange(64)).astype(np.uint8)
    files = [path.read_bytes() for path in paths]
    for pixels in (grey, np.stack([grey] * 3, -1), grey.astype(np.uint16) * 257):
        for kind in ("PNG", "JPEG"):
            if kind == "PNG" or pixels.dtype == np.uint8:
                file = BytesIO()
                PIL.Image.fromarray(pixels).save(file, kind)
                files.append(file.getvalue())
    return tuple(files)


def flip_bits(data: bytearray, files: Sequence[bytes], rng: np.random.Generator) -> None:
    """Flip 1 to 32 bits, half of the time in the first kilobyte, where headers are."""
    end = len(data) if rng.random() < 0.5 else min(len(data), 1024)
    for at in rng.integers(0, end, rng.integers(1, 33)):
        data[at] ^= 1 << int(rng.integers(8))


def truncate(data: bytearray, files: Sequence[bytes], rng: np.random.Generator) -> None:
    """Cut the end off."""
    del data[int(rng.integers(len(data))) :]


def edit_length(data: bytearray, files: Sequence[bytes], rng: np.random.Generator) -> None:
    """Overwrite a listed element's length, or a number of two or four bytes anywhere."""
    elements = _find_elements(data)
    if elements and rng.random() < 0.7:
        at = elements[int(rng.integers(len(elements)))] + int(rng.choice([4, 6, 8]))
    else:
        at = int(rng.integers(len(data)))
    extremes = (0, 1, 2, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFE, 0xFFFFFFFF, len(data))
    value = int(rng.choice(extremes)) if rng.random() < 0.7 else int(rng.integers(2**32))
    width = int(rng.choice([2, 4]))
    order = "little" if rng.random() < 0.8 else "big"
    data[at : at + width] = (value % 256**width).to_bytes(width, order)


def swap_tags(data: bytearray, files: Sequence[bytes], rng: np.random.Generator) -> None:
    """Give a listed element another listed element's tag."""
    elements = _find_elements(data)
    if elements:
        tag = TAGS[int(rng.integers(len(TAGS)))]
        at = elements[int(rng.integers(len(elements)))]
        data[at : at + 4] = tag.group.to_bytes(2, "little") + tag.elem.to_bytes(2, "little")


def splice(data: bytearray, files: Sequence[bytes], rng: np.random.Generator) -> None:
    """Put a piece of another file in the place of one's own."""
    other = files[int(rng.integers(len(files)))]
    at, begin = int(rng.integers(len(data))), int(rng.integers(len(other)))
    end = begin + int(rng.integers(1, 4097))
    data[at : at + int(rng.integers(0, 4097))] = other[begin:end]


MUTATIONS = (flip_bits, truncate, edit_length, swap_tags, splice)


def _find_elements(data: bytearray) -> list[int]:
    """Where the tags of listed elements are, as little endian."""
    found = []
    for tag in TAGS:
        at = data.find(tag.group.to_bytes(2, "little") + tag.elem.to_bytes(2, "little"))
        if at >= 0:
            found.append(at)
    return found


def mutate(files: Sequence[bytes], seed: int, number: int) -> bytes:
    """Return one file, changed in one to three ways; the same for the same numbers."""
    rng = np.random.default_rng([seed, number])
    data = bytearray(files[int(rng.integers(len(files)))])
    for _ in range(int(rng.integers(1, 4))):
        if data:
            MUTATIONS[int(rng.integers(len(MUTATIONS)))](data, files, rng)
    return bytes(data)


def read_mutated(seed: int, number: int) -> tuple[str, str]:
    """Read a mutated file, as an outcome's kind and detail."""
    return read_file(mutate(seeds(), seed, number))


# ---------------------------------------------------------------- the reading process


def _serve(pipe: Connection, folder: str) -> None:
    """Run jobs from a pipe, in bounded memory and an empty folder."""
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
    """A process that reads files, started again where a file ended it."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.process: multiprocessing.process.BaseProcess | None = None

    def run(
        self, job: Callable[..., tuple[str, str]], *arguments: object
    ) -> tuple[str, str, float]:
        """Run a job in the process: kind, detail and CPU seconds."""
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
        """End the process."""
        if self.process is not None:
            self.process.kill()
            self.process.join()
            self.pipe.close()
            self.process = None


@contextmanager
def reader() -> Iterator[Reader]:
    """A reader in an empty folder that goes with it."""
    with tempfile.TemporaryDirectory(prefix="mr-rag-reader-") as folder:
        running = Reader(folder)
        try:
            yield running
        finally:
            running.end()


# ---------------------------------------------------------------- the two runs


def shipped() -> Path:
    """Where pydicom keeps the files that it ships."""
    return Path(str(pydicom.data.__file__)).parent


def files_in(folders: Iterable[Path]) -> list[Path]:
    """Every file under the folders but Python's own, in a fixed order."""
    return sorted(
        path
        for folder in folders
        for path in (folder.rglob("*") if folder.is_dir() else [folder])
        if path.is_file() and path.suffix not in (".py", ".pyc")
    )


def conform(paths: Iterable[Path]) -> Iterator[FileOutcome]:
    """Read each file, and compare the pictures with their references."""
    with reader() as running:
        for path in paths:
            syntax, _, _ = running.run(transfer_syntax, str(path))
            kind, detail, seconds = running.run(read_path, str(path))
            if kind == ALONE:
                compared, said, _ = running.run(compare_path, str(path))
                # A reference that ends its process says nothing of ours.
                if compared in (RIGHT, WRONG):
                    kind, detail = compared, said
                elif compared != ALONE:
                    detail = f"the reference: {compared}"
            yield FileOutcome(
                path.name, kind, detail, "" if syntax in FAILURES else syntax, seconds
            )


def fuzz(count: int, seed: int) -> Iterator[FileOutcome]:
    """Read mutated files."""
    with reader() as running:
        for number in range(count):
            kind, detail, seconds = running.run(read_mutated, seed, number)
            yield FileOutcome(f"{seed}-{number}", kind, detail, seconds=seconds)


def totals(outcomes: Iterable[FileOutcome]) -> dict[str, int]:
    """How many files came to each kind."""
    return dict(Counter(outcome.kind for outcome in outcomes).most_common())
