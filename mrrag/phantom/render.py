"""Draw the frontal chest radiograph of a phantom patient.

The steps: proportions of a healthy chest, changed by the findings that reshape it; anatomy
painted on a film; the findings painted over it; exposure. Each structure has a random stream
of its own, so removing a finding leaves the rest of the image unchanged.

Not modelled: true X-ray physics (beam hardening, scatter, magnification), lateral views,
children, surgery, and diseases other than those in :data:`mrrag.phantom.world.KINDS`. The
images are for showing and testing software. They are not fit to train or judge anything
meant for patients.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from mrrag.phantom.anatomy import (
    paint_abdomen,
    paint_body,
    paint_breasts,
    paint_heart,
    paint_hila,
    paint_lungs,
    paint_mediastinum,
    paint_ribs,
    paint_shoulders,
    paint_spine,
    paint_vessels,
)
from mrrag.phantom.chest import Chest, healthy_chest
from mrrag.phantom.disease import paint_findings, reshape
from mrrag.phantom.film import Film, projection_of
from mrrag.phantom.world import Study

# In the order of drawing: bones over soft tissue, the small parts last.
ANATOMY = (
    paint_body,
    paint_breasts,
    paint_lungs,
    paint_heart,
    paint_mediastinum,
    paint_hila,
    paint_abdomen,
    paint_spine,
    paint_ribs,
    paint_shoulders,
)


def build_chest(study: Study) -> Chest:
    """Return the proportions of the study's patient, findings included."""
    chest = healthy_chest(study)
    reshape(chest, study)
    return chest


def render(study: Study, size: int = 512) -> npt.NDArray[np.uint16]:
    """Draw the frontal radiograph of a study.

    Parameters
    ----------
    study : Study
        The patient and findings. ``study.seed`` fixes everything the other fields leave open.
    size : int
        Height and width of the image in pixels, at least 64. The anatomy is the same at any
        size; the noise is not.

    Returns
    -------
    ndarray of uint16, shape [size, size]
        12-bit grey values, 0..4095, MONOCHROME2: air is dark, bone and metal bright.
        Row 0 is the head end; the patient's right is on the left of the image.
    """
    if size < 64:
        raise ValueError(f"size must be at least 64, not {size}")
    chest = build_chest(study)
    film = Film(size, projection_of(study))
    for paint in ANATOMY:
        paint(film, chest, study)
    paint_findings(film, chest, study)
    paint_vessels(film, chest, study)
    if film.devices.image.getbbox():
        film.fine += 1.3 * film.devices.read()
    return film.develop(study)
