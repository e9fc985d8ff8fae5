"""Write phantom studies to disk in the layout of a real data set.

So the code that reads phantoms is the code that reads real data. The layouts are the
Kaggle form of IU-Xray (:func:`write_data_set`), MIMIC-CXR-JPG (:func:`write_mimic`) and,
of eyes, Harvard-FairVLMed (:func:`write_fairvlmed`). Beside each lie two files that a
real copy lacks: ``questions.jsonl`` and ``source.json`` (where it comes from, and its
licence); beside the first ``splits.csv`` (uid, patient, split) too.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from threadpoolctl import threadpool_limits

from mrrag.phantom.dicom import png_bytes
from mrrag.phantom.fundus import Eye, ask_about, draw_eyes, render_eye, write_note
from mrrag.phantom.render import render
from mrrag.phantom.report import ask, canonical, prevalence, write_report
from mrrag.phantom.world import Study, draw_studies

SPLITS: tuple[tuple[str, float], ...] = (("train", 0.7), ("validation", 0.1), ("test", 0.2))
LICENCE = "CC0-1.0"
# CheXpert's fourteen labels, and the findings of this world that they stand for.
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


def split_patients(patients: int, seed: int) -> list[str]:
    """Assign each patient a split, at random and once."""
    order = np.random.default_rng((seed, 3)).permutation(patients)
    names = [""] * patients
    start = 0
    for name, share in SPLITS:
        stop = patients if name == SPLITS[-1][0] else start + round(share * patients)
        for patient in order[start:stop]:
            names[patient] = name
        start = stop
    return names


def image_name(uid: int) -> str:
    """The file name, as the Kaggle form of IU-Xray has it."""
    return f"{uid}_IM-{uid:04d}-1001.dcm.png"


def _write_image(job: tuple[Study, int, Path]) -> None:
    study, size, path = job
    if path.exists():  # a run that was stopped goes on where it was
        return
    if path.suffix == ".png":
        data = png_bytes(render(study, size), bits=8)
    else:
        buffer = io.BytesIO()
        grey = (render(study, size) >> 4).astype(np.uint8)
        Image.fromarray(grey).save(buffer, "JPEG", quality=95)  # as MIMIC-CXR-JPG has it
        data = buffer.getvalue()
    _write_whole(path, data)


def _write_eye(job: tuple[Eye, int, Path]) -> None:
    eye, size, path = job
    if path.exists():
        return
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
    _write_whole(path, buffer.getvalue())


def _write_whole(path: Path, data: bytes) -> None:
    part = path.with_suffix(".part")
    part.write_bytes(data)
    os.replace(part, path)


def write_data_set(
    directory: Path,
    *,
    patients: int,
    seed: int,
    size: int = 512,
    only: str | None = None,
    workers: int = 2,
    progress: OnProgress = lambda it, total: it,
) -> Sequence[Study]:
    """Write the whole population in the Kaggle form of IU-Xray, and return it.

    Parameters
    ----------
    size
        Rows and columns of each image, in pixels.
    only
        Render the images of this split alone; a reader then skips the other studies.
    workers
        Processes that render.
    progress
        Wraps the stream of finished images; given how many there will be.
    """
    studies = draw_studies(patients, seed)
    splits = split_patients(patients, seed)
    rates = prevalence(studies)
    images = directory / "images" / "images_normalized"
    images.mkdir(parents=True, exist_ok=True)
    _write_source(directory, seed)
    with (
        open(directory / "indiana_reports.csv", "w", newline="", encoding="utf-8") as reports,
        open(directory / "indiana_projections.csv", "w", newline="", encoding="utf-8") as views,
        open(directory / "splits.csv", "w", newline="", encoding="utf-8") as split_file,
    ):
        report_rows = csv.writer(reports)
        report_rows.writerow(
            (
                "uid",
                "MeSH",
                "Problems",
                "image",
                "indication",
                "comparison",
                "findings",
                "impression",
            )
        )
        view_rows = csv.writer(views)
        view_rows.writerow(("uid", "filename", "projection"))
        split_rows = csv.writer(split_file)
        split_rows.writerow(("uid", "patient", "split"))
        for study in studies:
            report = write_report(study)
            names = ";".join(f.name for f in study.findings) or "normal"
            mesh = ";".join(canonical(f) for f in study.findings) or "normal"
            report_rows.writerow(
                (
                    study.uid,
                    mesh,
                    names,
                    "Xray Chest PA",
                    "",
                    "",
                    report.findings,
                    report.impression,
                )
            )
            view_rows.writerow((study.uid, image_name(study.uid), "Frontal"))
            split_rows.writerow((study.uid, study.patient, splits[study.patient]))
    _write_questions(directory, studies, rates, str)
    jobs = [
        (study, size, images / image_name(study.uid))
        for study in studies
        if only in (None, splits[study.patient])
    ]
    _draw(_write_image, jobs, workers, progress)
    return studies


def write_mimic(
    directory: Path,
    *,
    patients: int,
    seed: int,
    size: int = 512,
    only: str | None = None,
    workers: int = 2,
    progress: OnProgress = lambda it, total: it,
) -> Sequence[Study]:
    """Write the population in the form of MIMIC-CXR-JPG, with the reports among the images.

    The parameters are those of :func:`write_data_set`. Numbers are of the published
    kind: ``p10000000`` and up, ``s50000000`` and up, and a dicom_id of five words.
    """
    studies = draw_studies(patients, seed)
    splits = split_patients(patients, seed)
    directory.mkdir(parents=True, exist_ok=True)
    _write_source(directory, seed)
    metadata, split_rows, labels, jobs = [], [], [], []
    for study in studies:
        subject, number, dicom = (
            10_000_000 + study.patient,
            50_000_000 + study.uid,
            _dicom_id(study),
        )
        folder = directory / "files" / f"p{subject // 1_000_000}" / f"p{subject}"
        (folder / f"s{number}").mkdir(parents=True, exist_ok=True)
        (folder / f"s{number}.txt").write_text(_mimic_report(study), encoding="utf-8")
        metadata.append(
            (dicom, subject, number, "CHEST (PA AND LAT)", "PA", size, size, "20240101", "120000.0")
        )
        split = splits[study.patient]
        published = "validate" if split == "validation" else split
        split_rows.append((dicom, number, subject, published))
        present = [any(study.finding(n) for n in names) for names in CHEXPERT.values()]
        values = ["1.0" if here else "" for here in present]
        if not any(present):
            values[list(CHEXPERT).index("No Finding")] = "1.0"
        labels.append((subject, number, *values))
        if only in (None, split):
            jobs.append((study, size, folder / f"s{number}" / f"{dicom}.jpg"))
    columns = (
        *("dicom_id", "subject_id", "study_id", "PerformedProcedureStepDescription"),
        *("ViewPosition", "Rows", "Columns", "StudyDate", "StudyTime"),
    )
    _write_table(directory, "metadata", columns, metadata)
    _write_table(directory, "split", ("dicom_id", "study_id", "subject_id", "split"), split_rows)
    _write_table(directory, "chexpert", ("subject_id", "study_id", *CHEXPERT), labels)
    rates = prevalence(studies)
    _write_questions(directory, studies, rates, lambda uid: f"s{50_000_000 + uid}")
    _draw(_write_image, jobs, workers, progress)
    return studies


def write_fairvlmed(
    directory: Path,
    *,
    patients: int,
    seed: int,
    size: int = 512,
    only: str | None = None,
    workers: int = 2,
    progress: OnProgress = lambda it, total: it,
) -> Sequence[Eye]:
    """Write a population of eyes in the form of Harvard-FairVLMed.

    The parameters are those of :func:`write_data_set`; ``size`` is the columns of a
    picture, and its rows are 664 / 512 of them. Race, ethnicity and language are unknown
    (-1): phantoms have none.
    """
    eyes = draw_eyes(patients, seed)
    splits = split_patients(patients, seed)
    folders = {"train": "Training", "validation": "Validation", "test": "Test"}
    for folder in folders.values():
        (directory / folder).mkdir(parents=True, exist_ok=True)
    _write_source(directory, seed)
    summary, notes, questions, jobs = [], [], [], []
    for eye, split in zip(eyes, splits, strict=True):
        name = f"data_{eye.uid:05d}.npz"
        note, short = write_note(eye)
        sick = "yes" if eye.glaucoma else "no"
        use = folders[split].lower()
        unknown = ("unknown",) * 4
        summary.append((name, eye.age, eye.sex, *unknown, note, short, sick, use))
        notes.append((name, note, short))
        for number, (question, answer, finding) in enumerate(ask_about(eye)):
            row = {"qid": f"{eye.uid}-{number}", "uid": f"{eye.uid:05d}", "question": question}
            questions.append(row | {"answer": answer, "answer_type": "closed", "finding": finding})
        if only in (None, split):
            jobs.append((eye, size, directory / folders[split] / name))
    columns = ("filename", "age", "gender", "race", "ethnicity", "language", "maritalstatus")
    _write_csv(
        directory / "data_summary.csv",
        (*columns, "note", "gpt4_summary", "glaucoma", "use"),
        summary,
    )
    _write_csv(
        directory / "gpt-4_summarized_notes.csv",
        ("File Name", "Original Note", "Summarized Note"),
        notes,
    )
    _write_lines(directory / "questions.jsonl", questions)
    _draw(_write_eye, jobs, workers, progress)
    return eyes


LAYOUTS: dict[str, Callable[..., Sequence[Any]]] = {
    "iu-xray": write_data_set,
    "mimic-cxr-jpg": write_mimic,
    "fairvlmed": write_fairvlmed,
}


def _write_source(directory: Path, seed: int) -> None:
    about = {"source": f"MR-RAG phantom world, seed {seed}", "licence": LICENCE}
    (directory / "source.json").write_text(json.dumps(about) + "\n", encoding="utf-8")


def _write_questions(
    directory: Path,
    studies: Sequence[Study],
    rates: Mapping[str, float],
    name: Callable[[int], str],
) -> None:
    _write_lines(
        directory / "questions.jsonl",
        (
            {
                "qid": f"{study.uid}-{number}",
                "uid": name(study.uid),
                "question": qa.question,
                "answer": qa.answer,
                "answer_type": qa.answer_type,
                "finding": qa.finding,
            }
            for study in studies
            for number, qa in enumerate(ask(study, write_report(study), rates))
        ),
    )


def _write_lines(path: Path, rows: Iterable[Mapping[str, object]]) -> None:
    with path.open("w", encoding="utf-8") as lines:
        lines.writelines(json.dumps(row) + "\n" for row in rows)


def _write_csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows((columns, *rows))


def _write_table(
    directory: Path, name: str, columns: Sequence[str], rows: Iterable[Sequence[object]]
) -> None:
    """A table of MIMIC-CXR-JPG, compressed as published; the same rows give the same bytes."""
    text = io.StringIO(newline="")
    csv.writer(text).writerows((columns, *rows))
    packed = gzip.compress(text.getvalue().encode(), mtime=0)
    (directory / f"mimic-cxr-2.0.0-{name}.csv.gz").write_bytes(packed)


def _dicom_id(study: Study) -> str:
    draw = random.Random(study.seed)
    return "-".join(f"{draw.getrandbits(32):08x}" for _ in range(5))


def _mimic_report(study: Study) -> str:
    """The report in the manner of MIMIC-CXR: headings in capitals, lines indented by one."""
    report = write_report(study)
    parts = ["EXAMINATION:  CHEST (PA AND LAT)", "INDICATION:  ___ year old", "COMPARISON:  None."]
    parts.append(f"FINDINGS: \n \n {report.findings}")
    if report.impression:
        parts.append(f"IMPRESSION: \n \n {report.impression}")
    return " " * 33 + "FINAL REPORT\n" + "".join(f" {part}\n \n" for part in parts)


def _draw(
    write: Callable[[Any], None], jobs: Sequence[Any], workers: int, progress: OnProgress
) -> None:
    # One thread a process: several of each would wait for one another.
    with ProcessPoolExecutor(workers, initializer=threadpool_limits, initargs=(1,)) as pool:
        for _ in progress(pool.map(write, jobs, chunksize=16), len(jobs)):
            pass
