"""Files of one study, dropped together or in a ZIP archive → its pictures, in order.

An archive is read in memory only: its names and paths are neither used nor kept, since they may
name the patient, and what it inflates to is counted as it comes. This module does not know what
a page looks like.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from io import BytesIO

from mrrag.data.dicom import is_dicom
from mrrag.data.images import place_in_series, read_image, strip_identity, thumbnail
from mrrag.data.limits import EXPORT, FORMATS, MAX_BYTES, refusal
from mrrag.data.pictures import picture_format
from mrrag.data.views import view_of
from mrrag.errors import ImageError

__all__ = ["Study", "StudyPicture", "is_zip", "read_study"]

MAX_MEMBERS = 500  # files in an archive
MAX_PICTURES = 24  # of a study; each is decoded once, for its thumbnail
MAX_INFLATED = 2**27  # bytes of all members that are read
MAX_RATIO = 200  # of inflated to packed bytes; films are packed to a third, rarely to a tenth
SLACK = 2**20  # bytes that any archive may inflate to
HEAD = 512  # bytes that tell whether a member is a picture
CHUNK = 2**16
THUMBNAIL_PX = 96


@dataclass(frozen=True)
class StudyPicture:
    """One picture of a study, to be opened by :func:`~mrrag.data.images.read_image`.

    Attributes
    ----------
    label : str
        Such as "Picture 3 of 5, frontal"; never a file's name.
    thumbnail : bytes
        A grey JPEG, its longest side ``THUMBNAIL_PX``.
    file : bytes
        The file; of DICOM only the attributes that are parsed.
    sha256 : str
        Of the file as it came.
    """

    label: str
    thumbnail: bytes
    file: bytes
    sha256: str


@dataclass(frozen=True)
class Study:
    """The pictures of one study.

    Attributes
    ----------
    pictures : tuple of StudyPicture
        By series and instance number where these are known, else as they came.
    first : int
        The one to open: the first frontal view, else the first.
    skipped : int
        How many files are not among them.
    patient : str
        The patient's pseudonym, as in :class:`~mrrag.types.Image`.
    """

    pictures: tuple[StudyPicture, ...]
    first: int
    skipped: int
    patient: str = ""


def is_zip(data: bytes) -> bool:
    """Return whether bytes begin as a ZIP archive does."""
    return data[:4] in (b"PK\x03\x04", b"PK\x05\x06")


def read_study(files: Sequence[bytes]) -> Study:
    """Read the pictures of files that came together, and of the ZIP archives among them.

    Files that are no picture, or a damaged one, are skipped and counted; so are pictures
    beyond ``MAX_PICTURES``, and those that would need more than ``MAX_BYTES`` to keep.

    Raises
    ------
    ImageError
        If there is no picture, or an archive is damaged, encrypted or too large.
    """
    found: list[tuple[tuple[float, str, float, int], str, StudyPicture]] = []
    skipped, kept = 0, 0
    reason: ImageError | None = None
    for data in _unpacked(files):
        if data is None or len(found) == MAX_PICTURES:
            skipped += 1
            continue
        try:
            image = read_image(data)
            file = strip_identity(data) if is_dicom(data) else data
            place = place_in_series(data)
        except ImageError as error:
            skipped, reason = skipped + 1, error
            continue
        if kept + len(file) > MAX_BYTES:
            skipped += 1
            continue
        kept += len(file)
        view = view_of(image.tags.get("view position", ""))
        picture = StudyPicture("", thumbnail(image, THUMBNAIL_PX), file, image.sha256)
        found.append(((*place, len(found)), view, picture))
    if not found:
        if reason and skipped == 1:
            raise reason
        raise refusal(f"None of the {skipped} files is a picture that is read.", FORMATS, EXPORT)
    found.sort(key=lambda entry: entry[0])
    views = [view for _, view, _ in found]
    labels = (f"Picture {n} of {len(found)}" for n in range(1, len(found) + 1))
    pictures = tuple(
        replace(picture, label=label + f", {view}" * bool(view))
        for (_, view, picture), label in zip(found, labels, strict=True)
    )
    return Study(pictures, views.index("frontal") if "frontal" in views else 0, skipped)


def _unpacked(files: Sequence[bytes]) -> Iterator[bytes | None]:
    """Yield each file and each member of an archive; None for a member that is no picture."""
    for data in files:
        if is_zip(data):
            yield from _members(data)
        else:
            yield data


def _members(data: bytes) -> Iterator[bytes | None]:
    """Yield an archive's members, inflated; None for one that is no picture, or is damaged."""
    # Each entry of the directory begins so, and zipfile would keep millions of them.
    if data.count(b"PK\x01\x02") > MAX_MEMBERS:
        raise _refused(f"The ZIP archive holds more than {MAX_MEMBERS} files.")
    try:
        archive = zipfile.ZipFile(BytesIO(data))
    except Exception as error:  # zipfile raises many kinds on damaged bytes
        raise _refused("The ZIP archive is damaged or cut short.") from error
    left = min(MAX_INFLATED, MAX_RATIO * len(data) + SLACK)
    with archive:
        for member in archive.infolist():
            if member.is_dir():
                continue
            if member.flag_bits & 1:
                raise _refused("The ZIP archive is encrypted.")
            inflated = _inflate(archive, member, left)
            left -= len(inflated or b"")
            yield inflated


def _inflate(archive: zipfile.ZipFile, member: zipfile.ZipInfo, left: int) -> bytes | None:
    """Inflate a member if it begins as a picture does, and counts no more than ``left`` bytes.

    Raises
    ------
    ImageError
        If it inflates to more.
    """
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return None
    try:
        with archive.open(member) as file:
            inflated = bytearray(file.read(HEAD))
            if not (is_dicom(bytes(inflated)) or picture_format(bytes(inflated))):
                return None
            while len(inflated) <= min(left, MAX_BYTES):
                chunk = file.read(CHUNK)
                if not chunk:
                    return bytes(inflated)
                inflated += chunk
    except Exception:  # a wrong checksum, a broken stream, a name that does not match
        return None
    raise _refused("The ZIP archive inflates to more than is read.")


def _refused(came: str) -> ImageError:
    return refusal(
        came,
        f"ZIP archives without a password are read, of at most {MAX_MEMBERS} files and "
        f"{MAX_INFLATED:,} bytes.",
        "Drop the study's pictures themselves.",
    )
