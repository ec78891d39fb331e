"""Signatures: an app that gives a public key loads only bundles that its owner signed."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path

import pytest

from berxit.runtime.errors import BerxitError, InputError
from berxit.runtime.runner import EarlyExitRunner
from berxit.runtime.signing import SIGNATURE

pytest.importorskip("cryptography", reason="cryptography is not installed here: pip install -e '.[sign]'")

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519, x25519


def write_keys(folder: Path) -> tuple[Path, Path]:
    """A new pair of keys: the files of the private and of the public key."""
    key = ed25519.Ed25519PrivateKey.generate()
    private, public = folder / "private.pem", folder / "public.pem"
    pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    private.write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain))
    public.write_bytes(key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo))
    return private, public


@pytest.fixture(scope="module")
def signed(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path) -> tuple[Path, Path]:
    """A signed bundle, and the file of the public key."""
    from berxit.exporters.export import export

    folder = tmp_path_factory.mktemp("signed")
    private, public = write_keys(folder)
    export(checkpoint, "onnxruntime", folder / "bundle", sign=private)
    return folder / "bundle", public


def test_load_accepts_signed_bundle(signed: tuple[Path, Path]) -> None:
    bundle, public = signed
    runner = EarlyExitRunner.load(bundle, public_key=public)
    assert runner.predict("a dog") is not None
    again = pickle.loads(pickle.dumps(runner))
    assert again._arguments["public_key"] == public


def test_load_refuses_bundle_without_expected_signature(
    signed: tuple[Path, Path], bundle: Path, tmp_path: Path
) -> None:
    signed_bundle, public = signed
    _, other = write_keys(tmp_path)
    with pytest.raises(BerxitError, match="is not signed"):
        EarlyExitRunner.load(bundle, public_key=public)
    with pytest.raises(BerxitError, match="the signature is not by the given key"):
        EarlyExitRunner.load(signed_bundle, public_key=other)
    changed = Path(shutil.copytree(signed_bundle, tmp_path / "changed"))
    manifest = changed / "manifest.json"
    manifest.write_text(manifest.read_text(encoding="utf-8").replace('"task": "', '"task": "x', 1), encoding="utf-8")
    EarlyExitRunner.load(changed)
    with pytest.raises(BerxitError, match=r"manifest\.json was changed"):
        EarlyExitRunner.load(changed, public_key=public)
    (changed / SIGNATURE).write_bytes(b"short")
    with pytest.raises(BerxitError, match=r"manifest\.json was changed"):
        EarlyExitRunner.load(changed, public_key=public)


def test_load_refuses_changed_file_of_signed_bundle(signed: tuple[Path, Path], tmp_path: Path) -> None:
    bundle, public = signed
    changed = Path(shutil.copytree(bundle, tmp_path / "changed"))
    with (changed / "tokenizer.json").open("a", encoding="utf-8") as file:
        file.write(" ")
    with pytest.raises(BerxitError, match=r"tokenizer\.json: checksum differs"):
        EarlyExitRunner.load(changed, public_key=public)
    with pytest.raises(InputError, match="without verify=False"):
        EarlyExitRunner.load(changed, public_key=public, verify=False)


def test_wrong_key_files_are_named(signed: tuple[Path, Path], checkpoint: Path, tmp_path: Path) -> None:
    from berxit.exporters.export import export

    bundle, public = signed
    with pytest.raises(InputError, match=r"missing\.pem cannot be read"):
        EarlyExitRunner.load(bundle, public_key=tmp_path / "missing.pem")
    (tmp_path / "text.pem").write_text("no key", encoding="utf-8")
    with pytest.raises(InputError, match=r"text\.pem is not a key"):
        EarlyExitRunner.load(bundle, public_key=tmp_path / "text.pem")
    x25519_key = x25519.X25519PrivateKey.generate().public_key()
    pem = x25519_key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    (tmp_path / "x25519.pem").write_bytes(pem)
    with pytest.raises(InputError, match=r"x25519\.pem is not a public ed25519 key"):
        EarlyExitRunner.load(bundle, public_key=tmp_path / "x25519.pem")
    with pytest.raises(InputError, match=r"public\.pem is not a key"):
        export(checkpoint, "onnxruntime", tmp_path / "bundle", sign=public)
    assert not (tmp_path / "bundle").exists()
