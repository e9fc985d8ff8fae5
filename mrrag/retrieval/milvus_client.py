"""Asks a server of Milvus, or Milvus Lite in this process; its errors become sentences.

The fields of a collection are here, and what each kind of index is built and searched with.
pymilvus is imported only once a collection is named.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from mrrag.errors import KnowledgeBaseError
from mrrag.retrieval.address import MilvusCollection

__all__ = ["INDEXES", "asked", "connect", "create", "describe", "found"]

TOKEN = "MRRAG_MILVUS_TOKEN"
INSTALL = 'pip install "pymilvus>=3.0,<4" "milvus-lite>=3.2"'
SECONDS = 60  # that one answer may take
# A vector that is searched, a document that is read, the texts of a manifest.
DOCUMENTS, NOTES = "documents", "notes"
# Milvus's own limits: bytes of a text, and rows of one answer.
MOST_TEXT, MOST_ROWS = 65_535, 16_384
# Wait until what was written before is seen, some 0.2 s on a server; otherwise it may take 5 s.
WRITTEN = {"consistency_level": "Strong"}
KEYS = ("id_key", "patient_key", "study_key", "report_key")
TEXTS = ("id", "report", "patient", "study", "source", "licence", "split", "view")
# Field → Milvus's name of its type, and the bytes of a text.
FIELDS: dict[str, tuple[str, int]] = {
    "number": ("INT64", 0),
    "vector": ("FLOAT_VECTOR", 0),
    **{name: ("VARCHAR", MOST_TEXT if name == "report" else 16_384) for name in TEXTS},
    "thumbnail": ("VARCHAR", MOST_TEXT),  # base64 of a JPEG file
    **{name: ("INT64", 0) for name in KEYS},
    "first": ("BOOL", 0),  # whether no document before has its study and its report
    "stamp_size": ("INT64", 0),
    "stamp_time": ("INT64", 0),
}


@dataclass(frozen=True)
class Index:
    """How an index is built for N documents, and searched for the k best."""

    build: Callable[[int], Mapping[str, int]]
    search: Callable[[int, int], Mapping[str, int]]


def _lists(documents: int) -> int:
    return max(1, min(65_536, round(4 * math.sqrt(documents))))


# FLAT is exact. Of the others, IVF searches an eighth of the lists.
INDEXES: dict[str, Index] = {
    "FLAT": Index(lambda n: {}, lambda n, k: {}),
    "IVF_FLAT": Index(
        lambda n: {"nlist": _lists(n)}, lambda n, k: {"nprobe": max(16, _lists(n) // 8)}
    ),
    "HNSW": Index(lambda n: {"M": 32, "efConstruction": 200}, lambda n, k: {"ef": max(256, 2 * k)}),
}


def connect(place: MilvusCollection) -> Any:
    """Return a client of pymilvus; for a file, Milvus Lite is started in this process.

    Raises
    ------
    KnowledgeBaseError
        Where pymilvus is not installed, or nothing answers there.
    """
    try:
        import pymilvus
    except ImportError:
        raise KnowledgeBaseError(
            f"{place} needs the package pymilvus. Install it: {INSTALL}"
        ) from None
    # It logs every error with its traceback, and here each is a sentence.
    logging.getLogger("pymilvus").setLevel(logging.CRITICAL)
    logging.getLogger("milvus_lite").setLevel(logging.CRITICAL)
    if place.is_file and not place.near.is_dir():
        raise KnowledgeBaseError(f"There is no folder {place.near} for {place}. Create it.")
    token = "" if place.is_file else os.environ.get(TOKEN, "")
    with asked(place):
        return pymilvus.MilvusClient(uri=place.uri, token=token, timeout=SECONDS)


@contextmanager
def asked(place: MilvusCollection) -> Iterator[None]:
    """Turn what Milvus refuses, or does not answer, into a KnowledgeBaseError."""
    import grpc
    from pymilvus.exceptions import MilvusException

    try:
        yield
    except (MilvusException, grpc.RpcError, OSError) as error:
        said = " ".join(str(getattr(error, "message", "") or error).split())[:200]
        remedy = (
            "Milvus Lite lets one process at a time open a file: is another one using it?"
            if place.is_file
            else f"Is the server running, and is {TOKEN} its token?"
        )
        raise KnowledgeBaseError(f"Milvus did not open or answer {place} ({said}). {remedy}") from (
            error
        )


def create(client: Any, place: MilvusCollection, width: int, kind: str, documents: int) -> None:
    """Create an empty collection for about so many documents, with its indexes, and load it.

    Parameters
    ----------
    width
        Numbers of the vector [t_d ; v_d].
    kind
        A key of :data:`INDEXES`.
    """
    from pymilvus import DataType

    schema = client.create_schema(auto_id=False, enable_dynamic_field=False)
    for name, (kind_of_field, most) in FIELDS.items():
        size = {"dim": width} if name == "vector" else {"max_length": most} if most else {}
        primary = {"is_primary": True} if name == "number" else {}
        schema.add_field(name, DataType[kind_of_field], **size, **primary)
    indexes = client.prepare_index_params()
    indexes.add_index(
        "vector", index_type=kind, metric_type="IP", params=dict(INDEXES[kind].build(documents))
    )
    for name in KEYS:  # servers before 2.4 know the one kind only, Milvus Lite the other
        indexes.add_index(name, index_type="INVERTED" if place.is_file else "STL_SORT")
    with asked(place):
        client.create_collection(place.name, schema=schema)
        for partition in (DOCUMENTS, NOTES):
            client.create_partition(place.name, partition)
        client.create_index(place.name, indexes, sync=False)  # nothing is there to wait for
        client.load_collection(place.name)


def describe(client: Any, place: MilvusCollection) -> int:
    """Return the width of the vectors of a collection that has the fields of a knowledge base.

    Raises
    ------
    KnowledgeBaseError
        Where there is no such collection, or it has other fields.
    """
    with asked(place):
        if not client.has_collection(place.name):
            raise KnowledgeBaseError(
                f"There is no knowledge base at {place}. Build one with `mrrag index`, or copy one "
                "there with `mrrag kb copy`."
            )
        fields = client.describe_collection(place.name)["fields"]
        partitions = client.list_partitions(place.name)
    kinds = {field["name"]: field["type"].name for field in fields}
    wanted = {name: kind for name, (kind, _) in FIELDS.items()}
    if kinds != wanted or not {DOCUMENTS, NOTES} <= set(partitions):
        odd = sorted(name for name in {*kinds, *wanted} if kinds.get(name) != wanted.get(name)) or [
            "its partitions"
        ]
        raise KnowledgeBaseError(
            f"{place} is a collection, and not one of a knowledge base: {odd[0]} is missing or "
            "another. Name another collection."
        )
    return int(next(f["params"]["dim"] for f in fields if f["name"] == "vector"))


def found(
    client: Any,
    place: MilvusCollection,
    condition: str,
    fields: Sequence[str],
    part: str,
    numbers: range,
    **consistency: str,
) -> list[dict[str, Any]]:
    """Return all rows of a partition, in a range of numbers, that fulfil a condition.

    However many, in any order. Milvus gives so many at most; where it does, each half of the range
    is asked for alone. With :data:`WRITTEN`, everything that was written before is seen.
    """
    within = f"number >= {numbers.start} and number < {numbers.stop}"
    with asked(place):
        rows: list[dict[str, Any]] = client.query(
            place.name,
            filter=f"{within} and {condition}" if condition else within,
            output_fields=["number", *fields],
            partition_names=[part],
            limit=MOST_ROWS,
            timeout=SECONDS,
            **consistency,
        )
    if len(rows) < MOST_ROWS or len(numbers) < 2:
        return rows
    middle = (numbers.start + numbers.stop) // 2
    halves = (range(numbers.start, middle), range(middle, numbers.stop))
    return [
        row
        for half in halves
        for row in found(client, place, condition, fields, part, half, **consistency)
    ]
