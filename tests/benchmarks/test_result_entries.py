"""The table of the commands behind results/, and ``make results``."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner

from benchmarks import results
from benchmarks.result_entries import ENTRIES
from benchmarks.result_entry import Entry
from benchmarks.results import ROOT, command, run_entry
from berxit.runtime.errors import BerxitError, InputError
from berxit.toolkit.cli import COMMANDS


def test_every_stored_file_belongs_to_one_entry() -> None:
    stored = sorted(path.relative_to(ROOT / "results").as_posix() for path in (ROOT / "results").rglob("*.json"))
    assert sorted(file for entry in ENTRIES for file in entry.files) == stored
    assert len({entry.name for entry in ENTRIES}) == len(ENTRIES)
    assert {name for entry in ENTRIES for name in entry.after} <= {entry.name for entry in ENTRIES}


def test_every_stored_file_contains_how_it_was_made() -> None:
    for entry in ENTRIES:
        for file in entry.files:
            made = json.loads((ROOT / "results" / file).read_text(encoding="utf-8"))["made_by"]
            assert {"command", "options", "seeds", "commit", "versions", "machine"} <= made.keys(), file
            assert made["command"], file
            assert made["commit"] or made["recorded"], file


def test_programs_of_the_commands_exist() -> None:
    for line in (line for entry in ENTRIES for line in entry.commands):
        words = shlex.split(line.strip("()").split(";")[0])
        if words[0] == "python":
            module = words[2] if words[1] == "-m" else words[1]
            path = ROOT / (module if module.endswith(".py") else module.replace(".", "/"))
            assert path.exists() or path.with_suffix(".py").exists(), line
        elif words[0].startswith("berxit"):
            assert (words[1] if words[0] == "berxit" else words[0].removeprefix("berxit-")) in COMMANDS, line
        else:
            assert words[0] in ("make", "cat", "git", "env"), line


def listing(*arguments: str | Path) -> str:
    done = CliRunner().invoke(command, [str(each) for each in arguments], env={"DATA": "", "MODELS": ""})
    assert done.exit_code == 0, done.output
    return done.output


def test_results_lists_minutes_and_skips_entries_without_their_data(tmp_path: Path) -> None:
    output = listing()
    assert re.search(r"\| quickstart +\| +\d+ \| ready", output)
    assert re.search(r"\| mrpc-vnni +\| +\d+ \| skipped: no \$DATA/MRPC, \$MODELS/bge-small-en", output)
    assert "# mrpc-vnni:" not in output
    (tmp_path / "MRPC").mkdir()
    (tmp_path / "bge-small-en").mkdir()
    output = listing("--data", tmp_path, "--models", tmp_path)
    assert re.search(r"\| mrpc-vnni +\| +\d+ \| ready", output)
    assert "# mrpc-vnni: mrpc-vnni/bge-fp32.json" in output
    assert re.search(r"\| runtime +\| +\d+ \| ready, after mrpc-vnni", output)
    assert "skipped: no $DATA/SST-2" in output


def test_run_entry_runs_its_commands_and_stops_at_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = Entry("good", (), 1, ('cp "$DATA/MRPC" copy',))
    bad = Entry("bad", (), 1, ("false", f"touch {tmp_path / 'after'}"))
    monkeypatch.setattr(results, "ENTRIES", (good, bad))
    monkeypatch.setattr(results, "ROOT", tmp_path)
    (tmp_path / "MRPC").write_text("rows", encoding="utf-8")
    run_entry("good", {"DATA": str(tmp_path)})
    assert (tmp_path / "copy").read_text(encoding="utf-8") == "rows"
    with pytest.raises(BerxitError, match="bad: 'false' failed with status 1"):
        run_entry("bad", {})
    assert not (tmp_path / "after").exists()
    with pytest.raises(InputError, match=r"good needs \$DATA/MRPC"):
        run_entry("good", {"DATA": str(tmp_path / "nowhere")})
    with pytest.raises(InputError, match="no entry 'other': choose one of good, bad"):
        run_entry("other", {})
