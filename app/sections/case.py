"""The case section: the picture on the page, and what the model would see of it.

The picture is a sample case, an upload or one of its frames. Another picture clears the
evidence and the answers of the one before.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from app import frame
from app.backend import Backend
from app.sections import payload, viewer
from app.sections.settings import whole
from app.sections.visit import Update, cleared, refuse
from mrrag.data.images import read_image, thumbnail
from mrrag.data.limits import FORMATS, MAX_BYTES
from mrrag.errors import CorpusError, ImageError, SettingsError
from mrrag.report.pictures import file_url
from mrrag.types import Image

MAX_UPLOAD_BYTES = MAX_BYTES
THUMBNAIL_PX = 96
UPLOADED = "Uploaded picture"
NO_FILE = f"No file was received. {FORMATS} Choose one of these."


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
    """Read ``cases.json`` and its pictures; return none where there is no such list.

    Raises
    ------
    CorpusError
        If the list cannot be read, or names a file outside its folder.
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
            image = payload.retained(read_image(path.read_bytes()))
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
    """Return the grid of sample cases."""
    return frame.samples([(s.title, s.thumbnail) for s in samples], chosen)


def choose_sample(samples: Sequence[Sample], index: object) -> Update:
    """Show a sample case."""
    if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < len(samples):
        return refuse("That sample case does not exist. Choose one of those shown.")
    sample = samples[index]
    chosen: Update = {
        "image": sample.image,
        "multiframe": b"",
        "study": None,
        "pictures": "",
        "samples": samples_html(samples, index),
        "preview": viewer.details(sample.image, sample.title, sample.note),
        "question": sample.question,
        "noise": sample.noise,
        "status": frame.status("Ready. Press Ask."),
    }
    return cleared() | chosen | payload.update(sample.image, sample.title, multiframe=False)


def read_upload(samples: Sequence[Sample], data: object) -> Update:
    """Show an uploaded picture.

    The bytes are kept only for a file of several frames, and then without the identity of
    the patient.
    """
    try:
        if not isinstance(data, bytes) or not data:
            raise ImageError(NO_FILE)
        image = read_image(data)
        multiframe = payload.other_frames(data, image)
        read: Update = {
            "image": payload.retained(image),
            "multiframe": multiframe,
            "study": None,
            "pictures": "",
            "samples": samples_html(samples, None),
            "preview": viewer.details(image, UPLOADED),
            "status": frame.status("Read, and the upload was deleted. Type a question, press Ask."),
        }
        return cleared() | read | payload.update(image, UPLOADED, multiframe=bool(multiframe))
    except Exception as error:
        return no_picture(samples, error)


def no_picture(samples: Sequence[Sample], error: Exception) -> Update:
    """Show why an upload was refused, in place of a picture."""
    none: Update = {
        "image": None,
        "multiframe": b"",
        "study": None,
        "pictures": "",
        "viewer": "",
        "payload": "",
        "model_view": "",
        "samples": samples_html(samples, None),
        "preview": refuse(error)["status"],
        "status": frame.status("There is no picture yet."),
    }
    return cleared() | none


def choose_frame(image: object, multiframe: object, wanted: object) -> Update:
    """Show another frame of the uploaded file; the model then reads that one."""
    try:
        if not isinstance(image, Image) or not isinstance(multiframe, bytes) or not multiframe:
            raise SettingsError("There is no file with several frames. Upload one.")
        number = whole("The frame", wanted, 0, image.frames - 1)
        read = read_image(multiframe, frame=number)
        read = replace(read, sha256=image.sha256, patient=image.patient)
        chosen: Update = {
            "image": payload.retained(read),
            "preview": viewer.details(read, UPLOADED),
            "status": frame.status(f"Frame {number + 1} of {read.frames}. Press Ask."),
        }
        return cleared() | chosen | payload.update(read, UPLOADED, multiframe=True)
    except Exception as error:
        return refuse(error)


def model_view(backend: Backend, image: object, window: object) -> Update:
    """Show the square that the model would read, through the person's window if it is ticked."""
    if not isinstance(image, Image):
        return {"model_view": ""}
    try:
        pipeline = backend.pipeline()
        from mrrag.model.backbone import model_input

        chosen = viewer.through_window(image, window)
        pixels = model_input(pipeline.backbone, chosen)
        return {"model_view": viewer.model_view(pixels, by_hand=chosen is not image)}
    except Exception as error:
        return refuse(error)
