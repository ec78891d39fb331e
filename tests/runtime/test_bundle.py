from __future__ import annotations

import hashlib
import json
import mmap
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from berxit.runtime import bundle as bundle_module
from berxit.runtime.bundle import (
    MAPPED,
    Scores,
    TensorFile,
    files_of,
    open_bundle,
    read_manifest,
    read_tensor,
    sha256,
    write_manifest,
)
from berxit.runtime.bundle_files import BundleFolder
from berxit.runtime.calibration import Costs, ExitPlacement
from berxit.runtime.errors import BerxitError
from berxit.runtime.golden import read_golden
from berxit.runtime.json_data import to_json

Data = dict[str, Any]


@pytest.fixture
def copy(bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundle, tmp_path / "copy"))


def change(folder: Path, edit: Callable[[Data], object]) -> None:
    """Edits the JSON data of the manifest."""
    data = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    edit(data)
    (folder / "manifest.json").write_text(json.dumps(data), encoding="utf-8")


def test_read_manifest_reads_complete_bundle(bundle: Path) -> None:
    manifest = read_manifest(bundle)
    assert manifest.target == "onnxruntime"
    assert set(manifest.model.labels) == {"cat", "other"}
    assert [segment.layer for segment in manifest.segments] == [0, 1, 2, 3]
    assert manifest.policy.layers == manifest.model.layers == len(manifest.parity.max_diff) == 3
    assert not manifest.model.regression


def test_read_manifest_returns_what_write_manifest_wrote(bundle: Path, copy: Path) -> None:
    manifest = read_manifest(bundle)
    (copy / "manifest.json").unlink()
    write_manifest(manifest, copy)
    assert read_manifest(copy) == manifest


def test_write_manifest_omits_newer_keys_with_default_values(bundle: Path, copy: Path) -> None:
    data = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
    assert "scores" not in data  # an older version rejects unknown keys
    assert not any("repeat" in segment for segment in data["segments"])
    manifest = read_manifest(bundle)
    scores = Scores("dev.tsv", 48, "accuracy", (0.7,), (0.75,))
    segments = manifest.segments[0], replace(manifest.segments[2], layer=3, repeat=3)
    parity = replace(manifest.parity, max_diff=(0.0,))
    write_manifest(replace(manifest, scores=scores, segments=segments, parity=parity), copy)
    read = read_manifest(copy)
    assert (read.scores, [segment.repeat for segment in read.segments]) == (scores, [1, 3])


def test_read_manifest_reads_calibrations_of_earlier_versions(bundle: Path, copy: Path) -> None:
    new = read_manifest(bundle).calibration
    assert new is not None

    def older(data: Data) -> None:
        record = data["calibration"]
        for name in ("constant_score", "positive", "warnings", "expected_score", "expected_interval"):
            record.pop(name, None)
        record["rule"] = record.pop("description")
        record["keep"] = record.pop("requirement")["keep"]
        record["data"] = f"/data/{record['data']}"
        costs = {"layer_ms": 1.0, "exit_ms": 0.5}
        record["placement"] = {"exits": [3], "costs": costs, "milliseconds": 2.0, "all_milliseconds": 3.0}

    change(copy, older)
    read = read_manifest(copy).calibration
    placement = ExitPlacement((3,), Costs(1.0, 0.5), 2.0, 3.0)
    unknown = {"constant_score": None, "positive": None, "expected_score": None, "expected_interval": None}
    requirement = {"keep": new.requirement["keep"], "optimistic": True}
    assert read == replace(new, **unknown, requirement=requirement, warnings=(), placement=placement)


def test_write_manifest_stores_a_placement_only_if_exits_were_placed(bundle: Path, copy: Path) -> None:
    manifest = read_manifest(bundle)
    assert manifest.calibration is not None
    stored = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))["calibration"]
    assert "placement" not in stored
    placed = replace(manifest.calibration, placement=ExitPlacement((3,), Costs(1.0, 0.5), 2.0, 3.0))
    write_manifest(replace(manifest, calibration=placed), copy)
    assert read_manifest(copy).calibration == placed


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda record: record.update(histogram=[1, 2]), r"manifest\.json: calibration: histogram has 2 entries"),
        (lambda record: record.update(examples=1), r"calibration: histogram .* expected 3 for the layers, .* sum 1 of"),
        (lambda record: record.update(score="high"), r"manifest\.json: calibration: score: unexpected value \"high\""),
        (lambda record: record.update(extra=1), r"manifest\.json: calibration: unknown key 'extra'"),
        (lambda record: record.pop("description"), r"manifest\.json: calibration: key 'description' is missing"),
    ],
)
def test_read_manifest_rejects_a_wrong_calibration(copy: Path, edit: Callable[[Data], object], message: str) -> None:
    change(copy, lambda data: edit(data["calibration"]))
    with pytest.raises(BerxitError, match=message):
        read_manifest(copy)


def test_read_manifest_rejects_repeat_below_one(copy: Path) -> None:
    change(copy, lambda data: data["segments"][2].update(repeat=0))
    with pytest.raises(BerxitError, match="segment of layer 2: repeat is 0: it must be at least 1"):
        read_manifest(copy)


def test_write_manifest_writes_threads_only_if_set(bundle: Path, copy: Path) -> None:
    assert "threads" not in json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
    asking = replace(read_manifest(bundle), threads=3)
    write_manifest(asking, copy)
    assert read_manifest(copy) == asking
    change(copy, lambda data: data.update(threads=0))
    with pytest.raises(BerxitError, match=r"manifest\.json: threads is 0: it must be at least 1"):
        read_manifest(copy)


def test_files_of_lists_every_file_of_bundle(bundle: Path) -> None:
    there = {path.relative_to(bundle).as_posix() for path in bundle.rglob("*") if path.is_file()}
    assert set(files_of(read_manifest(bundle))) == there - {"manifest.json"}


def test_read_manifest_rejects_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(BerxitError, match=r"no bundle at .*nowhere: .*berxit-export"):
        read_manifest(tmp_path / "nowhere")


def test_read_manifest_rejects_folder_without_manifest(tmp_path: Path) -> None:
    with pytest.raises(BerxitError, match=r"manifest\.json is missing"):
        read_manifest(tmp_path)


def test_read_manifest_rejects_truncated_manifest(copy: Path) -> None:
    content = (copy / "manifest.json").read_bytes()
    (copy / "manifest.json").write_bytes(content[: len(content) // 2])
    with pytest.raises(BerxitError, match=r"manifest\.json is damaged"):
        read_manifest(copy)


@pytest.mark.parametrize("file", ["segments/layer_02.onnx", "tokenizer.json", "golden.json"])
def test_verify_rejects_missing_file(copy: Path, file: str) -> None:
    (copy / file).unlink()
    with pytest.raises(BerxitError, match=f"file '{file}' is missing"):
        read_manifest(copy)


@pytest.mark.parametrize("file", ["segments/layer_02.onnx", "tokenizer.json", "golden.json"])
def test_verify_rejects_truncated_file(copy: Path, file: str) -> None:
    (copy / file).write_bytes((copy / file).read_bytes()[:-1])
    with pytest.raises(BerxitError, match=f"{file}: checksum differs"):
        read_manifest(copy)


def test_load_without_verify_does_not_hash_files(copy: Path) -> None:
    expected = read_manifest(copy)
    (copy / "golden.json").write_bytes(b"changed")
    assert read_manifest(copy, verify=False) == expected


def test_read_manifest_rejects_newer_schema(copy: Path) -> None:
    change(copy, lambda data: data.update(schema_version=4, invention={}))
    with pytest.raises(BerxitError, match=r"manifest\.json: schema version 4 is newer than 3.*upgrade berxit"):
        read_manifest(copy)


@pytest.mark.parametrize(
    "change_policy",
    [
        {"patience": 2},
        {"off": [1]},
        {"criterion": "agreement"},
        {"criterion": "learned", "weights": [[0.0] * 7] * 2},
        {"thresholds": [[0.7, 1.0], 0.9]},
    ],
)
def test_read_manifest_accepts_newer_policies_in_schema_version_2_only(copy: Path, change_policy: Data) -> None:
    change(copy, lambda data: data.update(schema_version=1, calibration=None))
    assert read_manifest(copy).schema_version == 1
    change(copy, lambda data: data["policy"].update(change_policy))
    with pytest.raises(BerxitError, match=r"schema_version is 1, but it has keys or a policy of version 2"):
        read_manifest(copy)
    change(copy, lambda data: data.update(schema_version=2))
    found = read_manifest(copy)
    assert json.loads(json.dumps(to_json(found.policy))).items() >= change_policy.items()


def test_read_manifest_accepts_macro_f1_in_schema_version_2_only(copy: Path) -> None:
    """Readers of version 1 reject a metric that they do not know."""
    change(copy, lambda data: data.update(schema_version=1, calibration=None))
    change(copy, lambda data: data["model"].update(metric="macro-f1"))
    with pytest.raises(BerxitError, match=r"schema_version is 1, but it has keys or a policy of version 2"):
        read_manifest(copy)
    change(copy, lambda data: data.update(schema_version=2))
    assert read_manifest(copy).model.metric == "macro-f1"


BROKEN: dict[str, tuple[Callable[[Data], object], str]] = {
    "no schema version": (lambda data: data.pop("schema_version"), "no schema_version"),
    "schema version of another kind": (lambda data: data.update(schema_version="1"), "no schema_version"),
    "unknown key": (lambda data: data.update(colour="red"), "unknown key 'colour'"),
    "unknown key further in": (lambda data: data["model"].update(colour="red"), "model: unknown key 'colour'"),
    "missing key": (lambda data: data.pop("parity"), "key 'parity' is missing"),
    "missing key further in": (lambda data: data["segments"][1].pop("sha256"), r"segments\[1\]: key 'sha256'"),
    "wrong kind": (lambda data: data["model"].update(layers="three"), 'model: layers: unexpected value "three"'),
    "a segment too few": (lambda data: data["segments"].pop(), "3 segments"),
    "a segment too many": (lambda data: data["segments"].append(data["segments"][-1]), "5 segments"),
    "policy of another depth": (
        lambda data: data["policy"].update(thresholds=[0.5], temperatures=[1, 1]),
        "policy for 2 layers",
    ),
    "thresholds and temperatures that do not match": (
        lambda data: data["policy"].update(thresholds=[0.5]),
        "1 thresholds and 3 temperatures",
    ),
    "threshold out of range": (lambda data: data["policy"].update(thresholds=[0.5, 7]), "threshold 7.0"),
    "unknown criterion": (lambda data: data["policy"].update(criterion="magic"), "'magic'"),
    "criterion that the model lacks": (
        lambda data: (data["model"].update(lte=False), data["policy"].update(criterion="lte")),
        "'lte'",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_read_manifest_names_problem_of_broken_manifest(copy: Path, name: str) -> None:
    edit, message = BROKEN[name]
    change(copy, edit)
    with pytest.raises(BerxitError, match=rf"manifest\.json.*{message}"):
        read_manifest(copy)


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize(
    "name", ["{outside}", "../tokenizer.json", "segments/../../tokenizer.json", "C:\\x", "\\x", ""]
)
def test_read_manifest_rejects_file_outside_bundle(copy: Path, name: str, verify: bool) -> None:
    outside = copy.parent / "tokenizer.json"
    shutil.copy(copy / "tokenizer.json", outside)
    change(copy, lambda data: data["tokenizer"].update(file=name.format(outside=outside)))
    with pytest.raises(BerxitError, match=r"manifest\.json: file '.*' is outside the bundle"):
        read_manifest(copy, verify=verify)


def linked(bundle: Path, folder: Path) -> Path:
    """Copies the bundle in the layout of a hub cache: every file, including the manifest, is a link to a blob."""
    blobs, links = folder / "blobs", folder / "snapshot"
    blobs.mkdir()
    for file in (file for file in bundle.rglob("*") if file.is_file()):
        blob, link = blobs / sha256(file), links / file.relative_to(bundle)
        shutil.copy(file, blob)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    return links


@pytest.mark.parametrize("verify", [True, False])
def test_load_accepts_bundle_of_links(bundle: Path, tmp_path: Path, verify: bool) -> None:
    folder = linked(bundle, tmp_path)
    assert read_manifest(folder, verify=verify) == read_manifest(bundle)
    assert read_golden(folder, read_manifest(folder)) == read_golden(bundle, read_manifest(bundle))


@pytest.mark.parametrize("verify", [True, False])
def test_load_rejects_link_to_other_content_without_verify(bundle: Path, tmp_path: Path, verify: bool) -> None:
    folder = linked(bundle, tmp_path)
    (tmp_path / "secret").write_text("secret", encoding="utf-8")
    (folder / "segments" / "layer_02.onnx").unlink()
    (folder / "segments" / "layer_02.onnx").symlink_to(tmp_path / "secret")
    with pytest.raises(BerxitError, match=r"layer_02\.onnx: checksum differs"):
        read_manifest(folder, verify=verify)


def test_linked_folder_is_checked_without_verify(copy: Path) -> None:
    (copy / "segments").rename(copy.parent / "elsewhere")
    (copy / "segments").symlink_to("../elsewhere")
    read_manifest(copy, verify=False)
    (copy.parent / "elsewhere" / "layer_01.onnx").write_bytes(b"changed")
    with pytest.raises(BerxitError, match=r"layer_01\.onnx: checksum differs"):
        read_manifest(copy, verify=False)


@pytest.mark.parametrize("kind", ["broken", "pipe", "folder"])
def test_load_rejects_dangling_link(copy: Path, kind: str) -> None:
    link, target = copy / "golden.json", copy.parent / "target"
    link.unlink()
    link.symlink_to(target)
    if kind == "pipe":
        os.mkfifo(target)
    elif kind == "folder":
        target.mkdir()
    with pytest.raises(BerxitError, match=r"golden\.json"):
        read_manifest(copy)


def stored(file: Path, shape: tuple[int, ...]) -> TensorFile:
    return TensorFile(file.name, sha256(file), "float32", shape)


def test_read_tensor_is_little_endian_and_row_major(tmp_path: Path) -> None:
    (tmp_path / "weight.bin").write_bytes(np.arange(6, dtype="<f4").tobytes())
    tensor = read_tensor(tmp_path, stored(tmp_path / "weight.bin", (2, 3)))
    assert tensor.tolist() == [[0, 1, 2], [3, 4, 5]]


def test_large_tensor_is_memory_mapped_and_read_only(tmp_path: Path) -> None:
    values = np.arange(MAPPED // 4, dtype="<f4")
    values.tofile(tmp_path / "large.bin")
    tensor = read_tensor(tmp_path, stored(tmp_path / "large.bin", (4, MAPPED // 16)))
    memory: Any = tensor
    while isinstance(memory, np.ndarray):
        memory = memory.base
    assert isinstance(memory.obj, mmap.mmap)
    assert not tensor.flags.writeable
    np.testing.assert_array_equal(tensor.ravel(), values)


@pytest.mark.parametrize("values", [5, 7])
def test_read_tensor_rejects_wrong_size(tmp_path: Path, values: int) -> None:
    (tmp_path / "weight.bin").write_bytes(np.zeros(values, dtype="<f4").tobytes())
    with pytest.raises(BerxitError, match=rf"weight\.bin: {values} values, expected 6"):
        read_tensor(tmp_path, stored(tmp_path / "weight.bin", (2, 3)))


def test_sha256_of_file_longer_than_block(tmp_path: Path) -> None:
    content = bytes(range(256)) * 5000
    (tmp_path / "file").write_bytes(content)
    assert sha256(tmp_path / "file") == hashlib.sha256(content).hexdigest()


def test_sha256_of_folder_covers_names_and_content(tmp_path: Path) -> None:
    (tmp_path / "a" / "inner").mkdir(parents=True)
    (tmp_path / "a" / "inner" / "weights").write_bytes(b"12")
    (tmp_path / "a" / "model").write_bytes(b"3")
    lines = f"inner/weights {hashlib.sha256(b'12').hexdigest()}\nmodel {hashlib.sha256(b'3').hexdigest()}\n"
    assert sha256(tmp_path / "a") == hashlib.sha256(lines.encode()).hexdigest()
    before = sha256(tmp_path / "a")
    (tmp_path / "a" / "model").rename(tmp_path / "a" / "other")
    assert sha256(tmp_path / "a") != before


def test_read_manifest_rejects_wrong_positive_class(copy: Path) -> None:
    change(copy, lambda data: data["model"].update(metric="f1", positive="other"))
    assert read_manifest(copy).model.positive == "other"  # the labels are cat and other
    for metric, positive in (("f1", "cat"), ("f1", "dog"), ("accuracy", "other")):
        change(copy, lambda data, keys={"metric": metric, "positive": positive}: data["model"].update(keys))
        with pytest.raises(
            BerxitError, match=r"manifest.json: model.positive is '\w+': it must be the second of two labels"
        ):
            read_manifest(copy)


def test_read_manifest_accepts_f1_bundle_without_positive_class(copy: Path) -> None:
    change(copy, lambda data: data["model"].update(metric="f1"))
    assert read_manifest(copy).model.positive is None


def test_open_bundle_retries_if_the_bundle_is_replaced_while_its_files_are_listed(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a slow machine, the first attempt can take longer than the wait for a missing bundle."""
    failures = [BerxitError("file 'segments/layer_01.onnx' is missing")]
    real = bundle_module.BundleFolder

    def fails_once(folder: Path, *, verify: bool) -> BundleFolder:
        if failures:
            raise failures.pop()
        return real(folder, verify=verify)

    monkeypatch.setattr(bundle_module, "MISSING_S", 0.0)
    monkeypatch.setattr(bundle_module, "_state", lambda folder: None)
    monkeypatch.setattr(bundle_module, "BundleFolder", fails_once)
    _, manifest = open_bundle(bundle)
    assert manifest.model.layers == 3
    assert failures == []
