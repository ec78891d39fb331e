"""Stand-in for the Hugging Face hub: the documented calls of huggingface_hub on a local folder."""

from __future__ import annotations

import hashlib
import shutil
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace

import pytest


class HubStandIn:
    """Repositories below ``folder``. Methods have the names and keyword arguments that huggingface_hub documents."""

    def __init__(self, folder: Path) -> None:
        self.repositories, self.cache = folder / "repositories", folder / "cache"
        self.commits: list[tuple[str, str]] = []
        """(repository, commit message) of every upload."""
        self.private: set[str] = set()

    def install(self, monkeypatch: pytest.MonkeyPatch) -> HubStandIn:
        monkeypatch.setattr("huggingface_hub.snapshot_download", self.snapshot_download)
        monkeypatch.setattr("huggingface_hub.HfApi", lambda: self)
        return self

    def snapshot_download(self, repo_id: str, *, revision: str | None = None) -> str:
        """A folder of links to blobs, as in the hub's cache."""
        source = self.repositories / repo_id
        if not source.is_dir() or revision not in (None, "main"):
            raise OSError(f"404 Client Error.\n\nRepository or revision not found: {repo_id} at {revision}")
        storage = self.cache / f"models--{repo_id.replace('/', '--')}"
        snapshot = storage / "snapshots" / "0123abcd"
        shutil.rmtree(snapshot, ignore_errors=True)
        for file in (path for path in source.rglob("*") if path.is_file()):
            blob = storage / "blobs" / hashlib.sha256(file.read_bytes()).hexdigest()
            blob.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, blob)
            link = snapshot / file.relative_to(source)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(blob)
        return str(snapshot)

    def create_repo(self, repo_id: str, *, private: bool | None = None, exist_ok: bool = False) -> str:
        folder = self.repositories / repo_id
        if folder.is_dir() and not exist_ok:
            raise OSError(f"409 Client Error: Conflict. {repo_id} already exists")
        if not folder.is_dir():
            folder.mkdir(parents=True)
            (folder / ".gitattributes").write_text("*.onnx filter=lfs\n", encoding="utf-8")
            self.private |= {repo_id} if private else set()
        return f"https://hub.test/{repo_id}"

    def upload_folder(
        self,
        *,
        repo_id: str,
        folder_path: str | Path,
        commit_message: str | None = None,
        ignore_patterns: list[str] | str | None = None,
        delete_patterns: list[str] | str | None = None,
    ) -> SimpleNamespace:
        target = self.repositories / repo_id
        if not target.is_dir():
            raise OSError(f"404 Client Error. Repository not found: {repo_id}")
        for file in [path for path in target.rglob("*") if path.is_file()]:
            if _matches(file.relative_to(target), delete_patterns) and file.name != ".gitattributes":
                file.unlink()
        for file in (path for path in Path(folder_path).rglob("*") if path.is_file()):
            if not _matches(file.relative_to(folder_path), ignore_patterns):
                copy = target / file.relative_to(folder_path)
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, copy)
        self.commits.append((repo_id, commit_message or ""))
        return SimpleNamespace(commit_url=f"https://hub.test/{repo_id}/commit/0123abcd", oid="0123abcd")


def _matches(path: Path, patterns: list[str] | str | None) -> bool:
    return any(
        fnmatch(path.as_posix(), pattern) for pattern in ([patterns] if isinstance(patterns, str) else patterns or [])
    )
