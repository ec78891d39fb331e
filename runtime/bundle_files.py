"""Files of a bundle. Each is opened once, so that later reads return the checked content even if the bundle is
replaced.

A bundle is replaced as a whole, by renaming folders or a link. If its files were opened by path, one after another, a
replacement in between would mix two models. Therefore the folder is opened first, and its files relative to it. A file
descriptor stays open as long as its ``BundleFile`` exists.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import stat
import threading
from pathlib import Path, PureWindowsPath
from typing import Protocol
from weakref import finalize

from berxit.runtime.errors import BerxitError
from berxit.runtime.signing import SIGNATURE

MANIFEST = "manifest.json"
DESCRIPTORS = Path("/proc/self/fd")
"""Linux folder with a path for every open file. The path is valid even after the file was renamed or deleted."""
BLOCK = 1 << 20
"""Number of bytes read at a time."""
LONGEST_NAME = 255
"""Bytes of a name that every usual file system accepts."""
RELATIVE = os.open in os.supports_dir_fd
"""True if files can be opened relative to an open folder. Windows cannot, but an open file prevents renaming its folder
there."""


class Entry(Protocol):
    """Entry of the manifest that names a file."""

    @property
    def file(self) -> str: ...

    @property
    def sha256(self) -> str: ...


class BundleFile:
    """Open file of a bundle. Thread-safe."""

    def __init__(self, path: Path, descriptor: int, sha256: str) -> None:
        self.path = path
        self.content: str | None = None
        """Checked sha256 of the content; None before ``verify``."""
        self._descriptor, self._sha256 = descriptor, sha256
        finalize(self, os.close, descriptor)
        self._reading = threading.Lock()
        self._seen = self._signature()

    def __str__(self) -> str:
        return str(self.path)

    def verify(self) -> None:
        """Computes the sha256. Raises BerxitError if it differs from the manifest."""
        self._seen = self._signature()
        digest, place = hashlib.sha256(), 0
        while block := self._read(BLOCK, place):
            digest.update(block)
            place += len(block)
        if digest.hexdigest() != self._sha256:
            raise BerxitError(f"{self}: checksum differs from the manifest. Copy the bundle again, or export it again")
        self.content = self._sha256

    def location(self) -> str | bytes:
        """Path of the open file, for libraries that open files themselves; its bytes if the system has no such path.

        The path is valid as long as this object exists.
        """
        self._check_unchanged()
        path = DESCRIPTORS / str(self._descriptor)
        return str(path) if path.exists() else self.read_bytes()

    def read_bytes(self) -> bytes:
        self._check_unchanged()
        blocks, place = [], 0
        while block := self._read(BLOCK, place):
            blocks.append(block)
            place += len(block)
        return b"".join(blocks)

    def map(self) -> mmap.mmap:
        """Memory-maps the file, read-only."""
        self._check_unchanged()
        return mmap.mmap(self._descriptor, 0, access=mmap.ACCESS_READ)

    @property
    def size(self) -> int:
        return os.fstat(self._descriptor).st_size

    def _read(self, size: int, place: int) -> bytes:
        if hasattr(os, "pread"):
            return os.pread(self._descriptor, size, place)
        with self._reading:  # Windows has no pread: all threads share one file position
            os.lseek(self._descriptor, place, os.SEEK_SET)
            return os.read(self._descriptor, size)

    def _signature(self) -> tuple[int, int]:
        found = os.fstat(self._descriptor)
        return found.st_size, found.st_mtime_ns

    def _check_unchanged(self) -> None:
        """Raises BerxitError if the file was modified since it was opened and its content is not verified any more."""
        if self._signature() == self._seen:
            return
        if self.content is None:
            raise BerxitError(
                f"{self} was modified after the bundle was opened. Load the bundle again; to replace a bundle, rename"
                " folders instead of overwriting files"
            )
        self.verify()


class BundleFolder:
    """Open folder of a bundle, with its opened files."""

    def __init__(self, path: Path, *, verify: bool = True) -> None:
        """``verify``: check the sha256 of every file when it is opened. Raises BerxitError if ``path`` is not a folder
        or cannot be opened."""
        self.path = path
        self.verify = verify
        self._files: dict[tuple[str, str], BundleFile] = {}
        self._descriptor: int | None = None
        if not path.is_dir():
            raise BerxitError(f"no bundle at {path}: write one with berxit-export")
        self._absolute = path.resolve()
        if RELATIVE:
            try:
                self._descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
            except OSError as error:
                raise BerxitError(
                    f"cannot open bundle {path}: {error.strerror}. Fix this problem, or copy the bundle again"
                ) from error
            finalize(self, os.close, self._descriptor)

    @classmethod
    def at(cls, folder: Path | BundleFolder) -> BundleFolder:
        """Opens ``folder``; returns it unchanged if it is a BundleFolder."""
        return folder if isinstance(folder, BundleFolder) else cls(folder)

    def __str__(self) -> str:
        return str(self.path)

    def manifest(self) -> BundleFile:
        """The open manifest.json. Raises BerxitError if it is missing or cannot be read."""
        try:
            return self._open(MANIFEST, "")
        except FileNotFoundError:
            raise BerxitError(
                f"{self.path / MANIFEST} is missing: {self} is not a bundle, or is incomplete. Copy the bundle again"
            ) from None

    def signature(self) -> bytes:
        """The content of manifest.sig. Raises BerxitError if the bundle is not signed."""
        try:
            return self._open(SIGNATURE, "").read_bytes()
        except FileNotFoundError:
            raise BerxitError(
                f"{self} is not signed ({SIGNATURE} is missing): sign it with berxit-export --sign KEY, or load it"
                " without a public key"
            ) from None

    def file(self, entry: Entry, *, verify: bool = False) -> BundleFile:
        """The open file of ``entry``. ``verify``: check its sha256 even if the folder was opened without checks.

        A file that is reached through a link is always checked, because only its checksum shows that it belongs to this
        bundle. Raises BerxitError if the file is outside the bundle, is missing, or differs from its checksum.
        """
        key = self._name(entry), entry.sha256
        found = self._files.get(key)
        checked = verify or self.verify
        if found is None:
            try:
                found = self._files[key] = self._open(*key)
                checked = checked or self._linked(entry.file)
            except (FileNotFoundError, NotADirectoryError):
                raise BerxitError(
                    f"{self}: file '{entry.file}' is missing. Copy the whole bundle again, or export it again"
                ) from None
        if checked and found.content is None:
            found.verify()
        return found

    def package(self, entry: Entry) -> Path | None:
        """Path of an entry that is a folder (.mlpackage); None if it is a file. Raises BerxitError if it is outside the
        bundle."""
        path = self._absolute / self._name(entry)
        return path if path.is_dir() else None

    def _name(self, entry: Entry) -> str:
        """File name of ``entry``. Raises BerxitError unless it is a relative path without ".." on every system."""
        if not entry.file.isprintable() or any(len(part.encode()) > LONGEST_NAME for part in Path(entry.file).parts):
            raise BerxitError(f"{self.path / MANIFEST}: {entry.file[:40]!r} is no file name. Do not use this bundle")
        parts = PureWindowsPath(entry.file)
        if parts.anchor or ".." in parts.parts or not parts.parts:
            raise BerxitError(
                f"{self.path / MANIFEST}: file '{entry.file}' is outside the bundle. Do not use this bundle"
            )
        return entry.file

    def _open(self, name: str, sha256: str) -> BundleFile:
        path = self.path / name
        # Without O_NONBLOCK, opening a named pipe would wait for a writer.
        flags = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0)
        try:
            if self._descriptor is None:
                descriptor = os.open(self._absolute / name, flags)
            else:
                descriptor = os.open(name, flags, dir_fd=self._descriptor)
        except (FileNotFoundError, NotADirectoryError):
            raise
        except OSError as error:
            raise BerxitError(
                f"{path} cannot be read ({error.strerror}). Fix this problem, or copy the bundle again"
            ) from error
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise BerxitError(f"{path} is not a regular file. Copy the bundle again, or export it again")
        return BundleFile(path, descriptor, sha256)

    def _linked(self, name: str) -> bool:
        """True if the file or one of its parent folders inside the bundle is a link."""
        parts = Path(name).parts
        return any(self._is_link(str(Path(*parts[: count + 1]))) for count in range(len(parts)))

    def _is_link(self, name: str) -> bool:
        if self._descriptor is None:
            return (self._absolute / name).is_symlink()
        return stat.S_ISLNK(os.stat(name, dir_fd=self._descriptor, follow_symlinks=False).st_mode)
