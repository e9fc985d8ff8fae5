"""Encode a phantom radiograph as a DICOM file or a PNG.

The DICOM file is a *Digital X-Ray Image - For Presentation*: 12 bits stored in 16, with two
display windows, an invented name and a fixed date. Nothing in it comes from a real person.
The same study and pixels always give the same bytes.

This module does not know how the image was made. It takes pixels in the MONOCHROME2 sense
(bright is dense) and can store them as MONOCHROME1.
"""

from __future__ import annotations

import io
import zlib
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import (
    UID,
    DigitalXRayImageStorageForPresentation,
    ExplicitVRLittleEndian,
    generate_uid,
)

from mrrag.phantom.world import Study

Pixels = npt.NDArray[np.uint16]
Photometric = Literal["MONOCHROME1", "MONOCHROME2"]

MAX_VALUE = 4095
DATE = "20240101"  # of every study, so that files are reproducible
FIELD_MM = 400.0  # side of the imaged field at the detector
WINDOWS = (("NORMAL", 2048.0, 4096.0), ("WIDE", 2048.0, 6144.0))


def dicom_bytes(
    study: Study,
    pixels: Pixels,
    photometric: Photometric = "MONOCHROME2",
    patient_name: str = "Phantom^Patient",
) -> bytes:
    """Encode a radiograph as a DICOM Part 10 file.

    Parameters
    ----------
    study : Study
        The patient's number, sex and age, from which the identifiers are made too.
    pixels : ndarray of uint16, shape [rows, columns]
        Grey values 0..4095 in the MONOCHROME2 sense (air dark).
    photometric : {"MONOCHROME2", "MONOCHROME1"}
        With "MONOCHROME1" the file stores ``4095 - pixels``; it displays the same.
    patient_name : str
        DICOM person name, ``Family^Given``.

    Returns
    -------
    bytes
        The whole file, explicit VR little endian, uncompressed.
    """
    if pixels.dtype != np.uint16 or pixels.ndim != 2 or int(pixels.max()) > MAX_VALUE:
        raise ValueError(
            "pixels must be a 2-D uint16 array with values 0..4095, "
            f"not {pixels.dtype} {pixels.shape} up to {pixels.max()}"
        )
    ds = FileDataset("", {}, file_meta=_file_meta(study), preamble=b"\0" * 128)
    _identify(ds, study, patient_name)
    _describe_acquisition(ds, study, pixels.shape)
    _store(ds, pixels, photometric)
    buffer = io.BytesIO()
    ds.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def png_bytes(pixels: Pixels, bits: Literal[8, 16] = 8) -> bytes:
    """Encode a radiograph as a grey PNG.

    Parameters
    ----------
    pixels : ndarray of uint16, shape [rows, columns]
        Grey values 0..4095 in the MONOCHROME2 sense.
    bits : {8, 16}
        8 keeps the upper eight of the twelve bits; 16 scales 0..4095 to 0..65535.
    """
    if bits == 8:
        image = Image.fromarray((pixels >> 4).astype(np.uint8))
    else:
        image = Image.fromarray((pixels << 4) | (pixels >> 8))
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()


def _uid(study: Study, what: str) -> UID:
    number = f"{study.patient}.{study.uid}.{study.seed}"
    return generate_uid(entropy_srcs=["mr-rag phantom", what, number])


def _file_meta(study: Study) -> FileMetaDataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = DigitalXRayImageStorageForPresentation
    meta.MediaStorageSOPInstanceUID = _uid(study, "instance")
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID = generate_uid(entropy_srcs=["mr-rag phantom writer"])
    meta.ImplementationVersionName = "MR-RAG PHANTOM"
    return meta


def _identify(ds: Dataset, study: Study, patient_name: str) -> None:
    """Fill in patient, study, series, equipment and instance."""
    ds.SpecificCharacterSet = "ISO_IR 192"
    ds.PatientName = patient_name
    ds.PatientID = f"PHANTOM-{study.patient:06d}"
    ds.PatientSex = study.sex
    ds.PatientAge = f"{study.age:03d}Y"
    ds.PatientBirthDate = f"{int(DATE[:4]) - study.age:04d}0101"
    ds.PatientIdentityRemoved = "YES"
    ds.DeidentificationMethod = "Synthetic phantom: there is no patient"
    ds.StudyInstanceUID = _uid(study, "study")
    ds.SeriesInstanceUID = _uid(study, "series")
    ds.SOPInstanceUID = _uid(study, "instance")
    ds.SOPClassUID = DigitalXRayImageStorageForPresentation
    ds.StudyDate = ds.SeriesDate = ds.AcquisitionDate = ds.ContentDate = DATE
    ds.StudyTime = ds.SeriesTime = ds.AcquisitionTime = ds.ContentTime = "120000"
    ds.StudyID = str(study.uid)
    ds.AccessionNumber = f"PH{zlib.crc32(ds.StudyInstanceUID.encode()):010d}"
    ds.ReferringPhysicianName = ""
    ds.StudyDescription = "Synthetic chest radiograph"
    ds.SeriesDescription = "Chest PA"
    ds.SeriesNumber = "1"
    ds.InstanceNumber = "1"
    ds.Modality = "DX"
    ds.PresentationIntentType = "FOR PRESENTATION"
    ds.Manufacturer = "MR-RAG phantom"
    ds.ManufacturerModelName = "mrrag.phantom"
    ds.ConversionType = "SYN"


def _describe_acquisition(ds: Dataset, study: Study, shape: tuple[int, ...]) -> None:
    """Fill in anatomy, view and geometry: postero-anterior, patient's left on the right."""
    ds.BodyPartExamined = "CHEST"
    ds.AnatomicRegionSequence = Sequence([_code("51185008", "Chest")])
    ds.ViewPosition = "PA"
    ds.ViewCodeSequence = Sequence([_code("399348003", "postero-anterior")])
    ds.ViewCodeSequence[0].ViewModifierCodeSequence = Sequence()
    ds.PatientOrientation = ["L", "F"]
    ds.PatientOrientationCodeSequence = Sequence()
    ds.ImageLaterality = "U"
    ds.ImageType = ["DERIVED", "PRIMARY", ""]
    ds.DerivationDescription = "Computed phantom"
    ds.PositionerType = "NONE"
    ds.DetectorType = "DIRECT"
    ds.FieldOfViewShape = "RECTANGLE"
    spacing = [f"{FIELD_MM / n:.6f}" for n in shape]
    ds.ImagerPixelSpacing = spacing
    ds.PixelSpacing = spacing
    ds.PixelSpacingCalibrationType = "GEOMETRY"
    ds.PixelSpacingCalibrationDescription = "Nominal phantom field, no magnification"
    ds.AcquisitionContextSequence = Sequence()
    ds.AcquisitionDeviceProcessingDescription = "None"
    ds.ImageComments = f"Synthetic image, not of a person; phantom study {study.uid}"


def _code(value: str, meaning: str) -> Dataset:
    item = Dataset()
    item.CodeValue = value
    item.CodingSchemeDesignator = "SCT"
    item.CodeMeaning = meaning
    return item


def _store(ds: Dataset, pixels: Pixels, photometric: Photometric) -> None:
    """Fill in the pixel data and its display."""
    inverse = photometric == "MONOCHROME1"
    ds.SamplesPerPixel = 1
    ds.PhotometricInterpretation = photometric
    ds.Rows, ds.Columns = pixels.shape
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = 16, 12, 11
    ds.PixelRepresentation = 0
    ds.PixelIntensityRelationship = "LOG"
    ds.PixelIntensityRelationshipSign = -1 if not inverse else 1
    ds.RescaleIntercept, ds.RescaleSlope, ds.RescaleType = "0", "1", "US"
    ds.PresentationLUTShape = "INVERSE" if inverse else "IDENTITY"
    ds.LossyImageCompression = "00"
    ds.BurnedInAnnotation = "NO"
    ds.WindowCenter = [f"{centre:g}" for _, centre, _ in WINDOWS]
    ds.WindowWidth = [f"{width:g}" for _, _, width in WINDOWS]
    ds.WindowCenterWidthExplanation = [name for name, _, _ in WINDOWS]
    ds.VOILUTFunction = "LINEAR"
    stored = MAX_VALUE - pixels if inverse else pixels
    ds.PixelData = np.ascontiguousarray(stored, dtype="<u2").tobytes()
    ds["PixelData"].VR = "OW"
