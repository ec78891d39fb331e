"""Stress test: a mutated bundle is refused in one line, or predicts. It never crashes, hangs or raises another error.

    python benchmarks/mutations.py BUNDLE [--backend onnxruntime] [--mutations 10000] --output mutations

Each mutation changes a copy of the bundle in one place and loads it in a forked process, which predicts four texts. The
mutations are drawn with a seed, so a case can be repeated with ``--first N --mutations 1``.

| kind | change |
|---|---|
| manifest value | a value of manifest.json becomes another one, is removed or repeated |
| manifest bytes | bytes of manifest.json change, or are cut off |
| damaged file | bytes of another file change; its checksum does not |
| changed file | the same, with the new checksum |
| tokenizer value, golden value | a value of the file becomes another one, with the new checksum |
| wrong kind | a file becomes a folder, a pipe, a link to itself, empty, or is missing |

A damaged file must be refused. Other mutations may change the predictions: nothing but a signature protects them. How
many of them the check of the golden inputs, with which every bench starts, detects is reported.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import click

from berxit.runtime.backends import allowed_difference
from berxit.runtime.console import debug_option, progress_bar, run
from berxit.runtime.errors import BerxitError
from berxit.runtime.golden import differences, read_golden
from berxit.runtime.results import write_results
from berxit.runtime.runner import EarlyExitRunner
from berxit.runtime.tables import markdown_table

TEXTS = ("the cat sat on the mat", "a dog", "cat " * 60, "\u00e9t\u00e9 \U0001f600 ...")
LONGEST_S = 20
"""Seconds after which a mutation counts as a hang."""
VALUES: tuple[Any, ...] = (
    *(None, True, -1, 0, 1, 2, 1000, 2**31, 2**63, 10**400, 0.5, -1e308, 1e-320, "", "x", "a\0b", "a\nb", "\ud800"),
    *("a" * 300, "../manifest.json", "/etc/passwd", "float16", "logits", "hidden", [], [[]], {}, {"x": 1}, [0] * 1000),
)
REFUSED, SAME, DIFFERENT = "refused", "same predictions", "other predictions"
UNSAFE = ("other exception", "hang", "crash", "damage not noticed")
Outcome = tuple[str, str]
"""The outcome, and the message of an exception."""


def mutate_value(rng: random.Random, data: Any) -> None:
    """Changes one value of JSON data in place: replaces, removes or repeats it."""
    places: list[tuple[Any, Any]] = []

    def collect(value: Any) -> None:
        keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
        for key in keys:
            places.append((value, key))
            collect(value[key])

    collect(data)
    parent, key = rng.choice(places)
    action = rng.random()
    if action < 0.15:
        del parent[key]
    elif action < 0.25 and isinstance(parent, list):
        parent.append(parent[key])
    elif action < 0.4:
        parent[key] = rng.choice(places)[0]  # another part of the file
    else:
        parent[key] = rng.choice(VALUES)


def mutate_bytes(rng: random.Random, path: Path) -> None:
    """Changes, inserts or removes bytes of a file in place."""
    content = bytearray(path.read_bytes())
    place = rng.randrange(len(content))
    action = rng.random()
    if action < 0.6:
        for _ in range(rng.choice((1, 1, 4, 64))):
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    elif action < 0.75:
        del content[place:]
    elif action < 0.9:
        content[place:place] = rng.randbytes(rng.choice((1, 8, 1000)))
    else:
        del content[place : place + rng.choice((1, 8, 1000))]
    path.write_bytes(content)


def with_checksum(bundle: Path, path: Path, change: Callable[[], None]) -> None:
    """Applies ``change`` and writes the file's new checksum to the manifest."""
    before = hashlib.sha256(path.read_bytes()).hexdigest()
    change()
    after = hashlib.sha256(path.read_bytes()).hexdigest()
    manifest = bundle / "manifest.json"
    manifest.write_text(manifest.read_text(encoding="utf-8").replace(before, after), encoding="utf-8")


def mutate_json(rng: random.Random, path: Path) -> None:
    data = json.loads(path.read_text(encoding="utf-8"))
    mutate_value(rng, data)
    try:
        text = json.dumps(data)
    except ValueError:  # a part of the file was put into itself
        text = "[" * 10**5 + "]" * 10**5
    path.write_text(text, encoding="utf-8")


def other_files(bundle: Path) -> list[Path]:
    return sorted(path for path in bundle.rglob("*") if path.is_file() and path.name != "manifest.json")


def manifest_value(rng: random.Random, bundle: Path) -> None:
    mutate_json(rng, bundle / "manifest.json")


def manifest_bytes(rng: random.Random, bundle: Path) -> None:
    mutate_bytes(rng, bundle / "manifest.json")


def damaged_file(rng: random.Random, bundle: Path) -> None:
    mutate_bytes(rng, rng.choice(other_files(bundle)))


def changed_file(rng: random.Random, bundle: Path) -> None:
    path = rng.choice(other_files(bundle))
    with_checksum(bundle, path, lambda: mutate_bytes(rng, path))


def tokenizer_value(rng: random.Random, bundle: Path) -> None:
    with_checksum(bundle, bundle / "tokenizer.json", lambda: mutate_json(rng, bundle / "tokenizer.json"))


def golden_value(rng: random.Random, bundle: Path) -> None:
    with_checksum(bundle, bundle / "golden.json", lambda: mutate_json(rng, bundle / "golden.json"))


def wrong_kind(rng: random.Random, bundle: Path) -> None:
    path = rng.choice([*other_files(bundle), bundle / "manifest.json"])
    path.unlink()
    action = rng.randrange(5)
    if action == 0:
        path.mkdir()
    elif action == 1:
        os.mkfifo(path)
    elif action == 2:
        path.symlink_to(path.name)
    elif action == 3:
        path.touch()


KINDS = (manifest_value, manifest_bytes, damaged_file, changed_file, tokenizer_value, golden_value, wrong_kind)


def predictions(bundle: Path, backend: str) -> str:
    """The predictions of a bundle, and whether its golden inputs match, as one text."""
    runner = EarlyExitRunner.load(bundle, backend=backend, threads=1)
    found = [runner.predict(text) for text in TEXTS] + runner.predict_batch(TEXTS)
    return json.dumps([(p.label, round(p.certainty, 4), p.exit_layer) for p in found])


def golden_matches(bundle: Path, backend: str) -> bool:
    runner = EarlyExitRunner.load(bundle, backend=backend, threads=1)
    manifest = runner.manifest
    golden = read_golden(bundle, manifest)
    found = differences(runner.backend, golden, manifest.model.pad_token_id, manifest.parity.scale)
    return bool(max(found) <= allowed_difference(manifest, runner.backend))


def outcome_of(bundle: Path, backend: str, expected: str) -> Outcome:
    """Loads a mutated bundle in a forked process."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        silent = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silent, 1)
        os.dup2(silent, 2)
        signal.alarm(LONGEST_S)
        os.write(writer, json.dumps(_try(bundle, backend, expected)).encode()[:4000])
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as stream:
        said = stream.read()
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return ("hang", "") if os.WTERMSIG(status) == signal.SIGALRM else ("crash", f"signal {os.WTERMSIG(status)}")
    kind, message = json.loads(said)
    return kind, message


def _try(bundle: Path, backend: str, expected: str) -> Outcome:
    try:
        if predictions(bundle, backend) == expected:
            return SAME, ""
        try:
            return DIFFERENT, "not noticed" if golden_matches(bundle, backend) else "golden inputs differ"
        except BerxitError:
            return DIFFERENT, "golden inputs differ"
    except BerxitError:
        return REFUSED, ""
    except BaseException as error:  # whatever it is, it must not reach an app
        return "other exception", f"{type(error).__name__}: {error}"[:300]


@dataclass
class Counts:
    """Outcomes on one backend."""

    backend: str
    outcomes: dict[str, Counter[str]] = field(default_factory=dict)
    """Kind of the mutation -> outcome -> count."""
    golden_noticed: int = 0
    faults: list[str] = field(default_factory=list)

    def add(self, number: int, kind: str, outcome: Outcome) -> None:
        name, message = outcome
        if kind == damaged_file.__name__ and name == DIFFERENT:
            name = "damage not noticed"
        self.outcomes.setdefault(kind, Counter())[name] += 1
        self.golden_noticed += message == "golden inputs differ"
        if name in UNSAFE:
            self.faults.append(f"{number} {kind}: {name} {message}")


def measure(bundle: Path, backend: str, first: int, count: int) -> Counts:
    """Tries ``count`` mutations, from number ``first`` on."""
    counts = Counts(backend)
    import_module(f"berxit.runtime.backends.{backend}")  # here, so that not every child imports it
    with tempfile.TemporaryDirectory() as scratch, progress_bar(backend)(count) as bar:
        expected = _in_child(lambda: predictions(bundle, backend))
        for number in range(first, first + count):
            rng = random.Random(number)
            kind = KINDS[number % len(KINDS)]
            copy = Path(shutil.copytree(bundle, Path(scratch) / "bundle"))
            kind(rng, copy)
            counts.add(number, kind.__name__, outcome_of(copy, backend, expected))
            shutil.rmtree(copy)
            bar.update(1)
    return counts


def _in_child(compute: Callable[[], str]) -> str:
    """The result of ``compute`` in a forked process. This process must not start a backend before it forks."""
    reader, writer = os.pipe()
    if os.fork() == 0:
        os.write(writer, compute().encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as stream:
        found = stream.read().decode()
    os.wait()
    return found


def report(results: list[Counts]) -> str:
    names = (REFUSED, SAME, DIFFERENT, *UNSAFE)
    header = ["backend", "mutation", *names]
    rows = [
        [counts.backend, kind.replace("_", " "), *(str(found[name]) for name in names)]
        for counts in results
        for kind, found in sorted(counts.outcomes.items())
    ]
    lines = [markdown_table(header, rows)]
    for counts in results:
        different = sum(found[DIFFERENT] for found in counts.outcomes.values())
        lines.append(
            f"{counts.backend}: of {different} with other predictions, the golden inputs notice {counts.golden_noticed}"
        )
        lines += [f"FAULT {fault}" for fault in counts.faults[:50]]
    return "\n\n".join(lines)


@click.command(help=__doc__)
@click.argument("bundle", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--backend", "backends", multiple=True, default=("onnxruntime", "openvino"), show_default=True)
@click.option("--mutations", default=10000, show_default=True, type=click.IntRange(min=1))
@click.option("--first", default=0, show_default=True, type=click.IntRange(min=0), help="Number of the first mutation.")
@click.option("--output", type=click.Path(path_type=Path), required=True)
@debug_option
def command(bundle: Path, backends: tuple[str, ...], mutations: int, first: int, output: Path) -> None:
    results = [measure(bundle, backend, first, mutations) for backend in backends]
    text = report(results)
    data = [
        {"backend": each.backend, "outcomes": each.outcomes, "golden": each.golden_noticed, "faults": each.faults}
        for each in results
    ]
    write_results(output, "mutations", {"mutations": mutations, "first": first, "backends": data}, text)
    click.echo(text)
    if any(each.faults for each in results):
        raise BerxitError(f"{sum(len(each.faults) for each in results)} mutations were not handled: see {output}")


if __name__ == "__main__":
    run(command)
