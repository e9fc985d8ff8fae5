"""Write phantom studies to disk in the layout of a real data set.

The layout is the Kaggle form of IU-Xray (``indiana_reports.csv``,
``indiana_projections.csv``, ``images/images_normalized/``), with three files beside it
that a real copy lacks: ``splits.csv`` (uid, patient, split), ``questions.jsonl`` and
``source.json`` (where it comes from, and its licence).
So the code that reads phantoms is the code that reads real data.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

from mrrag.phantom.dicom import png_bytes
from mrrag.phantom.render import render
from mrrag.phantom.report import ask, canonical, prevalence, write_report
from mrrag.phantom.world import Study, draw_studies

SPLITS: tuple[tuple[str, float], ...] = (("train", 0.7), ("validation", 0.1), ("test", 0.2))


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
    part = path.with_suffix(".part")
    part.write_bytes(png_bytes(render(study, size), bits=8))
    os.replace(part, path)


def write_data_set(
    directory: Path,
    *,
    patients: int,
    seed: int,
    size: int = 512,
    only: str | None = None,
    workers: int = 2,
    progress: Callable[[Iterable[None], int], Iterable[None]] = lambda it, total: it,
) -> Sequence[Study]:
    """Write the whole population and return it.

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
    about = {"source": f"MR-RAG phantom world, seed {seed}", "licence": "CC0-1.0"}
    (directory / "source.json").write_text(json.dumps(about) + "\n", encoding="utf-8")
    with (
        open(directory / "indiana_reports.csv", "w", newline="", encoding="utf-8") as reports,
        open(directory / "indiana_projections.csv", "w", newline="", encoding="utf-8") as views,
        open(directory / "splits.csv", "w", newline="", encoding="utf-8") as split_file,
        open(directory / "questions.jsonl", "w", encoding="utf-8") as questions,
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
            for number, qa in enumerate(ask(study, report, rates)):
                row = {
                    "qid": f"{study.uid}-{number}",
                    "uid": str(study.uid),
                    "question": qa.question,
                    "answer": qa.answer,
                    "answer_type": qa.answer_type,
                    "finding": qa.finding,
                }
                questions.write(json.dumps(row) + "\n")
    jobs = [
        (study, size, images / image_name(study.uid))
        for study in studies
        if only in (None, splits[study.patient])
    ]
    # One thread a process: several of each would wait for one another.
    with ProcessPoolExecutor(workers, initializer=threadpool_limits, initargs=(1,)) as pool:
        for _ in progress(pool.map(_write_image, jobs, chunksize=16), len(jobs)):
            pass
    return studies
