"""Write a phantom population to disk in the layout of a real data set.

So the code that reads phantoms is the code that reads real data. The layouts are the Kaggle
form of IU-Xray, MIMIC-CXR-JPG and, for eyes, Harvard-FairVLMed. Each gets two files that a
real copy lacks: ``questions.jsonl`` and ``source.json`` (origin and licence); IU-Xray also
gets ``splits.csv`` (uid, patient, split).
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import random
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from threadpoolctl import threadpool_limits

from mrrag.files import write_atomic
from mrrag.phantom.dicom import png_bytes
from mrrag.phantom.fundus import Eye, ask_about, draw_eyes, render_eye, write_note
from mrrag.phantom.render import render
from mrrag.phantom.report import QuestionAnswer, ask, canonical, prevalence, write_report
from mrrag.phantom.world import Study, draw_studies

SPLITS: tuple[tuple[str, float], ...] = (("train", 0.7), ("validation", 0.1), ("test", 0.2))
LICENCE = "CC0-1.0"
# CheXpert's fourteen labels, and the phantom findings that each stands for.
CHEXPERT: dict[str, tuple[str, ...]] = {
    "Atelectasis": ("atelectasis",),
    "Cardiomegaly": ("cardiomegaly",),
    "Consolidation": ("consolidation",),
    "Edema": ("pulmonary edema",),
    "Enlarged Cardiomediastinum": (),
    "Fracture": ("rib fracture",),
    "Lung Lesion": ("nodule",),
    "Lung Opacity": (),
    "No Finding": (),
    "Pleural Effusion": ("pleural effusion",),
    "Pleural Other": (),
    "Pneumonia": (),
    "Pneumothorax": ("pneumothorax",),
    "Support Devices": ("pacemaker", "central line"),
}

OnProgress = Callable[[Iterable[None], int], Iterable[None]]


class Layout(NamedTuple):
    """The layout of a real data set.

    Attributes
    ----------
    draw
        Number of patients and seed to the population.
    ask
        Population to the questions about each member.
    uid
        Number of a member to the identifier that a reader gives it.
    write_tables
        Writes all but images and questions, for a folder, the population, the split of each
        member and the image size. Returns the path of each member's image, whose folder exists.
    """

    draw: Callable[[int, int], Sequence[Any]]
    ask: Callable[[Sequence[Any]], Iterable[Iterable[QuestionAnswer]]]
    uid: Callable[[int], str]
    write_tables: Callable[[Path, Sequence[Any], Sequence[str], int], list[Path]]


def write_data_set(
    directory: Path,
    layout: str = "iu-xray",
    *,
    patients: int,
    seed: int,
    size: int = 512,
    only: str | None = None,
    workers: int = 2,
    progress: OnProgress = lambda items, total: items,
) -> Sequence[Any]:
    """Draw a population, write it, and return it: studies, or eyes in FairVLMed's layout.

    A stopped run continues: images that exist are not drawn again.

    Parameters
    ----------
    layout
        A key of ``LAYOUTS``.
    size
        Columns of each image, px. A radiograph has as many rows, a fundus 664 / 512 of them.
    only
        Draw the images of this split only; a reader then skips the other studies.
    workers
        Number of rendering processes.
    progress
        Wraps the stream of finished images; its second argument is their number.
    """
    form = LAYOUTS[layout]
    population = form.draw(patients, seed)
    by_patient = split_patients(patients, seed)
    splits = [by_patient[member.patient] for member in population]
    directory.mkdir(parents=True, exist_ok=True)
    about = {"source": f"MR-RAG phantom world, seed {seed}", "licence": LICENCE}
    write_atomic(directory / "source.json", json.dumps(about) + "\n")
    paths = form.write_tables(directory, population, splits, size)
    questions = (
        {"qid": f"{member.uid}-{number}", "uid": form.uid(member.uid), **asdict(question)}
        for member, asked in zip(population, form.ask(population), strict=True)
        for number, question in enumerate(asked)
    )
    write_atomic(directory / "questions.jsonl", "".join(json.dumps(q) + "\n" for q in questions))
    jobs = [
        (member, size, path)
        for member, path, split in zip(population, paths, splits, strict=True)
        if only in (None, split)
    ]
    # One thread a process: more would only wait for one another.
    with ProcessPoolExecutor(workers, initializer=threadpool_limits, initargs=(1,)) as pool:
        for _ in progress(pool.map(_write_image, jobs, chunksize=16), len(jobs)):
            pass
    return population


def split_patients(patients: int, seed: int) -> list[str]:
    """Assign each patient a split, at random."""
    order = np.random.default_rng((seed, 3)).permutation(patients)
    names = [""] * patients
    start = 0
    for name, share in SPLITS:
        stop = patients if name == SPLITS[-1][0] else start + round(share * patients)
        for patient in order[start:stop]:
            names[patient] = name
        start = stop
    return names


# Images


def _png(study: Study, size: int) -> bytes:
    return png_bytes(render(study, size), bits=8)


def _jpeg(study: Study, size: int) -> bytes:
    """Encode a radiograph as MIMIC-CXR-JPG does."""
    buffer = io.BytesIO()
    grey = (render(study, size) >> 4).astype(np.uint8)
    Image.fromarray(grey).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def _npz(eye: Eye, size: int) -> bytes:
    """Encode a fundus as FairVLMed does; -1 is unknown."""
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        slo_fundus=render_eye(eye, size),
        age=np.float64(eye.age),
        gender=np.int64(eye.sex == "male"),
        race=np.int64(-1),
        ethnicity=np.int64(-1),
        language=np.int64(-1),
        maritalstatus=np.int64(-1),
        glaucoma=np.int64(eye.glaucoma),
        note=np.str_(write_note(eye)[0]),
    )
    return buffer.getvalue()


ENCODERS: dict[str, Callable[[Any, int], bytes]] = {".png": _png, ".jpg": _jpeg, ".npz": _npz}


def _write_image(job: tuple[Study | Eye, int, Path]) -> None:
    member, size, path = job
    if not path.exists():
        write_atomic(path, ENCODERS[path.suffix](member, size))


# Tables and reports


def _write_indiana(
    directory: Path, studies: Sequence[Study], splits: Sequence[str], size: int
) -> list[Path]:
    """Write the Kaggle form of IU-Xray."""
    images = directory / "images" / "images_normalized"
    images.mkdir(parents=True, exist_ok=True)
    names = [f"{study.uid}_IM-{study.uid:04d}-1001.dcm.png" for study in studies]
    reports = []
    for study in studies:
        report = write_report(study)
        problems = ";".join(f.name for f in study.findings) or "normal"
        mesh = ";".join(canonical(f) for f in study.findings) or "normal"
        sections = ("", "", report.findings, report.impression)
        reports.append((study.uid, mesh, problems, "Xray Chest PA", *sections))
    columns = ("uid", "MeSH", "Problems", "image")
    sections = ("indication", "comparison", "findings", "impression")
    _write_csv(directory / "indiana_reports.csv", (*columns, *sections), reports)
    views = [(study.uid, name, "Frontal") for study, name in zip(studies, names, strict=True)]
    _write_csv(directory / "indiana_projections.csv", ("uid", "filename", "projection"), views)
    rows = [(s.uid, s.patient, split) for s, split in zip(studies, splits, strict=True)]
    _write_csv(directory / "splits.csv", ("uid", "patient", "split"), rows)
    return [images / name for name in names]


def _write_mimic(
    directory: Path, studies: Sequence[Study], splits: Sequence[str], size: int
) -> list[Path]:
    """Write the form of MIMIC-CXR-JPG, with the reports among the images.

    Identifiers are like the published ones: subjects from ``p10000000``, studies from
    ``s50000000``, and a dicom_id of five hexadecimal words.
    """
    metadata, split_rows, labels, paths = [], [], [], []
    for study, split in zip(studies, splits, strict=True):
        subject, number = 10_000_000 + study.patient, 50_000_000 + study.uid
        draw = random.Random(study.seed)
        dicom = "-".join(f"{draw.getrandbits(32):08x}" for _ in range(5))
        folder = directory / "files" / f"p{subject // 1_000_000}" / f"p{subject}"
        (folder / f"s{number}").mkdir(parents=True, exist_ok=True)
        write_atomic(folder / f"s{number}.txt", _mimic_report(study))
        paths.append(folder / f"s{number}" / f"{dicom}.jpg")
        acquisition = ("CHEST (PA AND LAT)", "PA", size, size, "20240101", "120000.0")
        metadata.append((dicom, subject, number, *acquisition))
        published = "validate" if split == "validation" else split
        split_rows.append((dicom, number, subject, published))
        present = [any(study.finding(n) for n in names) for names in CHEXPERT.values()]
        values = ["1.0" if here else "" for here in present]
        if not any(present):
            values[list(CHEXPERT).index("No Finding")] = "1.0"
        labels.append((subject, number, *values))
    columns = (
        *("dicom_id", "subject_id", "study_id", "PerformedProcedureStepDescription"),
        *("ViewPosition", "Rows", "Columns", "StudyDate", "StudyTime"),
    )
    name = "mimic-cxr-2.0.0-{}.csv.gz".format
    _write_csv(directory / name("metadata"), columns, metadata)
    split_columns = ("dicom_id", "study_id", "subject_id", "split")
    _write_csv(directory / name("split"), split_columns, split_rows)
    _write_csv(directory / name("chexpert"), ("subject_id", "study_id", *CHEXPERT), labels)
    return paths


def _mimic_report(study: Study) -> str:
    """Return the report as MIMIC-CXR formats it: headings in capitals, lines indented by one."""
    report = write_report(study)
    parts = ["EXAMINATION:  CHEST (PA AND LAT)", "INDICATION:  ___ year old", "COMPARISON:  None."]
    parts.append(f"FINDINGS: \n \n {report.findings}")
    if report.impression:
        parts.append(f"IMPRESSION: \n \n {report.impression}")
    return " " * 33 + "FINAL REPORT\n" + "".join(f" {part}\n \n" for part in parts)


def _write_fairvlmed(
    directory: Path, eyes: Sequence[Eye], splits: Sequence[str], size: int
) -> list[Path]:
    """Write the form of Harvard-FairVLMed. Race, ethnicity and language are unknown."""
    folders = {"train": "Training", "validation": "Validation", "test": "Test"}
    for folder in folders.values():
        (directory / folder).mkdir(exist_ok=True)
    summary, notes, paths = [], [], []
    for eye, split in zip(eyes, splits, strict=True):
        name = f"data_{eye.uid:05d}.npz"
        note, short = write_note(eye)
        glaucoma = "yes" if eye.glaucoma else "no"
        texts = (note, short, glaucoma, folders[split].lower())
        summary.append((name, eye.age, eye.sex, *("unknown",) * 4, *texts))
        notes.append((name, note, short))
        paths.append(directory / folders[split] / name)
    columns = ("filename", "age", "gender", "race", "ethnicity", "language", "maritalstatus")
    summary_columns = (*columns, "note", "gpt4_summary", "glaucoma", "use")
    _write_csv(directory / "data_summary.csv", summary_columns, summary)
    note_columns = ("File Name", "Original Note", "Summarized Note")
    _write_csv(directory / "gpt-4_summarized_notes.csv", note_columns, notes)
    return paths


def _write_csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a table, compressed for ``.gz``; the same rows give the same bytes."""
    text = io.StringIO(newline="")
    csv.writer(text).writerows((columns, *rows))
    data = text.getvalue().encode()
    write_atomic(path, gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)


# Layouts


def _ask_studies(studies: Sequence[Study]) -> Iterable[Iterable[QuestionAnswer]]:
    rates = prevalence(studies)
    return (ask(study, write_report(study), rates) for study in studies)


LAYOUTS: dict[str, Layout] = {
    "iu-xray": Layout(draw_studies, _ask_studies, str, _write_indiana),
    "mimic-cxr-jpg": Layout(
        draw_studies, _ask_studies, lambda uid: f"s{50_000_000 + uid}", _write_mimic
    ),
    "fairvlmed": Layout(
        draw_eyes, lambda eyes: map(ask_about, eyes), "{:05d}".format, _write_fairvlmed
    ),
}
