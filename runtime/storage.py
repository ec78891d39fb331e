"""Atomic replacement of folders and files, even if the process is killed.

New content is written to a unique hidden name in the same parent folder, flushed to the disk, and renamed:

    .NAME.TOKEN.partial    a folder or file that is being written, locked by its writer
    .NAME.TOKEN.old        a replaced folder, if the file system cannot exchange two folders in one step
    .update.TOKEN.ready    a folder of complete files that are about to replace the files of the same names

``recover`` completes or removes the scratch files of a killed writer, and never changes those of a running writer.
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

ALMOST_FULL = 1 << 20
"""Free bytes of a disk on which a file could not be written."""
UPDATE = "update"
"""NAME of scratch folders whose files replace several files together."""


class _Scratch(NamedTuple):
    """Scratch paths of one replacement."""

    partial: Path
    old: Path
    ready: Path

    @classmethod
    def beside(cls, place: Path, token: str) -> _Scratch:
        return cls(*(place.with_name(f".{place.stem}.{token}.{kind}{place.suffix}") for kind in cls._fields))

    @classmethod
    def left_beside(cls, place: Path) -> list[_Scratch]:
        """Scratch paths of all replacements of ``place``, running or interrupted. Raises OSError."""
        kinds = "|".join(cls._fields)
        name = re.compile(rf"\.{re.escape(place.stem)}\.([0-9a-f]{{8}})\.(?:{kinds}){re.escape(place.suffix)}")
        found = (name.fullmatch(other.name) for other in place.parent.iterdir())
        return [cls.beside(place, token) for token in sorted({match[1] for match in found if match})]


@contextmanager
def write_whole(output: Path, *, force: bool) -> Iterator[Path]:
    """Context manager of a new folder that becomes ``output`` if the block ends without an error. It is removed
    otherwise.

    With ``force`` an existing ``output`` is replaced, in one step if the file system can exchange two folders;
    otherwise it is renamed first. In both cases it is deleted only after the new folder is in its place.

    Raises InputError if ``output`` exists and ``force`` is False, BerxitError if it cannot be written.
    """
    refuse_to_overwrite(output, force)
    with write_errors(output):
        output.parent.mkdir(parents=True, exist_ok=True)
        with _new_scratch(output, Path.mkdir) as scratch:
            try:
                yield scratch.partial
                _flush(scratch.partial)
                _move_in(scratch, output, force)
            finally:
                _settle(scratch, output)


@contextmanager
def write_errors(output: Path) -> Iterator[None]:
    """Context manager that converts the errors of a full or read-only disk to BerxitError.

    On a full disk, libraries that write files raise exceptions of their own, whose messages do not name the disk.
    """
    try:
        yield
    except BerxitError:
        raise
    except Exception as error:
        reason = error.strerror or str(error) if isinstance(error, OSError) else "the disk is full"
        if isinstance(error, OSError) or _is_full(output):
            raise BerxitError(f"cannot write {output}: {reason}. Free space, or choose another folder") from error
        raise


def _is_full(output: Path) -> bool:
    """True if the disk of ``output`` has almost no room."""
    folder = next((folder for folder in (output, *output.parents) if folder.is_dir()), None)
    return folder is not None and shutil.disk_usage(folder).free < ALMOST_FULL


def refuse_to_overwrite(output: Path, force: bool) -> None:
    """Raises InputError if ``output`` exists and ``force`` is False, or if it cannot be replaced by a folder.

    First calls ``recover`` for ``output``.
    """
    if not output.name or output.resolve() == Path.cwd():
        raise InputError(f"--output {output} is the current folder: name a folder in it")
    check_place(output)
    recover(output)
    if output.exists() and not force:
        raise InputError(f"{output} exists: choose another --output, or replace it with --force")
    if output.is_file():
        raise InputError(f"{output} is a file: --output must be a folder")
    if os.path.ismount(output):
        raise InputError(f"{output} is a mount point, which cannot be replaced: name a folder in it")


def check_place(output: Path, option: str = "--output") -> None:
    """Raises InputError if neither a file nor a folder can be created at ``output``, or if it is a link to nothing.

    Commands call it, or a function that does, before work that takes minutes. It creates nothing, so a full disk is
    found later. ``option``: the option that names ``output``.
    """
    if problem := _problem_of_place(output):
        raise InputError(f"cannot write {output}: {problem}. Choose another {option}")


def _problem_of_place(output: Path) -> str:
    try:
        if output.is_symlink() and not output.exists():
            return "it is a symbolic link to a missing file or folder"
        folder = output.absolute().parent
        while not folder.exists():
            folder = folder.parent
    except OSError as error:  # a name that is too long, a folder that must not be read
        return error.strerror or str(error)
    if not folder.is_dir():
        return f"{folder} is not a folder"
    return "" if os.access(folder, os.W_OK | os.X_OK) else f"{folder} is read-only, or belongs to another user"


def check_results_folder(folder: Path, option: str = "--output") -> None:
    """Raises InputError if a command cannot add files to ``folder``, which it creates if it does not exist."""
    problem = _problem_of_place(folder / "result")
    if not problem and not folder.exists():
        problem = _problem_of_place(folder)
    if problem:
        raise InputError(f"cannot write results to {folder}: {problem}. Choose another {option}")


def check_results_file(path: Path, suffix: str) -> None:
    """Raises InputError unless a command can write or replace ``path``, whose suffix must be ``suffix``, so that a
    mistyped name does not replace a file of another kind."""
    if path.suffix.lower() != suffix:
        raise InputError(f"--output {path}: the result is a {suffix} file. Choose a name that ends in {suffix}")
    check_place(path)
    if path.is_dir():
        raise InputError(f"--output {path} is a folder: name a file in it")


@contextmanager
def write_together(folder: Path) -> Iterator[Path]:
    """Context manager of a scratch folder whose files replace the files of the same names in ``folder``, all or none.

    All files are complete before the first is moved. If the process is killed in between, ``recover(folder)`` moves the
    rest. Raises BerxitError if they cannot be written.
    """
    recover(folder)
    with write_errors(folder), _new_scratch(folder / UPDATE, Path.mkdir) as scratch:
        try:
            yield scratch.partial
            _flush(scratch.partial)
            scratch.partial.rename(scratch.ready)
            _flush_folder(folder)
        finally:
            _publish(scratch)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Context manager of a scratch file with the same suffix that replaces ``path`` if the block ends without an
    error."""
    recover(path)
    with _new_scratch(path, lambda partial: partial.touch(exist_ok=False)) as scratch:
        try:
            yield scratch.partial
            _flush(scratch.partial)
            scratch.partial.replace(path)
            _flush_folder(path.parent)
        finally:
            _remove(scratch.partial)


@contextmanager
def used_alone(folder: Path) -> Iterator[None]:
    """Context manager that locks a folder against other processes; on a system without locks it does nothing.

    Raises InputError if another process has locked it.
    """
    try:
        claim = _claim(folder)
    except (BlockingIOError, FileNotFoundError):
        raise InputError(f"another process is writing {folder}: wait for it, or choose another --output") from None
    try:
        yield
    finally:
        if claim is not None:
            os.close(claim)


def write_text(path: Path, text: str) -> None:
    """Writes a UTF-8 text file atomically."""
    with replacing(path) as scratch:
        scratch.write_text(text, encoding="utf-8")


def recover(path: Path) -> None:
    """Completes interrupted replacements of the folder or file ``path``. Ignores OS errors.

    A half-way replacement is completed, complete files are moved to their place, and other scratch files are removed.
    """
    with suppress(OSError):
        for scratch in _Scratch.left_beside(path):
            with suppress(BlockingIOError, FileNotFoundError), _claimed(scratch) as alone:
                if alone:
                    _settle(scratch, path)
                # Without locks the writer may still be running: restore the old folder, but remove nothing.
                elif os.path.lexists(scratch.old) and not os.path.lexists(path):
                    scratch.old.rename(path)
        for scratch in _Scratch.left_beside(path / UPDATE) if path.is_dir() else ():
            with suppress(BlockingIOError, FileNotFoundError), _claimed(scratch) as alone:
                if alone:
                    _publish(scratch)


@contextmanager
def _new_scratch(place: Path, make: Callable[[Path], None]) -> Iterator[_Scratch]:
    """Context manager of new scratch paths for ``place``. ``make`` creates the partial one, which is locked until the
    block ends."""
    while True:
        scratch = _Scratch.beside(place, secrets.token_hex(4))
        try:
            make(scratch.partial)
            claim = _claim(scratch.partial)
        except (FileExistsError, BlockingIOError, FileNotFoundError):
            if not place.parent.is_dir():
                raise
            continue  # another process removed it before it was locked, because its writer seemed to be dead
        break
    try:
        yield scratch
    finally:
        if claim is not None:
            os.close(claim)


@contextmanager
def _claimed(scratch: _Scratch) -> Iterator[bool]:
    """Context manager that locks scratch paths. Yields False if the system has no locks, so that a running writer
    cannot be detected.

    Raises BlockingIOError or FileNotFoundError if another process uses them.
    """
    claim = _claim(next((path for path in scratch if os.path.lexists(path)), scratch.partial))
    try:
        yield claim is not None
    finally:
        if claim is not None:
            os.close(claim)


def _claim(path: Path) -> int | None:
    """File descriptor with a lock, which is released when it is closed or the process ends; None if the system has no
    locks."""
    if sys.platform == "win32":
        return None
    claim = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not os.path.samestat(os.fstat(claim), path.stat()):
            raise FileNotFoundError(errno.ENOENT, "replaced by another process", str(path))
    except (BlockingIOError, FileNotFoundError):
        os.close(claim)
        raise
    except OSError:  # some network file systems have no locks on folders
        os.close(claim)
        return None
    return claim


def _move_in(scratch: _Scratch, output: Path, force: bool) -> None:
    """Moves the new folder to ``output``. Raises InputError if another process has written ``output`` in the meantime
    and ``force`` is False."""
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
            raise InputError(f"another process has written {output}: choose another --output") from error
    _flush_folder(output.parent)


def _settle(scratch: _Scratch, output: Path) -> None:
    """Removes the scratch paths. If the replacement stopped between its two renames, completes it first."""
    if os.path.lexists(scratch.old) and not os.path.lexists(output):
        (scratch.partial if scratch.partial.exists() else scratch.old).rename(output)
        _flush_folder(output.parent)
    _remove(scratch.partial)
    _remove(scratch.old)


def _publish(scratch: _Scratch) -> None:
    """Moves the files of the ``ready`` folder to their places, and removes incomplete files."""
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
    """Exchanges two paths in one step. Returns False if the operating system or the file system cannot."""
    at_cwd, exchange = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of Linux
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):  # not Linux, or a C library without renameat2
        return False
    done: int = renameat2(at_cwd, os.fsencode(one), at_cwd, os.fsencode(other), exchange)
    return done == 0


def _flush(path: Path) -> None:
    """Waits until a file, or a folder with its content, is on the disk. Raises OSError."""
    if path.is_dir():
        for inner in path.iterdir():
            _flush(inner)
        _flush_folder(path)
    elif sys.platform != "win32":
        _fsync(path)


def _flush_folder(folder: Path) -> None:
    with suppress(OSError):  # some file systems cannot fsync a folder
        _fsync(folder)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
