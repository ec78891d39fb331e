"""Artefacts on disk: a folder or a file is replaced as a whole or not at all, whatever stops the process.

New content is written beside its place under a unique hidden name, flushed to the disk, and then moved in:

    .NAME.TOKEN.partial    a folder or file that is being written; its writer holds a lock on it
    .NAME.TOKEN.old        a replaced folder, where the file system cannot exchange two folders in one step
    .update.TOKEN.ready    complete files in the folder that they belong to, about to replace those of the same names

``recover`` finishes what a dead writer left, and never touches what a living one is writing.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import secrets
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from berxit.runtime.errors import BerxitError, InputError

if sys.platform != "win32":
    import fcntl

UPDATE = "update"
"""The NAME of files that replace several others of their folder together."""


class _Scratch(NamedTuple):
    """The hidden names of one replacement."""

    partial: Path
    old: Path
    ready: Path

    @classmethod
    def beside(cls, place: Path, token: str) -> _Scratch:
        return cls(*(place.with_name(f".{place.stem}.{token}.{kind}{place.suffix}") for kind in cls._fields))

    @classmethod
    def left_beside(cls, place: Path) -> list[_Scratch]:
        """All that there is of ``place``, whoever writes or wrote it. Raises OSError."""
        kinds = "|".join(cls._fields)
        name = re.compile(rf"\.{re.escape(place.stem)}\.([0-9a-f]{{8}})\.(?:{kinds}){re.escape(place.suffix)}")
        found = (name.fullmatch(other.name) for other in place.parent.iterdir())
        return [cls.beside(place, token) for token in sorted({match[1] for match in found if match})]


@contextmanager
def write_whole(output: Path, *, force: bool) -> Iterator[Path]:
    """A new folder that becomes ``output`` when the block ends without an error, and is removed otherwise.

    With ``force`` an existing ``output`` is replaced, in one step where the file system can exchange two folders;
    elsewhere it is moved aside first. In both cases it is deleted only when the new folder is in its place.

    Raises InputError where ``output`` exists and ``force`` is not given, BerxitError where it cannot be written.
    """
    refuse_to_overwrite(output, force)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with _new_scratch(output, Path.mkdir) as scratch:
            try:
                yield scratch.partial
                _flush(scratch.partial)
                _move_in(scratch, output, force)
            finally:
                _settle(scratch, output)
    except OSError as error:
        raise BerxitError(f"cannot write {output}: {error.strerror or error}. Free space or choose another") from error


def refuse_to_overwrite(output: Path, force: bool) -> None:
    """Raises InputError where ``output`` exists and ``force`` is not given, or where it cannot be replaced by a folder.

    Recovers first what a killed process left of ``output``.
    """
    if not output.name or output.resolve() == Path.cwd():
        raise InputError(f"--output {output} is the folder you are in: name one below it")
    recover(output)
    if output.exists() and not force:
        raise InputError(f"{output} is there already: choose another --output, or --force to replace it")
    if output.is_file():
        raise InputError(f"{output} is a file: --output is a folder")
    if os.path.ismount(output):
        raise InputError(f"{output} is a mount point, which cannot be replaced: name a folder in it")


@contextmanager
def write_together(folder: Path) -> Iterator[Path]:
    """A scratch folder whose files replace those of the same names in ``folder``, all of them or none.

    They are complete before the first is moved; ``recover(folder)`` moves the rest after a kill in between.
    """
    recover(folder)
    with _new_scratch(folder / UPDATE, Path.mkdir) as scratch:
        try:
            yield scratch.partial
            _flush(scratch.partial)
            scratch.partial.rename(scratch.ready)
            _flush_folder(folder)
        finally:
            _publish(scratch)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A scratch file, of the same suffix, that replaces ``path`` when the block ends without an error."""
    recover(path)
    with _new_scratch(path, lambda partial: partial.touch(exist_ok=False)) as scratch:
        try:
            yield scratch.partial
            _flush(scratch.partial)
            scratch.partial.replace(path)
            _flush_folder(path.parent)
        finally:
            _remove(scratch.partial)


def write_text(path: Path, text: str) -> None:
    """Replaces a UTF-8 text file as a whole."""
    with replacing(path) as scratch:
        scratch.write_text(text, encoding="utf-8")


def recover(path: Path) -> None:
    """Finishes what a killed process left of the folder or file ``path``; best effort, raises nothing.

    A replacement that stopped half-way is completed, files that were ready are moved in, other scratch is removed.
    """
    with suppress(OSError):
        for scratch in _Scratch.left_beside(path):
            with suppress(BlockingIOError, FileNotFoundError), _claimed(scratch) as alone:
                if alone:
                    _settle(scratch, path)
                elif os.path.lexists(scratch.old) and not os.path.lexists(path):  # no locks: restore, remove nothing
                    scratch.old.rename(path)
        for scratch in _Scratch.left_beside(path / UPDATE) if path.is_dir() else ():
            with suppress(BlockingIOError, FileNotFoundError), _claimed(scratch) as alone:
                if alone:
                    _publish(scratch)


@contextmanager
def _new_scratch(place: Path, make: Callable[[Path], None]) -> Iterator[_Scratch]:
    """New names beside ``place``; ``make`` creates the partial one, which is locked until the block ends."""
    while True:
        scratch = _Scratch.beside(place, secrets.token_hex(4))
        try:
            make(scratch.partial)
            claim = _claim(scratch.partial)
        except (FileExistsError, BlockingIOError, FileNotFoundError):
            if not place.parent.is_dir():
                raise
            continue  # another process took it for a dead writer's before it was locked
        break
    try:
        yield scratch
    finally:
        if claim is not None:
            os.close(claim)


@contextmanager
def _claimed(scratch: _Scratch) -> Iterator[bool]:
    """Claims scratch for the block. Yields False where the system has no locks that show whether a writer lives.

    Raises BlockingIOError or FileNotFoundError where another process is.
    """
    claim = _claim(next((path for path in scratch if os.path.lexists(path)), scratch.partial))
    try:
        yield claim is not None
    finally:
        if claim is not None:
            os.close(claim)


def _claim(path: Path) -> int | None:
    """A descriptor with a lock that ends with it or with the process; None where there are no such locks."""
    if sys.platform == "win32":
        return None
    claim = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not os.path.samestat(os.fstat(claim), path.stat()):
            raise FileNotFoundError(errno.ENOENT, "replaced meanwhile", str(path))
    except (BlockingIOError, FileNotFoundError):
        os.close(claim)
        raise
    except OSError:  # a network file system without locks on folders
        os.close(claim)
        return None
    return claim


def _move_in(scratch: _Scratch, output: Path, force: bool) -> None:
    """Raises InputError where another process has written ``output`` meanwhile and ``force`` is not given."""
    if force and os.path.lexists(output):
        if not _exchange(scratch.partial, output):
            output.rename(scratch.old)
            scratch.partial.rename(output)
    else:
        try:
            scratch.partial.rename(output)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            raise InputError(f"{output} was written meanwhile by another process: choose another --output") from error
    _flush_folder(output.parent)


def _settle(scratch: _Scratch, output: Path) -> None:
    """Removes what is not in its place. Between the two renames that is the new folder, which is complete then."""
    if os.path.lexists(scratch.old) and not os.path.lexists(output):
        (scratch.partial if scratch.partial.exists() else scratch.old).rename(output)
        _flush_folder(output.parent)
    _remove(scratch.partial)
    _remove(scratch.old)


def _publish(scratch: _Scratch) -> None:
    """Moves files that are ready to their places, and removes those that are not."""
    if scratch.ready.is_dir():
        for file in sorted(scratch.ready.iterdir()):
            file.replace(scratch.ready.parent / file.name)
        _flush_folder(scratch.ready.parent)
    _remove(scratch.ready)
    _remove(scratch.partial)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink(missing_ok=True)


def _exchange(one: Path, other: Path) -> bool:
    """Exchanges two paths in one step. False where the system or the file system cannot."""
    at_cwd, exchange = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of Linux
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):  # another system, or a C library that is older than the call
        return False
    done: int = renameat2(at_cwd, os.fsencode(one), at_cwd, os.fsencode(other), exchange)
    return done == 0


def _flush(path: Path) -> None:
    """Waits until a file, or a folder with all that it contains, is on the disk. Raises OSError."""
    if path.is_dir():
        for inner in path.iterdir():
            _flush(inner)
        _flush_folder(path)
    elif sys.platform != "win32":
        _fsync(path)


def _flush_folder(folder: Path) -> None:
    with suppress(OSError):  # not every file system has it
        _fsync(folder)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
