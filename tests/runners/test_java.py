"""The Java class over the C runner: predictions, streams and errors on the JDK of this machine."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import native
import pytest
from conftest import quick_and_slow
from make_vectors import VECTORS

SOURCES = native.ROOT / "runners" / "java" / "src" / "main" / "java" / "berxit"
EXAMPLES = native.ROOT / "docs" / "examples"
BUNDLE = VECTORS / "onnx" / "confidence"
CHECKS = """
import berxit.*;
import java.util.*;

public final class Checks {
    static void fails(Class<? extends Exception> kind, String part, Runnable work) {
        try {
            work.run();
        } catch (Exception error) {
            String message = error.getMessage();
            boolean right = kind.isInstance(error) && message.contains(part) && !message.contains("\\n");
            System.out.println(right ? "rejected" : "wrong: " + error);
            return;
        }
        System.out.println("not rejected: " + part);
    }

    public static void main(String[] arguments) {
        EarlyExitRunner runner = EarlyExitRunner.load(arguments[0], new EarlyExitRunner.Options().threads(1));
        System.out.println(runner.labels() + " " + (runner.check() < 1e-4));
        try (EarlyExitRunner.PredictionStream stream = runner.stream(arguments[1], null)) {
            StringBuilder layers = new StringBuilder();
            while (stream.hasNext()) layers.append(stream.next().exitLayer());
            System.out.println(layers);
        }
        List<String[]> texts = new ArrayList<>();
        for (int i = 0; i < 40; ++i) texts.add(new String[] {arguments[1]});
        List<Prediction> found = runner.predict(texts, null, 10000.0);
        Prediction last = found.get(39);
        for (Span span : last.spans()) {
            String part = arguments[1].substring(span.start(), span.end());
            System.out.print(span.label() + ":" + part + (span.score() < 1) + " ");
        }
        for (String label : last.labels()) System.out.print(label + " ");
        System.out.println(found.size() + " " + last.label() + " " + last.late() + " " + last.scores().size());
        fails(IllegalArgumentException.class, "is empty", () -> runner.predict(" "));
        fails(IllegalArgumentException.class, "null", () -> runner.predict((String) null));
        fails(IllegalArgumentException.class, "1.5", () -> runner.predict(texts, 1.5, null));
        fails(IllegalArgumentException.class, "pair", () -> runner.predict("one", "two"));
        fails(BerxitException.class, "/nowhere \u00fc", () -> EarlyExitRunner.load("/nowhere \u00fc"));
        runner.close();
        runner.close();
        fails(IllegalStateException.class, "closed", () -> runner.predict("one"));
    }
}
"""


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The compiled classes of the runner and the examples, and Checks."""
    folder, jdk = tmp_path_factory.mktemp("classes"), native.jdk()
    if jdk is None:
        pytest.skip("no JDK here: javac or jni.h is missing")
    (folder / "Checks.java").write_text(CHECKS, encoding="utf-8")
    options = ["--release", "11", "-encoding", "UTF-8", "-Xlint:all", "-Werror", "-d", folder]
    sources = [*SOURCES.glob("*.java"), EXAMPLES / "Predict.java", folder / "Checks.java"]
    native.run(jdk / "bin" / "javac", *options, *sources)
    return folder


@pytest.fixture
def java(request: pytest.FixtureRequest, classes: Path) -> list[str]:
    """A command that runs a class of the examples, or Checks."""
    library, jdk = native.built_for(request), native.jdk()
    assert jdk is not None
    options = [f"-Djava.library.path={library}", "-Xcheck:jni", "-Dfile.encoding=UTF-8"]
    return [str(jdk / "bin" / "java"), "-cp", str(classes), *options]


def run(command: list[str], *arguments: str | Path) -> str:
    environment = {**os.environ, "BERXIT_ONNXRUNTIME": str(native.library()), "LC_ALL": "C.UTF-8"}
    line = [*command, *map(str, arguments)]
    done = subprocess.run(line, env=environment, capture_output=True, text=True, encoding="utf-8", check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return done.stdout


def first_answer() -> tuple[str, dict[str, object]]:
    cases = json.loads((BUNDLE / "answers.json").read_text(encoding="utf-8"))
    return cases["texts"][0][0], cases["batches"][0]["answers"][0]


def test_java_class_predicts_streams_and_rejects(java: list[str]) -> None:
    text, answer = first_answer()
    labels, layers, batch, *errors = run(java, "Checks", BUNDLE, text).splitlines()
    assert labels.endswith("] true")
    assert layers == "123456"
    assert batch == f"40 {answer['label']} false 3"
    assert errors == ["rejected"] * 6


SPANS = "what:turn thetrue when:kitchen lightstrue when:offtrue 40 I-what I-what I-when I-when B-when false 0"
KINDS = [
    ("multilabel", "lights music 40 lights|music false 3"),
    ("heads", "what=lights room=none 40 what=lights|room=none false 5"),
    ("tokens", SPANS),
]


@pytest.mark.parametrize(("name", "expected"), quick_and_slow(KINDS, [("tokens", SPANS)]))
def test_java_class_returns_labels_and_spans(java: list[str], name: str, expected: str) -> None:
    bundle = BUNDLE.parent / name
    text = json.loads((bundle / "answers.json").read_text(encoding="utf-8"))["texts"][0][0]
    blanks = "\u3000\u2003"  # two chars of six bytes, so that the offsets of spans in chars and bytes differ
    assert run(java, "Checks", bundle, blanks + text).splitlines()[2] == expected


@pytest.mark.slow
def test_java_example_prints_the_prediction(java: list[str]) -> None:
    text, answer = first_answer()
    assert len((EXAMPLES / "Predict.java").read_text(encoding="utf-8").splitlines()) <= 20
    assert f"{text}: {answer['label']} (" in run(java, "Predict", BUNDLE, text)


@pytest.mark.slow
def test_c_example_prints_the_prediction(tmp_path: Path) -> None:
    text, answer = first_answer()
    built = native.built("release")
    assert len((EXAMPLES / "predict.c").read_text(encoding="utf-8").splitlines()) <= 20
    program = tmp_path / "predict"
    options = [
        "-std=c99",
        "-Wall",
        "-Wextra",
        "-Werror",
        f"-I{native.RUNNER / 'include'}",
        f"-L{built}",
        f"-Wl,-rpath,{built}",
    ]
    native.run("cc", *options, EXAMPLES / "predict.c", "-lberxit", "-o", program)
    assert f"{text}: {answer['label']} (" in run([str(program)], BUNDLE, text)
    done = subprocess.run([program, "/nowhere", text], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
