"""A study's files: unpacked in memory within limits, ordered, and named after nobody."""

from __future__ import annotations

import io
import struct
import zipfile
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from tiny_dicom import NAME, RAMP, make_dicom, make_picture, shipped

from mrrag.data import archives
from mrrag.data.archives import MAX_MEMBERS, MAX_PICTURES, Study, is_zip, read_study
from mrrag.data.images import read_image
from mrrag.errors import ImageError

PNG = make_picture(PIL.Image.fromarray(RAMP))
FRONTAL = make_dicom(RAMP, SeriesNumber=2, InstanceNumber=10, ViewPosition="PA")
LATERAL = make_dicom(RAMP.T.copy(), SeriesNumber=1, InstanceNumber=1, ViewPosition="LL")
SECOND = make_dicom(255 - RAMP, SeriesNumber=2, InstanceNumber=9)


def packed(*members: tuple[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return file.getvalue()


def refusal(*files: bytes) -> str:
    with pytest.raises(ImageError) as caught:
        read_study(files)
    assert "Secret" not in str(caught.value)
    assert str(caught.value).count(". ") == 2
    return str(caught.value)


def shown(study: Study) -> list[list[int]]:
    """The first two values of each picture as it is opened."""
    displays = [read_image(picture.file).display for picture in study.pictures]
    return [display.ravel()[:2].tolist() for display in displays]


def test_a_zip_gives_its_pictures_in_the_studys_order() -> None:
    data = packed(
        ("Patient^Secret/", b""),
        ("Patient^Secret/IM1", FRONTAL),
        ("Patient^Secret/IM2", SECOND),
        ("photo.png", PNG),
        ("../../report.txt", b"Patient^Secret has ID 4711."),
        ("IM3", LATERAL),
        ("DICOMDIR", shipped("DICOMDIR")),
    )
    assert is_zip(data)
    study = read_study([data])
    assert [picture.label for picture in study.pictures] == [
        "Picture 1 of 4, lateral", "Picture 2 of 4", "Picture 3 of 4, frontal", "Picture 4 of 4",
    ]  # fmt: skip
    assert shown(study) == [[0, 16], [255, 254], [0, 1], [0, 1]]
    assert study.first == 2  # the frontal one
    assert study.skipped == 2
    assert study.pictures[2].sha256 == read_image(FRONTAL).sha256
    small = PIL.Image.open(io.BytesIO(study.pictures[0].thumbnail))
    assert (small.format, max(small.size)) == ("JPEG", archives.THUMBNAIL_PX)


def test_loose_files_are_a_study_too_and_name_nobody() -> None:
    study = read_study([PNG, FRONTAL, packed(("a", LATERAL))])
    assert [picture.label for picture in study.pictures] == [
        "Picture 1 of 3, lateral", "Picture 2 of 3, frontal", "Picture 3 of 3",
    ]  # fmt: skip
    for picture in study.pictures:
        for secret in (NAME.encode(), b"ID-4711", b"1.2.3\0"):
            assert secret not in picture.file


def test_what_is_no_picture_is_skipped_and_counted() -> None:
    inner = packed(("inner.png", PNG))  # an archive in an archive is not opened
    broken = bytearray(packed(("broken.png", PNG), method=zipfile.ZIP_STORED))
    broken[60] ^= 255  # its checksum is wrong
    data = packed(("a.zip", inner), ("a.txt", b"text"), ("half.png", PNG[:45]), ("b.png", PNG))
    study = read_study([data, bytes(broken), b"%PDF-1.7", b""])
    assert (len(study.pictures), study.skipped) == (1, 6)
    assert "None of the 2 files" in refusal(packed(("a.zip", inner), ("a.txt", b"text")))
    assert "None of the 0 files" in refusal(packed())
    assert "a PDF document" in refusal(b"%PDF-1.7")


def test_an_encrypted_archive_is_refused() -> None:
    data = bytearray(packed(("a.png", PNG)))
    for at in (6, data.index(b"PK\x01\x02") + 8):
        data[at] |= 1
    assert "encrypted" in refusal(bytes(data))


def test_a_damaged_archive_is_refused_or_read_and_nothing_else() -> None:
    data = packed(("a.png", PNG), ("b.dcm", FRONTAL))
    for length in (4, 30, len(data) // 2, len(data) - 5):
        assert "damaged" in refusal(data[:length])
    chance = np.random.default_rng(0)
    for _ in range(60):
        damaged = bytearray(data)
        for at in chance.integers(0, len(data), 4):
            damaged[at] = chance.integers(256)
        try:
            read_study([bytes(damaged)])
        except ImageError:
            continue


def test_archives_of_too_many_files_are_refused_before_they_are_listed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = packed(*((str(n), b"") for n in range(MAX_MEMBERS + 1)))
    monkeypatch.delattr(archives.zipfile, "ZipFile")
    assert f"more than {MAX_MEMBERS} files" in refusal(data)


def test_a_bomb_is_not_inflated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "SLACK", 2**16)
    bomb = packed(("a.png", PNG + bytes(2**22)))  # 4 MiB from 4 KiB
    assert len(bomb) * archives.MAX_RATIO < 2**22
    assert "inflates to more" in refusal(bomb)
    # One that lies about its size is not believed either.
    lying = bytearray(bomb)
    for at in (22, lying.index(b"PK\x01\x02") + 24):
        lying[at : at + 4] = struct.pack("<I", 1000)
    refusal(bytes(lying))
    monkeypatch.setattr(archives, "SLACK", 2**30)
    monkeypatch.setattr(archives, "MAX_INFLATED", len(PNG) + 10)
    assert "inflates to more" in refusal(packed(("a.png", PNG), ("b.png", PNG)))
    text = packed(("a.txt", bytes(2**20)), ("a.png", PNG))  # not inflated, and so not counted
    assert read_study([text]).skipped == 1


def test_more_pictures_than_are_shown_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    study = read_study([PNG] * (MAX_PICTURES + 3))
    assert (len(study.pictures), study.skipped) == (MAX_PICTURES, 3)
    monkeypatch.setattr(archives, "MAX_BYTES", 3 * len(PNG))
    assert (len(read_study([PNG] * 5).pictures), read_study([PNG] * 5).skipped) == (3, 2)


def test_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    read_study([packed(("../up.png", PNG), ("/abs.dcm", FRONTAL))])
    assert not list(tmp_path.iterdir())


def test_a_number_that_is_none_sorts_last() -> None:
    odd = make_dicom(RAMP, SeriesNumber=2, InstanceNumber=7777).replace(b"7777", b"7x77")
    assert shown(read_study([odd, SECOND])) == [[255, 254], [0, 1]]
