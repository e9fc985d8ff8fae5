"""Where a knowledge base is: a folder, or a collection of Milvus.

Read without faiss, torch and pymilvus, since every command reads what its ``--kb`` names.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from mrrag.errors import SettingsError

__all__ = ["MILVUS", "MilvusCollection", "Place", "place_of"]

# What the address of a collection begins with.
MILVUS = "milvus:"
# Milvus's own rule is at most 255 characters; a build puts up to 8 behind the name.
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,199}")
_SERVER = re.compile(r"https?://[A-Za-z0-9.\-\[\]:]+(/[A-Za-z0-9_]+)?")


@dataclass(frozen=True)
class MilvusCollection:
    """A collection of Milvus.

    Attributes
    ----------
    uri : str
        The address of a server, or a file of Milvus Lite, whose name ends in ``.db``.
    name : str
        The name of the collection.
    """

    uri: str
    name: str

    def __str__(self) -> str:
        return f"{MILVUS}{self.uri}/{self.name}"

    @property
    def is_file(self) -> bool:
        """Whether it is in a file of Milvus Lite, not on a server."""
        return not self.uri.startswith(("http://", "https://"))

    @property
    def near(self) -> Path:
        """The folder from which its manifest counts relative paths.

        That of the file, or for a server the one in which the command runs.
        """
        return Path(self.uri).parent if self.is_file else Path()


Place = Path | MilvusCollection


def place_of(text: str | Place) -> Place:
    """Return the folder or the collection that an address names.

    Parameters
    ----------
    text
        A folder, or ``milvus:URI/COLLECTION``, where URI is a file that ends in ``.db`` or the
        address of a server (``http://host:19530``).

    Raises
    ------
    SettingsError
        Where it begins as the address of a collection and is none.
    """
    if not isinstance(text, str):
        return text
    if not text.startswith(MILVUS):
        return Path(text)
    uri, _, name = text.removeprefix(MILVUS).rpartition("/")
    if "@" in text:
        raise SettingsError(
            "The address of a collection holds no user and no password. Give the token in the "
            "environment, as MRRAG_MILVUS_TOKEN."
        )
    known = uri.endswith(".db") if "://" not in uri else _SERVER.fullmatch(uri)
    if not known or not _NAME.fullmatch(name):
        raise SettingsError(
            f"{text!r} is no address of a collection. Allowed: milvus:FILE.db/COLLECTION or "
            "milvus:http://HOST:PORT/COLLECTION, where COLLECTION has up to 200 letters, digits "
            "and underscores and begins with no digit. Example: milvus:base.db/chest."
        )
    return MilvusCollection(uri, name)
