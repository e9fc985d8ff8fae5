"""Several pictures uploaded at once: one is opened, the others are a press away.

The files of a study are kept in the state of the visit, DICOM files without the identity of the
patient, and go with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from app import frame
from app.sections import payload, viewer
from app.sections.case import Sample, no_picture, read_upload, samples_html
from app.sections.settings import whole
from app.sections.visit import Update, cleared, refuse
from mrrag.data.archives import MAX_PICTURES, Study, is_zip, read_study
from mrrag.data.images import read_image
from mrrag.errors import SettingsError
from mrrag.report.pictures import file_url


@dataclass(frozen=True)
class OpenStudy:
    """A study's pictures, and which of them is open."""

    study: Study
    chosen: int


def read_uploads(samples: Sequence[Sample], files: Sequence[bytes]) -> Update:
    """Show what was uploaded: a picture, or the first of several with a picker for the others."""
    files = [data for data in files if data]
    if len(files) < 2 and not any(map(is_zip, files)):
        return read_upload(samples, files[0] if files else b"")
    try:
        study = read_study(files)
        said = f"{len(study.pictures)} pictures were read, and the upload was deleted."
        if len(study.pictures) == 1:  # there is no picker to say the rest
            said = f"One picture was read, and the upload was deleted.{skipped(study)}"
        status = f"{said} Type a question, press Ask."
        return open_picture(study, study.first, status) | {"samples": samples_html(samples, None)}
    except Exception as error:
        return no_picture(samples, error)


def choose_picture(state: object, wanted: object) -> Update:
    """Open another picture of the uploaded study; the model then reads that one."""
    try:
        if not isinstance(state, OpenStudy):
            raise SettingsError(
                "There is no upload of several pictures. Upload a study's files, or a ZIP."
            )
        study = state.study
        number = whole("The picture", wanted, 0, len(study.pictures) - 1)
        return open_picture(study, number, f"{study.pictures[number].label}. Press Ask.")
    except Exception as error:
        return refuse(error)


def open_picture(study: Study, number: int, status: str) -> Update:
    """Show one of a study's pictures, and the picker where there are several."""
    picture = study.pictures[number]
    image = read_image(picture.file)
    image = replace(image, sha256=picture.sha256, patient=study.patient)
    multiframe = payload.other_frames(picture.file, image)
    opened: Update = {
        "image": payload.retained(image),
        "multiframe": multiframe,
        "study": OpenStudy(study, number),
        "pictures": picker(study, number),
        "preview": viewer.details(image, picture.label),
        "status": frame.status(status),
    }
    return cleared() | opened | payload.update(image, picture.label, multiframe=bool(multiframe))


def picker(study: Study, chosen: int) -> str:
    """Return the pictures as buttons, or nothing where there is only one."""
    if len(study.pictures) < 2:
        return ""
    pictures = [(picture.label, file_url(picture.thumbnail)) for picture in study.pictures]
    return frame.render("pictures.html", pictures=pictures, chosen=chosen, skipped=skipped(study))


def skipped(study: Study) -> str:
    """Return in a sentence how many files are not among the pictures, or nothing."""
    if not study.skipped:
        return ""
    files = "1 file was" if study.skipped == 1 else f"{study.skipped} files were"
    full = len(study.pictures) == MAX_PICTURES
    why = f"only {MAX_PICTURES} pictures are shown" if full else "no readable picture"
    return f" {files} left out: {why}."
