"""MR-RAG: multimodal relevance-aware retrieval-augmented generation for medical VQA.

    import mrrag

    rag = mrrag.load()
    case = rag.ask("chest.dcm", "Is there a pleural effusion?", k=8)

Names are imported when they are first used, so that ``import mrrag`` loads neither torch nor
transformers.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mrrag.api import MRRAG, CaseReport, load
    from mrrag.case import Case, Evidence, Influence, Progress, Settings
    from mrrag.data.corpus import read_corpus
    from mrrag.data.images import load_image, read_image
    from mrrag.data.records import Corpus
    from mrrag.errors import (
        CorpusError,
        FetchError,
        ImageError,
        KnowledgeBaseError,
        ModelError,
        MRRAGError,
        SettingsError,
    )
    from mrrag.retrieval.build import build_knowledge_base
    from mrrag.retrieval.encoders import load_encoder
    from mrrag.retrieval.knowledge_base import KnowledgeBase
    from mrrag.types import (
        Answer,
        AttentionTrace,
        Document,
        Image,
        Query,
        Retrieved,
        Steering,
        Weights,
        Window,
    )

__version__ = "0.2.0"

# Where each public name lives.
_HOMES: dict[str, tuple[str, ...]] = {
    "mrrag.api": ("MRRAG", "CaseReport", "load"),
    "mrrag.case": ("Case", "Evidence", "Influence", "Progress", "Settings"),
    "mrrag.data.corpus": ("read_corpus",),
    "mrrag.data.images": ("load_image", "read_image"),
    "mrrag.data.records": ("Corpus",),
    "mrrag.errors": (
        "CorpusError",
        "FetchError",
        "ImageError",
        "KnowledgeBaseError",
        "MRRAGError",
        "ModelError",
        "SettingsError",
    ),
    "mrrag.retrieval.build": ("build_knowledge_base",),
    "mrrag.retrieval.encoders": ("load_encoder",),
    "mrrag.retrieval.knowledge_base": ("KnowledgeBase",),
    "mrrag.types": (
        "Answer",
        "AttentionTrace",
        "Document",
        "Image",
        "Query",
        "Retrieved",
        "Steering",
        "Weights",
        "Window",
    ),
}
_MODULES = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "MRRAG",
    "Answer",
    "AttentionTrace",
    "Case",
    "CaseReport",
    "Corpus",
    "CorpusError",
    "Document",
    "Evidence",
    "FetchError",
    "Image",
    "ImageError",
    "Influence",
    "KnowledgeBase",
    "KnowledgeBaseError",
    "MRRAGError",
    "ModelError",
    "Progress",
    "Query",
    "Retrieved",
    "Settings",
    "SettingsError",
    "Steering",
    "Weights",
    "Window",
    "__version__",
    "build_knowledge_base",
    "load",
    "load_encoder",
    "load_image",
    "read_corpus",
    "read_image",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'mrrag' has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})
