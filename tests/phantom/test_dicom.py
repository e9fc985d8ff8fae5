"""The phantom's DICOM and PNG files: valid, reproducible, and true to the pixels."""

import io
import warnings

import numpy as np
import numpy.typing as npt
import pydicom
import pytest
from PIL import Image
from pydicom.pixels.processing import apply_presentation_lut, apply_rescale, apply_voi_lut
from pydicom.uid import UID, DigitalXRayImageStorageForPresentation

from mrrag.phantom.dicom import Photometric, dicom_bytes, png_bytes
from mrrag.phantom.render import render
from mrrag.phantom.world import Study

STUDY = Study(7, 123, "F", 61, 0.4, 1.0, 0.7, 0.5, (), 99)
PHOTOMETRICS: tuple[Photometric, ...] = ("MONOCHROME1", "MONOCHROME2")


@pytest.fixture(scope="module")
def pixels() -> npt.NDArray[np.uint16]:
    return render(STUDY, 128)[:, :120].copy()


def read(data: bytes) -> pydicom.FileDataset:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ds = pydicom.dcmread(io.BytesIO(data))
        for element in ds.iterall():
            assert element.value is not None or element.VM == 0
    return ds


@pytest.mark.parametrize("photometric", PHOTOMETRICS)
def test_pixels_come_back_exactly(pixels: npt.NDArray[np.uint16], photometric: Photometric) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        stored = read(dicom_bytes(STUDY, pixels, photometric)).pixel_array
    expected = pixels if photometric == "MONOCHROME2" else 4095 - pixels
    assert stored.dtype == np.uint16
    assert np.array_equal(stored, expected)


@pytest.mark.parametrize("window", [0, 1])
def test_both_photometric_interpretations_display_the_same(
    pixels: npt.NDArray[np.uint16], window: int
) -> None:
    shown = []
    for photometric in PHOTOMETRICS:
        ds = read(dicom_bytes(STUDY, pixels, photometric))
        windowed = apply_voi_lut(apply_rescale(ds.pixel_array, ds), ds, index=window)
        lut = apply_presentation_lut(windowed, ds)
        shown.append((lut - lut.min()) / (lut.max() - lut.min()))
    assert np.allclose(shown[0], shown[1], atol=1e-6)
    assert shown[1].std() > 0.1


def test_the_normal_window_shows_every_grey_value(pixels: npt.NDArray[np.uint16]) -> None:
    ds = read(dicom_bytes(STUDY, pixels))
    assert np.allclose(apply_voi_lut(ds.pixel_array, ds, index=0), pixels, atol=1e-6)
    assert list(ds.WindowCenterWidthExplanation) == ["NORMAL", "WIDE"]
    assert len(ds.WindowCenter) == len(ds.WindowWidth) == 2


@pytest.mark.parametrize("photometric", PHOTOMETRICS)
def test_the_header_is_consistent(pixels: npt.NDArray[np.uint16], photometric: Photometric) -> None:
    ds = read(dicom_bytes(STUDY, pixels, photometric))
    assert ds.file_meta.MediaStorageSOPClassUID == DigitalXRayImageStorageForPresentation
    assert ds.file_meta.MediaStorageSOPInstanceUID == ds.SOPInstanceUID
    assert (ds.Rows, ds.Columns) == pixels.shape
    assert (ds.BitsAllocated, ds.BitsStored, ds.HighBit) == (16, 12, 11)
    shape = {"MONOCHROME1": "INVERSE", "MONOCHROME2": "IDENTITY"}[photometric]
    assert ds.PresentationLUTShape == shape
    assert ds.PatientID == "PHANTOM-000123"
    assert (ds.ViewPosition, ds.BodyPartExamined) == ("PA", "CHEST")
    assert list(ds.PatientOrientation) == ["L", "F"]
    assert ds.BurnedInAnnotation == "NO"
    assert ds.ImagerPixelSpacing[0] * ds.Rows == pytest.approx(400, abs=0.01)
    uids = [ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.SOPInstanceUID]
    assert len(set(uids)) == 3
    assert all(UID(uid).is_valid for uid in uids)


def test_the_same_study_gives_the_same_bytes(pixels: npt.NDArray[np.uint16]) -> None:
    assert dicom_bytes(STUDY, pixels) == dicom_bytes(STUDY, pixels)


def test_the_patient_name_is_stored(pixels: npt.NDArray[np.uint16]) -> None:
    ds = read(dicom_bytes(STUDY, pixels, patient_name="Müller^Anna"))
    assert str(ds.PatientName) == "Müller^Anna"


def test_values_beyond_twelve_bits_are_refused() -> None:
    with pytest.raises(ValueError, match=r"0\.\.4095"):
        dicom_bytes(STUDY, np.full((8, 8), 4096, np.uint16))


def test_png_keeps_the_grey_scale(pixels: npt.NDArray[np.uint16]) -> None:
    eight = np.asarray(Image.open(io.BytesIO(png_bytes(pixels, 8))))
    sixteen = np.asarray(Image.open(io.BytesIO(png_bytes(pixels, 16))))
    assert np.array_equal(eight, pixels >> 4)
    assert np.array_equal(sixteen >> 4, pixels)
