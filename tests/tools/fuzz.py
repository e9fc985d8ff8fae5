"""Read mutated picture files: each must be read or refused, and nothing worse.

    python tests/tools/fuzz.py --count 10000 --seed 0 [--json]

Prints the files that failed, the number of files of each kind, and the slowest one's CPU
time. The exit status is 1 if a file failed. See :mod:`mrrag.bench.conformance` for the kinds.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import cache
from io import BytesIO
from pathlib import Path

import numpy as np
import PIL.Image
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run from a checkout

from mrrag.bench.conformance import (
    FAILURES,
    FileOutcome,
    files_in,
    read_file,
    reader,
    shipped,
    totals,
)
from mrrag.data.dicom import TAGS


@cache
def seeds() -> tuple[bytes, ...]:
    """Return the files to mutate: pydicom's of at most 300 kB, and small PNG and JPEG files."""
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
    """Flip 1 to 32 bits, half of the time in the first kilobyte, where the headers are."""
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
    """Replace a piece of the file by a piece of another."""
    other = files[int(rng.integers(len(files)))]
    at, begin = int(rng.integers(len(data))), int(rng.integers(len(other)))
    end = begin + int(rng.integers(1, 4097))
    data[at : at + int(rng.integers(0, 4097))] = other[begin:end]


MUTATIONS = (flip_bits, truncate, edit_length, swap_tags, splice)


def _find_elements(data: bytearray) -> list[int]:
    """Return the first position of each listed tag, in little endian."""
    found = []
    for tag in TAGS:
        at = data.find(tag.group.to_bytes(2, "little") + tag.elem.to_bytes(2, "little"))
        if at >= 0:
            found.append(at)
    return found


def mutate(files: Sequence[bytes], seed: int, number: int) -> bytes:
    """Return a file changed in one to three ways, always the same for the same numbers."""
    rng = np.random.default_rng([seed, number])
    data = bytearray(files[int(rng.integers(len(files)))])
    for _ in range(int(rng.integers(1, 4))):
        if data:
            MUTATIONS[int(rng.integers(len(MUTATIONS)))](data, files, rng)
    return bytes(data)


def read_mutated(seed: int, number: int) -> tuple[str, str]:
    """Read a mutated file; the job of the separate process."""
    return read_file(mutate(seeds(), seed, number))


def fuzz(count: int, seed: int) -> Iterator[FileOutcome]:
    """Read ``count`` mutated files, and yield the result of each."""
    with reader() as running:
        for number in range(count):
            kind, detail, seconds = running.run(read_mutated, seed, number)
            yield FileOutcome(f"{seed}-{number}", kind, detail, seconds=seconds)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--count", type=int, default=10_000, help="number of files (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the changes (%(default)s)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    args = parser.parse_args(arguments)
    outcomes = list(tqdm(fuzz(args.count, args.seed), "reading", args.count, disable=None))
    failed = [outcome for outcome in outcomes if outcome.kind in FAILURES]
    counts, slowest = totals(outcomes), max((o.seconds for o in outcomes), default=0.0)
    if args.json:
        rows = [asdict(outcome) for outcome in failed]
        print(json.dumps({"totals": counts, "slowest": slowest, "files": rows}))
    else:
        for o in failed:
            print(f"{o.name:44.44s} {o.syntax:34.34s} {o.kind:14s} {o.detail}")
        print("; ".join(f"{kind}: {n}" for kind, n in counts.items()), end="; ")
        print(f"slowest {slowest:.2f} s of CPU")
    if failed:
        sys.exit(f"{len(failed)} of {len(outcomes)} files failed.")


if __name__ == "__main__":
    main()
