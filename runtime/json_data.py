"""JSON files that are parsed strictly into dataclasses: every deviation is an error, so that no value is guessed."""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from pathlib import Path
from typing import Any, TypeVar

from berxit.runtime.errors import BerxitError, first_line
from berxit.runtime.storage import write_text

T = TypeVar("T")

NOT_STORED = {"stored": False}
"""Metadata of a dataclass field that JSON files do not contain."""
OMIT_DEFAULT = {"omit_default": True}
"""Metadata of a dataclass field that a JSON file contains only if its value is not the default. Readers older than the
field reject its key, so files that do not need the field must not have it."""


def since(version: int) -> dict[str, Any]:
    """Metadata of a dataclass field that readers know from this schema version on. A JSON file contains it only if its
    value is not the default."""
    return {**OMIT_DEFAULT, "since": version}


def required_version(value: Any) -> int:
    """The smallest schema version whose readers know every key that ``to_json`` writes for a dataclass."""
    if isinstance(value, dict | list | tuple):
        return max(map(required_version, value.values() if isinstance(value, dict) else value), default=1)
    if not dataclasses.is_dataclass(value):
        return 1
    stored = [field for field in dataclasses.fields(value) if _is_stored(field, value)]
    versions = [field.metadata.get("since", 1) for field in stored]
    return max([*versions, *(required_version(getattr(value, field.name)) for field in stored)])


def write_json(data: Any, path: Path) -> None:
    """Writes a JSON file atomically: after an interruption, the file has its previous content."""
    write_text(path, json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Object of a JSON file. Raises BerxitError if the file cannot be read or contains no JSON object."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise BerxitError(f"{path} is missing: {path.parent} is incomplete, or is the wrong folder") from None
    except OSError as error:
        raise BerxitError(f"{path} cannot be read ({error.strerror}). Fix this problem, or recreate the file") from None
    return decode_json(content, path)


def decode_json(content: bytes, path: Path) -> dict[str, Any]:
    """Object of JSON ``content``; ``path`` is for messages. Raises BerxitError unless it is a JSON object."""
    try:
        data = json.loads(content.decode("utf-8"))
    except ValueError as error:  # also a number of thousands of digits
        raise BerxitError(f"{path} is damaged ({first_line(error)}). Copy it again, or recreate it") from None
    except RecursionError:
        raise BerxitError(f"{path} is damaged (nested too deeply). Copy it again, or recreate it") from None
    if not isinstance(data, dict):
        raise BerxitError(f"{path} is damaged (not a JSON object). Recreate the file")
    return data


def to_json(value: Any) -> Any:
    """Converts dataclasses, also nested ones, to JSON data, from which ``parse`` restores them."""
    if isinstance(value, dict):
        return {key: to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    if not dataclasses.is_dataclass(value):
        return value
    found = {field.name: getattr(value, field.name) for field in dataclasses.fields(value) if _is_stored(field, value)}
    return {name: to_json(item) for name, item in found.items()}


def _is_stored(field: dataclasses.Field[Any], instance: Any) -> bool:
    if not field.metadata.get("stored", True):
        return False
    return not field.metadata.get("omit_default") or getattr(instance, field.name) != field.default


def parse(kind: type[T], data: Any, where: str) -> Any:
    """Converts JSON data to ``kind``, a dataclass or the type of a field.

    Raises BerxitError, which starts with ``where``, for an unknown key, a missing key or a value of another type.
    """
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        if not isinstance(data, dict):
            raise BerxitError(f"{where}: expected an object, found {type(data).__name__}. Recreate the file")
        read = {f.name for f in dataclasses.fields(kind) if f.metadata.get("stored", True)}
        hints = {name: hint for name, hint in typing.get_type_hints(kind).items() if name in read}
        needed = {f.name for f in dataclasses.fields(kind) if f.default_factory is f.default is dataclasses.MISSING}
        if unknown := sorted(set(data) - set(hints)):
            raise BerxitError(f"{where}: unknown key '{unknown[0]}'. Upgrade berxit here, or recreate the file")
        if missing := sorted(needed - set(data)):
            raise BerxitError(f"{where}: key '{missing[0]}' is missing. Recreate the file")
        return kind(**{key: parse(hints[key], value, f"{where}: {key}") for key, value in data.items()})
    if origin in (typing.Union, types.UnionType):
        options = [option for option in arguments if option is not types.NoneType or data is None]
        if len(options) == 1:  # Its error names the key.
            return parse(options[0], data, where)
        for option in options:
            try:
                return parse(option, data, where)
            except BerxitError:
                continue
    elif origin is tuple and isinstance(data, list):
        return tuple(parse(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(data))
    elif origin is dict and isinstance(data, dict):
        return {key: parse(arguments[1], value, f"{where}: {key}") for key, value in data.items()}
    elif kind is float and isinstance(data, int | float) and not isinstance(data, bool):
        return float(data)
    elif kind is Any or (origin is None and isinstance(data, kind) and not (kind is int and isinstance(data, bool))):
        return data
    raise BerxitError(f"{where}: unexpected value {json.dumps(data)[:60]}. Recreate the file")
