"""Prose lint: reports wording that the project does not use, with the wording that it uses instead.

``python tools/prose_lint.py [FILE ...]`` reads the given files, or every tracked text file. The exit status is 1 if
anything was found. ``make lint`` and the pre-commit hook run it.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SUFFIXES = {".md", ".py", ".swift", ".js", ".ts", ".java", ".kt", ".c", ".h", ".cc", ".cpp", ".toml", ".yml"}
EXEMPT = {"tools/prose_lint.py", "tests/tools/test_prose_lint.py"}
"""These files quote the wording that the lint reports."""


@dataclass(frozen=True)
class Rule:
    """One kind of wording, with its replacement."""

    pattern: str
    instead: str
    suffix: str = ""
    """The rule applies only to files with this suffix; empty means every file."""


RULES = (
    Rule(r"\btable of words\b", "word embedding table"),
    Rule(r"\beven(ed|ing|s)? out\b", "smoothing (SmoothQuant), smoothed"),
    Rule(r"\bmend(s|ed|ing)?\b", "fix, recreate, upgrade"),
    Rule(r"\bback ends?\b", "backend"),
    Rule(r"\bstand(s|ing)? still\b", "frozen"),
    Rule(r"\b(rows?|inputs?|texts?|examples?) (that )?leaves?\b", "exit"),
    Rule(r"\bleav(e|es|ing) (at|after|before) (a |the |each |which )?layer", "exit at layer"),
    Rule(r"\bleaves? early\b", "exit early"),
    Rule(r"\bsays docs/", "see docs/"),
    Rule(r"\b(is|are) not asked\b", "name what is skipped"),
    Rule(r"\bwho loads it\b", "the caller"),
    Rule(r"\btold beside\b", "reported with"),
    Rule(
        r"\b(lies|lie) (in|beside|between|midway|next|at|on|outside|before|behind|evenly|where)\b",
        "is stored in, is outside, is between",
    ),
    Rule(r"\bbetter visit\b", "lower median of two runs"),
    Rule(r"\bfalls? asleep\b", "thread pool, spinning"),
    Rule(r"\basks every token\b", "self-attention"),
    Rule(r"\bas one graph's\b|\bthe graph, as one\b", "one graph (without exits)"),
    Rule(r"\bhow sure\b", "certainty"),
    Rule(r"\bhears?\b", "receives, is called with"),
    Rule(r"\bleft away\b|\bleave (it|lazy|--data) away\b", "omit"),
    Rule(r"\banew\b", "again; recreate, rebuild"),
    Rule(r"\bmake (it|them|the file) again\b", "recreate"),
    Rule(r"\b(is|are) there already\b", "exists"),
    Rule(r"\bgiv(e|es|en|ing) back\b", "free, release, return"),
    Rule(r"(?<!turn) in turns\b", "interleaved"),
    Rule(r"\b(sure enough|never sure|equally sure|surer)\b", "certain, certainty"),
    Rule(r"\bRaises \w+Error where\b", "Raises ... if", ".py"),
    Rule(r'"""(What|Which|How|Where|Whether|Whose|Who|When) ', "start with a noun phrase or a verb", ".py"),
    Rule(r"///\s*(What|Which|How|Where|Whether|Whose|Who) ", "start with a noun phrase or a verb", ".swift"),
    Rule(
        r"\bdef test_(a|an|the|what|who|where|nothing|nobody)_\w+",
        "test_<unit>_<behaviour>, such as test_predict_batch_keeps_input_order",
        ".py",
    ),
)


@dataclass(frozen=True)
class Finding:
    """One place that breaks a rule."""

    path: str
    line: int
    text: str
    instead: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: '{self.text}': write instead: {self.instead}"


def findings(path: str, text: str) -> Iterator[Finding]:
    """The places in ``text`` that break a rule; wording that continues on the next line is found too."""
    for rule in RULES:
        if not path.endswith(rule.suffix):
            continue
        for match in re.finditer(rule.pattern.replace(" ", r"\s+(?:#\s+|///\s+)?"), text, re.IGNORECASE):
            line = text.count("\n", 0, match.start()) + 1
            yield Finding(path, line, " ".join(match.group().split()), rule.instead)


def tracked_files() -> list[Path]:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [ROOT / name for name in listed.splitlines()]


def main(arguments: list[str]) -> int:
    files = [Path(name).resolve() for name in arguments] or tracked_files()
    found = []
    for file in files:
        name = file.relative_to(ROOT).as_posix() if file.is_relative_to(ROOT) else str(file)
        if file.suffix in SUFFIXES and name not in EXEMPT and file.is_file():
            found += findings(name, file.read_text(encoding="utf-8"))
    for finding in found:
        print(finding)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
