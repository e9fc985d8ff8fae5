"""Small DICOM files and pictures for tests, and the files that pydicom ships."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pydicom
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
)

NAME = "Patient^Secret"
RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16)
RGB = np.random.default_rng(0).integers(0, 256, (12, 10, 3), dtype=np.uint8)


def shipped(name: str) -> bytes:
    """Return a test file of pydicom's own package."""
    path = get_testdata_file(name, download=False)
    assert path is not None, name
    return Path(str(path)).read_bytes()


def make_dicom(
    pixels: np.ndarray | bytes, syntax: str = ExplicitVRLittleEndian, /, **attributes: Any
) -> bytes:
    """Return a DICOM file of one grey or RGB frame.

    Attributes are set, overwriting those made from the pixels, or removed if None.
    """
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
    dataset.SOPInstanceUID = "1.2.3"
    dataset.PatientName = NAME
    dataset.PatientID = "ID-4711"
    if isinstance(pixels, np.ndarray):
        signed = pixels.dtype.kind == "i"
        dataset.Rows, dataset.Columns = pixels.shape[:2]
        dataset.SamplesPerPixel = 3 if pixels.ndim == 3 else 1
        dataset.PhotometricInterpretation = "RGB" if pixels.ndim == 3 else "MONOCHROME2"
        if pixels.ndim == 3:
            dataset.PlanarConfiguration = 0
        dataset.BitsAllocated = dataset.BitsStored = 8 * pixels.itemsize
        dataset.HighBit = dataset.BitsStored - 1
        dataset.PixelRepresentation = int(signed)
        big = syntax == ExplicitVRBigEndian
        data = pixels.astype(pixels.dtype.newbyteorder(">" if big else "<")).tobytes()
        dataset.add_new("PixelData", "OW", data + b"\0" * (len(data) % 2))
    else:
        dataset.add_new("PixelData", "OB", pixels)
    dataset["PixelData"].is_undefined_length = dataset.file_meta.TransferSyntaxUID.is_encapsulated
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some of these files are wrong on purpose
        for keyword, value in attributes.items():
            if value is None:
                del dataset[keyword]
            else:
                setattr(dataset, keyword, value)
        pydicom.dcmwrite(file, dataset, enforce_file_format=True)
    return file.getvalue()


def make_compressed(code: bytes, syntax: str, like: np.ndarray, **attributes: Any) -> bytes:
    """Return a DICOM file of a compressed frame, with the attributes of the pixels ``like``."""
    described = pydicom.dcmread(io.BytesIO(make_dicom(like)))
    keywords = ("Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation")
    keywords += ("BitsAllocated", "BitsStored", "PixelRepresentation")
    values = {keyword: described[keyword].value for keyword in keywords}
    if like.ndim == 3:
        values["PlanarConfiguration"] = 0
    return make_dicom(encapsulate([code]), syntax, **{**values, **attributes})


def make_item(**attributes: Any) -> list[Dataset]:
    """Return a sequence of one item."""
    item = Dataset()
    for keyword, value in attributes.items():
        setattr(item, keyword, value)
    return [item]


def make_table(entries: list[int], first: int = 0, bits: int = 8) -> list[Dataset]:
    """Return a Modality or VOI LUT Sequence of one table, with its data as OW words."""
    item = Dataset()
    item.add_new("LUTDescriptor", "SS" if first < 0 else "US", [len(entries) % 65536, first, bits])
    item.add_new("LUTData", "OW", np.array(entries, "<u2").tobytes())
    return [item]


def make_picture(picture: PIL.Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """Return a picture as a file of a format that Pillow writes."""
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()
