"""The exceptions a person sees: each says what came, what is allowed and what to do."""

from __future__ import annotations

__all__ = [
    "OTHERWISE",
    "ArchiveError",
    "CorpusError",
    "FetchError",
    "ImageError",
    "KnowledgeBaseError",
    "MRRAGError",
    "ModelError",
    "SettingsError",
]

# Ends errors of models that the bundled one can stand in for.
OTHERWISE = "Or use the bundled model: --model bundled."


class MRRAGError(Exception):
    """Base of every error that MR-RAG raises on purpose; its text is fit to be shown."""


class ImageError(MRRAGError):
    """An upload that is not a picture we read, or is too large, or is damaged."""


class ArchiveError(MRRAGError):
    """A picture archive that cannot be reached, refuses, or sends what cannot be read."""


class CorpusError(MRRAGError):
    """A data set on disk that is not in a layout we read."""


class FetchError(MRRAGError):
    """A download that failed, or that is not what it should be."""


class KnowledgeBaseError(MRRAGError):
    """A knowledge base that is absent, incomplete, or made with another encoder."""


class ModelError(MRRAGError):
    """A checkpoint that is absent, incomplete, or not what its configuration says."""


class SettingsError(MRRAGError):
    """A setting or a question outside what is allowed."""
