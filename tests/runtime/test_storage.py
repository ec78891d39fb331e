"""Atomic replacement of folders and files, and recovery after a killed process."""

from __future__ import annotations

import errno
import itertools
import multiprocessing
import os
import shutil
import signal
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from berxit.runtime import storage
from berxit.runtime.errors import BerxitError, InputError
from berxit.runtime.storage import (
    check_place,
    check_results_file,
    check_results_folder,
    recover,
    refuse_to_overwrite,
    replacing,
    write_errors,
    write_text,
    write_together,
    write_whole,
)


def folder_with(path: Path, name: str) -> Path:
    path.mkdir()
    (path / name).write_text(name, encoding="utf-8")
    return path


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(params=["in one step", "by two renames"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways to replace a folder: by an exchange in one step, or by two renames."""
    if request.param == "by two renames":
        monkeypatch.setattr(storage, "_exchange", lambda one, other: False)
    return str(request.param)


def test_write_whole_creates_folder_at_end_of_block(tmp_path: Path) -> None:
    output = tmp_path / "new" / "output.v1"
    with write_whole(output, force=False) as scratch:
        (scratch / "a.txt").write_text("a", encoding="utf-8")
        assert not output.exists()
        assert scratch.parent == output.parent  # a rename is atomic only within one file system
    assert (output / "a.txt").read_text(encoding="utf-8") == "a"
    assert names(output.parent) == ["output.v1"]


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt])
def test_write_whole_leaves_nothing_after_a_failure(failure: type[BaseException], tmp_path: Path) -> None:
    with pytest.raises(failure), write_whole(tmp_path / "output", force=False) as scratch:
        (scratch / "half.txt").write_text("half", encoding="utf-8")
        raise failure
    assert names(tmp_path) == []


def test_write_whole_keeps_the_old_folder_after_a_failure(tmp_path: Path, way: str) -> None:
    output = folder_with(tmp_path / "output", "old")
    with pytest.raises(RuntimeError), write_whole(output, force=True) as scratch:
        (scratch / "new").touch()
        raise RuntimeError
    assert names(output) == ["old"]
    assert names(tmp_path) == ["output"]


def test_write_whole_never_overwrites_silently(tmp_path: Path, way: str) -> None:
    output = folder_with(tmp_path / "output", "old")
    with pytest.raises(InputError, match="exists: choose another --output"), write_whole(output, force=False):
        pytest.fail("the block must not run")
    assert names(output) == ["old"]
    with write_whole(output, force=True) as scratch:
        (scratch / "new").touch()
    assert names(output) == ["new"]
    assert names(tmp_path) == ["output"]


def test_write_whole_rejects_folder_written_by_another_process(tmp_path: Path) -> None:
    output = tmp_path / "output"
    with pytest.raises(InputError, match="another process has written"), write_whole(output, force=False) as scratch:
        (scratch / "new").touch()
        folder_with(output, "theirs")
    assert names(output) == ["theirs"]
    assert names(tmp_path) == ["output"]


def test_write_whole_rejects_file(tmp_path: Path) -> None:
    output = tmp_path / "output"
    output.write_text("mine", encoding="utf-8")
    with pytest.raises(InputError, match="is a file"), write_whole(output, force=True):
        pytest.fail("the block must not run")
    assert output.read_text(encoding="utf-8") == "mine"


@pytest.mark.parametrize(
    ("place", "problem"),
    [
        ("file/new", "file is not a folder"),
        ("file/new/newer", "file is not a folder"),
        ("link", "it is a symbolic link to a missing file or folder"),
        ("n" * 300, "File name too long"),
        ("read-only/new", "read-only is read-only, or belongs to another user"),
    ],
)
def test_check_place_names_the_reason_and_creates_nothing(tmp_path: Path, place: str, problem: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("nowhere")
    (tmp_path / "read-only").mkdir(mode=0o500)
    if place.startswith("read-only") and os.access(tmp_path / "read-only", os.W_OK):
        pytest.skip("this user can write everywhere")
    before = names(tmp_path)
    for check in (check_place, check_results_folder, lambda path: refuse_to_overwrite(path, force=True)):
        with pytest.raises(InputError, match=rf"cannot write .*{problem}. Choose another --output"):
            check(tmp_path / place)
    check_place(tmp_path / "new" / "newer" / "a ü")
    assert names(tmp_path) == before


def test_check_results_folder_rejects_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    check_results_folder(tmp_path)
    with pytest.raises(InputError, match=r"cannot write results to .*file: .*file is not a folder"):
        check_results_folder(tmp_path / "file")


def test_check_results_folder_accepts_a_writable_folder_in_a_read_only_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mounted").mkdir()
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)
    check_results_folder(tmp_path / "mounted")
    check_results_folder(tmp_path / "mounted" / "new" / "newer")
    with pytest.raises(InputError, match="is read-only, or belongs to another user"):
        check_results_folder(tmp_path / "new")


def test_check_results_file_rejects_folders_and_files_of_another_kind(tmp_path: Path) -> None:
    (tmp_path / "folder.json").mkdir()
    check_results_file(tmp_path / "new" / "a.JSON", ".json")
    with pytest.raises(InputError, match=r"folder.json is a folder: name a file in it"):
        check_results_file(tmp_path / "folder.json", ".json")
    with pytest.raises(InputError, match=r"data.csv: the result is a .json file"):
        check_results_file(tmp_path / "data.csv", ".json")


def test_refuse_to_overwrite_rejects_mount_point() -> None:
    with pytest.raises(InputError, match=r"/proc is a mount point.*name a folder in it"):
        refuse_to_overwrite(Path("/proc"), force=True)


def test_write_whole_replaces_a_link_and_keeps_its_target(tmp_path: Path, way: str) -> None:
    target, output = folder_with(tmp_path / "target", "old"), tmp_path / "output"
    output.symlink_to(target)
    with write_whole(output, force=True) as scratch:
        (scratch / "new").touch()
    assert (names(output), names(target)) == (["new"], ["old"])
    assert names(tmp_path) == ["output", "target"]


def test_write_whole_reports_full_disk_in_one_line(tmp_path: Path) -> None:
    with (
        pytest.raises(BerxitError, match=r"No space left on device\. Free space"),
        write_whole(tmp_path / "output", force=False),
    ):
        raise OSError(28, "No space left on device")
    assert names(tmp_path) == []


def test_write_whole_deletes_old_folder_last(tmp_path: Path, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    output = folder_with(tmp_path / "output", "old")
    seen: list[list[str]] = []
    remove = storage._remove

    def noted(path: Path) -> None:
        seen.append(names(output))
        remove(path)

    monkeypatch.setattr(storage, "_remove", noted)
    with write_whole(output, force=True) as scratch:
        (scratch / "new").touch()
    assert seen
    assert all(found == ["new"] for found in seen)


def test_write_whole_flushes_content_before_rename(tmp_path: Path, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    output = folder_with(tmp_path / "output", "old")
    flushed: list[str] = []
    fsync = storage._fsync

    def noted(path: Path) -> None:
        flushed.append(path.name if output.is_dir() and names(output) == ["old"] else "late")
        fsync(path)

    monkeypatch.setattr(storage, "_fsync", noted)
    with write_whole(output, force=True) as scratch:
        (scratch / "inner").mkdir()
        (scratch / "inner" / "new").touch()
    assert flushed == ["new", "inner", scratch.name, "late"]


def replace_until(folder: Path, action: str, at: int, way: str) -> None:
    """Replaces the content of ``folder / "output"``, and kills this process before the rename number ``at``."""
    moves = itertools.count()

    def killed(real: Callable[..., Any]) -> Callable[..., Any]:
        def move(*arguments: object) -> object:
            if next(moves) == at:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments)

        return move

    if way == "by two renames":
        storage._exchange = lambda one, other: False
    Path.rename, Path.replace = killed(Path.rename), killed(Path.replace)  # type: ignore[method-assign]
    storage._exchange, storage._remove = killed(storage._exchange), killed(storage._remove)
    if action == "whole":
        with storage.write_whole(folder / "output", force=True) as scratch:
            (scratch / "new").touch()
            (scratch / "new 2").touch()
    else:
        with storage.write_together(folder / "output") as scratch:
            (scratch / "one").write_text("new", encoding="utf-8")
            (scratch / "two").write_text("new", encoding="utf-8")


def killed_at(folder: Path, action: str, at: int, way: str) -> bool:
    """Kills a replacement before its rename number ``at``. Returns False if it has fewer renames."""
    child = multiprocessing.get_context("fork").Process(target=replace_until, args=(folder, action, at, way))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # a fork with threads, from Python 3.12 on
        child.start()
    child.join()
    assert child.exitcode in (0, -signal.SIGKILL)
    return child.exitcode != 0


def test_write_whole_is_atomic_if_killed(tmp_path: Path, way: str) -> None:
    outcomes = []
    for at in range(20):
        place = tmp_path / str(at)
        place.mkdir()
        folder_with(place / "output", "old")
        killed = killed_at(place, "whole", at, way)
        recover(place / "output")
        assert names(place) == ["output"]
        outcomes.append(tuple(names(place / "output")))
        if not killed:
            break
    assert set(outcomes) == {("old",), ("new", "new 2")}
    assert outcomes == sorted(outcomes, reverse=True)  # the old folder for early kills, the new one for late kills
    assert len(outcomes) > 3


def test_write_together_is_atomic_if_killed(tmp_path: Path) -> None:
    outcomes = []
    for at in range(20):
        place = tmp_path / str(at)
        folder = place / "output"
        folder.mkdir(parents=True)
        for name in ("one", "two", "other"):
            (folder / name).write_text("old", encoding="utf-8")
        killed = killed_at(place, "together", at, "in one step")
        recover(folder)
        assert names(folder) == ["one", "other", "two"]
        outcomes.append(tuple((folder / name).read_text(encoding="utf-8") for name in ("one", "two", "other")))
        if not killed:
            break
    assert set(outcomes) == {("old", "old", "old"), ("new", "new", "old")}
    assert len(outcomes) > 3


def test_recover_keeps_scratch_of_running_process(tmp_path: Path, way: str) -> None:
    output = folder_with(tmp_path / "output", "old")
    with write_whole(output, force=True) as scratch:
        (scratch / "new").touch()
        recover(output)
        assert scratch.is_dir()
        with write_whole(output, force=True) as other:  # a second command at the same time
            (other / "other").touch()
        assert names(output) == ["other"]
    assert names(output) == ["new"]
    with replacing(tmp_path / "file.json") as file:
        file.write_text("new", encoding="utf-8")
        recover(tmp_path / "file.json")
        write_text(tmp_path / "file.json", "other")
    assert (tmp_path / "file.json").read_text(encoding="utf-8") == "new"
    assert names(tmp_path) == ["file.json", "output"]


def test_recover_ignores_running_process_between_renames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = folder_with(tmp_path / "output", "old")
    monkeypatch.setattr(storage, "_exchange", lambda one, other: False)
    between: list[bool] = []
    rename = Path.rename

    def slow(self: Path, target: Path) -> Path:
        moved = rename(self, target)
        if self == output:
            recover(output)
            between.append(output.exists())
        return moved

    monkeypatch.setattr(Path, "rename", slow)
    with write_whole(output, force=True) as scratch:
        (scratch / "new").touch()
    assert between == [False]
    assert names(output) == ["new"]


def test_recover_keeps_unrelated_files(tmp_path: Path) -> None:
    others = [
        ".output.training",
        ".output.partial",
        ".output2.0123abcd.partial",
        "output.0123abcd.partial",
        ".output.x",
    ]
    for name in others:
        folder_with(tmp_path / name, "mine")
    recover(tmp_path / "output")
    assert names(tmp_path) == sorted(others)


def test_write_whole_removes_scratch_of_killed_process(tmp_path: Path) -> None:
    folder_with(tmp_path / ".output.0123abcd.partial", "half")
    (tmp_path / ".bench.0123abcd.partial.json").touch()
    with write_whole(tmp_path / "output", force=False) as scratch:
        (scratch / "new").touch()
    write_text(tmp_path / "bench.json", "{}")
    assert names(tmp_path) == ["bench.json", "output"]
    assert names(tmp_path / "output") == ["new"]


def test_recover_without_locks_restores_and_removes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "_claim", lambda path: None)
    folder_with(tmp_path / ".output.0123abcd.old", "old")
    folder_with(tmp_path / ".output.0123abcd.partial", "new")
    recover(tmp_path / "output")
    assert names(tmp_path / "output") == ["old"]
    assert names(tmp_path) == [".output.0123abcd.partial", "output"]


def test_concurrent_writers_and_recover_lose_nothing(tmp_path: Path, way: str) -> None:
    """Scratch files are locked after they are created; in between, another process may remove them."""
    output = folder_with(tmp_path / "output", "0")
    errors: list[BaseException] = []

    def run(work: Callable[[], None]) -> None:
        try:
            for _ in range(60):
                work()
        except BaseException as error:
            errors.append(error)

    def write() -> None:
        with write_whole(output, force=True) as scratch:
            (scratch / str(threading.get_ident())).touch()

    works = [lambda: recover(output)] * 2 + ([write] if way == "by two renames" else [write] * 2)
    threads = [threading.Thread(target=run, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    recover(output)
    assert len(names(output)) == 1
    assert names(tmp_path) == ["output"]


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt])
def test_replacing_keeps_the_old_file_after_a_failure(tmp_path: Path, failure: type[BaseException]) -> None:
    write_text(tmp_path / "bench.json", "old")
    with pytest.raises(failure), replacing(tmp_path / "bench.json") as scratch:
        scratch.write_text("half", encoding="utf-8")
        raise failure
    assert (tmp_path / "bench.json").read_text(encoding="utf-8") == "old"
    assert names(tmp_path) == ["bench.json"]


def test_write_together_changes_nothing_after_a_failure(tmp_path: Path) -> None:
    write_text(tmp_path / "one", "old")
    with pytest.raises(RuntimeError), write_together(tmp_path) as scratch:
        (scratch / "one").write_text("new", encoding="utf-8")
        raise RuntimeError
    assert (tmp_path / "one").read_text(encoding="utf-8") == "old"
    assert names(tmp_path) == ["one"]


def test_new_files_have_default_permissions(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        write_text(tmp_path / "file", "")
        with write_whole(tmp_path / "output", force=False):
            pass
    finally:
        os.umask(before)
    assert [(tmp_path / name).stat().st_mode & 0o777 for name in ("file", "output")] == [0o644, 0o755]


def test_write_errors_names_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Libraries such as torch raise exceptions of their own, which do not name the disk."""
    with pytest.raises(RuntimeError, match="enforce fail"), write_errors(tmp_path / "out"):
        raise RuntimeError("[enforce fail at inline_container.cc:672]")  # with room on the disk: another problem
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=100))
    with (
        pytest.raises(BerxitError, match=r"out: the disk is full\. Free space"),
        write_errors(tmp_path / "new" / "out"),
    ):
        raise RuntimeError("[enforce fail at inline_container.cc:672]")
    with pytest.raises(BerxitError, match="out: Read-only file system"), write_errors(tmp_path / "out"):
        raise OSError(errno.EROFS, "Read-only file system")
