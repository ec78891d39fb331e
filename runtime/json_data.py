"""JSON files with a strict shape: a reader that guesses would run the wrong thing quietly."""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from pathlib import Path
from typing import Any, TypeVar

from berxit.runtime.errors import BerxitError
from berxit.runtime.storage import write_text

T = TypeVar("T")


def write_json(data: Any, path: Path) -> None:
    """Replaces a JSON file as a whole: an interruption leaves what was there before."""
    write_text(path, json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises BerxitError where it cannot be read or is none."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise BerxitError(f"{path} is missing: {path.parent} is not whole, or not what it should be") from None
    except OSError as error:
        raise BerxitError(f"{path} cannot be read ({error.strerror}). Mend that, or make it again") from None
    return decode_json(content, path)


def decode_json(content: bytes, path: Path) -> dict[str, Any]:
    """The object in the content of the JSON file ``path``. Raises BerxitError where it is none."""
    try:
        data = json.loads(content.decode("utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise BerxitError(f"{path} is damaged ({error}). Copy or make it again") from None
    if not isinstance(data, dict):
        raise BerxitError(f"{path} is damaged (not a JSON object). Make the file again")
    return data


def parse(kind: type[T], data: Any, where: str) -> Any:
    """Plain JSON data as the dataclass ``kind``, strictly: each key known, each needed one there, each of its type."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        if not isinstance(data, dict):
            raise BerxitError(f"{where}: expected an object, found {type(data).__name__}. Make the file again")
        read = {f.name for f in dataclasses.fields(kind) if f.metadata.get("stored", True)}
        hints = {name: hint for name, hint in typing.get_type_hints(kind).items() if name in read}
        needed = {f.name for f in dataclasses.fields(kind) if f.default_factory is f.default is dataclasses.MISSING}
        if unknown := sorted(set(data) - set(hints)):
            raise BerxitError(f"{where}: unknown key '{unknown[0]}'. Upgrade berxit here, or make the file again")
        if missing := sorted(needed - set(data)):
            raise BerxitError(f"{where}: key '{missing[0]}' is missing. Make the file again")
        return kind(**{key: parse(hints[key], value, f"{where}: {key}") for key, value in data.items()})
    if origin in (typing.Union, types.UnionType):
        for option in arguments:
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
    raise BerxitError(f"{where}: found {json.dumps(data)[:60]}, which does not belong there. Make the file again")
