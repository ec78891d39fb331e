from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from berxit.runtime.backend_options import BackendOption, backend_label, option_flags, parse_option_flags
from berxit.runtime.backends import BACKENDS, open_backend, options_help
from berxit.runtime.bundle import read_manifest
from berxit.runtime.errors import InputError
from berxit.runtime.runner import EarlyExitRunner

ROOT = Path(__file__).parents[2]
INFOS = [info for infos in BACKENDS.values() for info in infos]


def test_parse_option_flags_reads_flags_and_values() -> None:
    assert parse_option_flags([]) == {}
    assert parse_option_flags(["shared-pool", "units=ne"]) == {"shared_pool": True, "units": "ne"}
    with pytest.raises(InputError, match="--backend-option units occurs twice"):
        parse_option_flags(["units=ne", "units=cpu"])


@pytest.mark.parametrize("option", [option for info in INFOS for option in info.options], ids=lambda o: o.name)
def test_option_flags_is_the_inverse_of_parse_option_flags(option: BackendOption) -> None:
    for setting in option.settings:
        assert parse_option_flags(option_flags(setting)) == setting


def test_backend_label_contains_the_options() -> None:
    assert backend_label("openvino", {}) == "openvino"
    assert backend_label("tensorrt", {"run_ahead": True, "units": "ne"}) == "tensorrt (run-ahead, units=ne)"


@pytest.mark.parametrize(
    ("backend", "options", "message"),
    [
        ("onnxruntime", {"fast": True}, r"backend 'onnxruntime' has no option 'fast': it has shared-pool$"),
        ("onnxruntime", {"bf16": True}, r"no option 'bf16': it has shared-pool\. --backend openvino has it"),
        ("onnxruntime", {"shared_pool": "yes"}, r"backend option shared-pool is 'yes': it is a flag, without a value"),
        ("onnxruntime", ["shared_pool"], r"backend_options is \['shared_pool'\]: give a dict"),
        ("openvino", {"bf16": 1}, r"backend option bf16 is 1: it is a flag"),
    ],
)
def test_load_rejects_wrong_backend_options(bundle: Path, backend: str, options: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        EarlyExitRunner.load(bundle, backend=backend, backend_options=options)


def test_choice_rejects_other_values() -> None:
    coreml = BACKENDS["coreml"][0]
    assert coreml.with_options({"units": "ne"}).label == "coreml (units=ne)"
    for value in ("npu", True):
        with pytest.raises(InputError, match=f"backend option units is {value!r}: choose ne or gpu or cpu"):
            coreml.with_options({"units": value})


def test_open_backend_omits_a_flag_that_is_false(bundle: Path) -> None:
    backend = open_backend(bundle, read_manifest(bundle), 1, backend_options={"shared_pool": False})
    assert (backend.name, dict(backend.options), backend.label) == ("onnxruntime", {}, "onnxruntime")


def test_docs_list_the_backends_and_options_of_the_registry() -> None:
    page = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    section = page.partition("\n### Backends\n")[2].partition("\n### ")[0]
    for info in INFOS:
        assert f"`{info.name}`" in section
        for option in info.options:
            assert f"`{option.syntax}`".replace("|", "\\|") in section
            assert option.syntax in options_help()


def test_help_marks_experimental_options() -> None:
    assert "tensorrt: cuda-graphs (experimental), run-ahead (experimental), zero-copy (experimental)" in options_help()
    assert "bf16 (experimental)" not in options_help()
