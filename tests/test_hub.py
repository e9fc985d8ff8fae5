"""What is asked of the hub, and what is found without it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from mrrag.errors import ModelError
from mrrag.hub import downloaded, repository_bytes


def test_a_repository_s_size_is_that_of_the_files_that_would_be_downloaded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: dict[str, Any] = {}
    sizes = {"a.safetensors": 7, "b.safetensors": 5, "config.json": 2, "cat.png": 90, "x.bin": None}

    def model_info(_: Any, name: str, **given: Any) -> Any:
        asked.update(given, name=name)
        files = [SimpleNamespace(rfilename=file, size=size) for file, size in sizes.items()]
        return SimpleNamespace(siblings=files)

    monkeypatch.setattr("mrrag.hub.HfApi.model_info", model_info)
    patterns = ["*.json", "*.safetensors", "*.bin"]
    assert repository_bytes("owner/name", patterns, timeout_s=3) == 14
    # A person's account is not needed, and so not told.
    assert asked == {"name": "owner/name", "files_metadata": True, "timeout": 3, "token": False}


def test_a_hub_that_does_not_answer_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def model_info(*_: Any, **__: Any) -> Any:
        raise TimeoutError("timed out")

    monkeypatch.setattr("mrrag.hub.HfApi.model_info", model_info)
    with pytest.raises(ModelError, match=r"The hub cannot be reached \(TimeoutError\)\."):
        repository_bytes("owner/name", ["*"], timeout_s=3)


def test_what_was_downloaded_is_found_without_the_hub(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def snapshot(name: str, *, allow_patterns: list[str], local_files_only: bool) -> str:
        assert local_files_only
        if name != "owner/name":
            raise LocalEntryNotFoundError("not in the cache")
        return str(tmp_path)

    monkeypatch.setattr("mrrag.hub.snapshot_download", snapshot)
    assert downloaded("owner/name", ["*"]) == tmp_path
    assert downloaded("owner/other", ["*"]) is None
