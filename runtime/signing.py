"""Signatures of bundles (ed25519). A signature covers manifest.json, whose checksums cover all other files.

A checksum detects damage. Only a signature, checked with a public key from elsewhere, shows who wrote a bundle. The
package cryptography, of the extra ``sign``, is imported on first use.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from berxit.devices import install_command
from berxit.runtime.errors import BerxitError, InputError, first_line

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

SIGNATURE = "manifest.sig"
"""File of a bundle with the signature of manifest.json: 64 bytes."""
SIGNATURE_BYTES = 64


def private_key(path: Path) -> Ed25519PrivateKey:
    """The private key in a PEM file, as ``openssl genpkey -algorithm ed25519`` writes it.

    Raises InputError for another file, BerxitError if cryptography is not installed.
    """
    keys, serialization = _cryptography()
    key = _loaded(path, lambda content: serialization.load_pem_private_key(content, password=None))
    if not isinstance(key, keys.Ed25519PrivateKey):
        raise InputError(f"{path} is not a private ed25519 key: write one with openssl genpkey -algorithm ed25519")
    return key


def public_key(path: Path) -> Ed25519PublicKey:
    """The public key in a PEM file, as ``openssl pkey -pubout`` writes it. Raises as ``private_key`` does."""
    keys, serialization = _cryptography()
    key = _loaded(path, serialization.load_pem_public_key)
    if not isinstance(key, keys.Ed25519PublicKey):
        raise InputError(f"{path} is not a public ed25519 key: write one with openssl pkey -pubout")
    return key


def check_signature(manifest: bytes, signature: bytes, key: Ed25519PublicKey, where: str) -> None:
    """Raises BerxitError, which starts with ``where``, unless ``signature`` is that of ``manifest`` by ``key``."""
    from cryptography.exceptions import InvalidSignature

    try:
        key.verify(signature, manifest)
    except InvalidSignature:
        raise BerxitError(
            f"{where}: the signature is not by the given key, or manifest.json was changed. Do not use this bundle"
        ) from None


def _cryptography() -> tuple[Any, Any]:
    """The modules with the keys and with their serialization."""
    try:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ModuleNotFoundError:
        raise BerxitError(f"cryptography is not installed, which signatures need: {install_command('sign')}") from None
    return ed25519, serialization


def _loaded(path: Path, load: Any) -> Any:
    try:
        return load(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): give a key as a PEM file") from None
    except (ValueError, TypeError) as error:
        raise InputError(f"{path} is not a key as a PEM file without a password ({first_line(error)})") from None
