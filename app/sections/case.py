"""The case section: which picture is on the page, and what the model would see of it.

It is a sample case, an upload or one of its frames. Another picture takes everything away that
was found and answered for the one before.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from app.sections import viewer
from app.sections.settings import whole
from app.sections.visit import Update, cleared, refuse
from mrrag.data.images import MAX_BYTES, read_image, thumbnail
from mrrag.errors import CorpusError, ImageError, SettingsError
from mrrag.report import cards
from mrrag.report.pictures import file_url
from mrrag.types import Image

if TYPE_CHECKING:
    from mrrag.pipeline import Pipeline

MAX_UPLOAD_BYTES = MAX_BYTES
THUMBNAIL_PX = 96
UPLOADED = "Uploaded picture"


@dataclass(frozen=True)
class Sample:
    """A case that ships with the project."""

    title: str
    question: str
    note: str
    noise: int
    image: Image
    thumbnail: str


def load_samples(folder: Path) -> tuple[Sample, ...]:
    """Read ``cases.json`` and its pictures; none where there is no such list.

    Raises
    ------
    CorpusError
        Where the list cannot be read, or names a file outside its folder.
    """
    if not (folder / "cases.json").exists():
        return ()
    try:
        entries = json.loads((folder / "cases.json").read_text(encoding="utf-8"))
        samples = []
        for entry in entries:
            path = (folder / entry["file"]).resolve()
            if folder.resolve() not in path.parents:
                raise ValueError(f"{entry['file']} lies outside the folder")
            image = viewer.retained(read_image(path.read_bytes()))
            samples.append(
                Sample(
                    title=str(entry["title"]),
                    question=str(entry["question"]),
                    note=str(entry.get("note", "")),
                    noise=int(entry.get("noise", 0)),
                    image=image,
                    thumbnail=file_url(thumbnail(image, THUMBNAIL_PX)),
                )
            )
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise CorpusError(
            f"The sample cases cannot be read ({error}). {folder.name}/cases.json is a list of "
            '{"file", "title", "question", "note"}; restore it, or remove the folder.'
        ) from None
    return tuple(samples)


def samples_html(samples: Sequence[Sample], chosen: int | None) -> str:
    """The grid of sample cases."""
    return cards.samples([(s.title, s.thumbnail) for s in samples], chosen)


def choose_sample(samples: Sequence[Sample], index: object) -> Update:
    """Put a sample case on the page."""
    if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < len(samples):
        return refuse("That sample case does not exist. Choose one of those shown.")
    sample = samples[index]
    return cleared() | {
        "image": sample.image,
        "file": b"",
        "samples": samples_html(samples, index),
        "preview": viewer.details(sample.image, sample.title, sample.note),
        "question": sample.question,
        "noise": sample.noise,
        "status": cards.status("Ready. Press Ask."),
        **viewer.put_up(sample.image, sample.title, frames_kept=False),
    }


def read_upload(samples: Sequence[Sample], data: object) -> Update:
    """Put an uploaded file's picture on the page.

    The bytes are kept only for a file of several frames, and then without who it shows.
    """
    try:
        if not isinstance(data, bytes) or not data:
            raise ImageError("No file came. Choose a DICOM, PNG or JPEG file.")
        image = read_image(data)
        file = viewer.other_frames(data, image)
        return cleared() | {
            "image": viewer.retained(image),
            "file": file,
            "samples": samples_html(samples, None),
            "preview": viewer.details(image, UPLOADED),
            "status": cards.status("Read, and the upload was deleted. Type a question, press Ask."),
            **viewer.put_up(image, UPLOADED, frames_kept=bool(file)),
        }
    except Exception as error:
        refused = refuse(error)
        return cleared() | {
            "image": None,
            "file": b"",
            "film": "",
            "waiting": "",
            "sees": "",
            "samples": samples_html(samples, None),
            "preview": refused["status"],
            "status": cards.status("There is no picture yet."),
        }


def choose_frame(image: object, file: object, frame: object) -> Update:
    """Put another frame of the uploaded file on the page; the model then reads that one."""
    try:
        if not isinstance(image, Image) or not isinstance(file, bytes) or not file:
            raise SettingsError("There is no file with several frames. Upload one.")
        number = whole("The frame", frame, 0, image.frames - 1)
        read = replace(read_image(file, frame=number), sha256=image.sha256)
        return cleared() | {
            "image": viewer.retained(read),
            "preview": viewer.details(read, UPLOADED),
            "status": cards.status(f"Frame {number + 1} of {read.frames}. Press Ask."),
            **viewer.put_up(read, UPLOADED, frames_kept=True),
        }
    except Exception as error:
        return refuse(error)


def model_view(engine: Future[Pipeline], image: object, window: object) -> Update:
    """The square that the model would read now, through the person's window if it is ticked."""
    if not isinstance(image, Image):
        return {"sees": ""}
    try:
        pipeline = engine.result(timeout=120)
        from mrrag.model.backbone import model_input

        chosen = viewer.as_chosen(image, window)
        pixels = model_input(pipeline.backbone, chosen)
        return {"sees": viewer.model_view(pixels, by_hand=chosen is not image)}
    except Exception as error:
        return refuse(error)
