from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from berxit.runtime.errors import BerxitError
from berxit.runtime.json_data import NOT_STORED, OMIT_DEFAULT, parse, read_json, to_json, write_json


@dataclass(frozen=True)
class Wheel:
    size: float
    tags: tuple[str | int, ...] = ()


@dataclass(frozen=True)
class Cart:
    name: str
    places: int
    wheels: tuple[Wheel, ...]
    spare: Wheel | None
    notes: dict[str, Any] | None = None
    prices: dict[str, float] = field(default_factory=dict)


CART = Cart("blue", 2, (Wheel(1.5, ("old", 3)), Wheel(2.0)), None, {"seen": [1, None]}, {"new": 3.0})


def plain(**changes: Any) -> dict[str, Any]:
    return {"name": "blue", "places": 2, "wheels": [], "spare": None, **changes}


def test_read_json_returns_what_write_json_wrote(tmp_path: Path) -> None:
    write_json(dataclasses.asdict(CART), tmp_path / "cart.json")
    assert parse(Cart, read_json(tmp_path / "cart.json"), "cart") == CART


def test_write_json_keeps_non_ascii_text(tmp_path: Path) -> None:
    write_json({"label": "žluť 猫"}, tmp_path / "label.json")
    assert read_json(tmp_path / "label.json") == {"label": "žluť 猫"}


def test_parse_converts_int_to_float() -> None:
    size = parse(Wheel, {"size": 2}, "wheel").size
    assert (size, type(size)) == (2.0, float)


def test_parse_uses_defaults_for_missing_keys() -> None:
    assert parse(Cart, plain(), "cart") == Cart("blue", 2, (), None)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (plain(colour="red"), "cart: unknown key 'colour'"),
        ({"name": "blue", "wheels": [], "spare": None}, "cart: key 'places' is missing"),
        (plain(wheels=[{"size": 1.0}, {"size": 1.0, "colour": "red"}]), r"cart: wheels\[1\]: unknown key 'colour'"),
        (plain(wheels=[{}]), r"cart: wheels\[0\]: key 'size' is missing"),
        (plain(wheels="four"), 'cart: wheels: unexpected value "four"'),
        (plain(wheels=[7]), r"cart: wheels\[0\]: expected an object, found int"),
        (plain(wheels=[{"size": "big"}]), r'cart: wheels\[0\]: size: unexpected value "big"'),
        (plain(wheels=[{"size": True}]), r"cart: wheels\[0\]: size: unexpected value true"),
        (plain(wheels=[{"size": 1, "tags": [None]}]), r"cart: wheels\[0\]: tags\[0\]: unexpected value null"),
        (plain(places=2.5), "cart: places: unexpected value 2.5"),
        (plain(places=True), "cart: places: unexpected value true"),
        (plain(name=None), "cart: name: unexpected value null"),
        (plain(spare="none"), "cart: spare: expected an object, found str"),
        (plain(notes=[]), r"cart: notes: unexpected value \[\]"),
        (plain(prices={"new": "3"}), 'cart: prices: new: unexpected value "3"'),
        ([], "cart: expected an object, found list"),
    ],
)
def test_parse_rejects_unexpected_data_with_its_path(data: Any, message: str) -> None:
    with pytest.raises(BerxitError, match=message):
        parse(Cart, data, "cart")


def test_read_json_rejects_missing_file(tmp_path: Path) -> None:
    with pytest.raises(BerxitError, match=r"nothing\.json is missing"):
        read_json(tmp_path / "nothing.json")


@pytest.mark.parametrize("content", [b"", b'{"a": 1', b'{"a": "\xff"}', b"[1]", b"\x00\x01"])
def test_read_json_rejects_damaged_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bad.json").write_bytes(content)
    with pytest.raises(BerxitError, match=r"bad\.json is damaged"):
        read_json(tmp_path / "bad.json")


def test_read_json_rejects_folder(tmp_path: Path) -> None:
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(BerxitError, match=r"folder\.json"):
        read_json(tmp_path / "folder.json")


def test_write_json_rejects_nan_and_infinity(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json({"score": math.nan}, tmp_path / "score.json")
    assert not (tmp_path / "score.json").exists()


@dataclass(frozen=True)
class Older:
    size: int
    color: str = field(default="red", metadata=OMIT_DEFAULT)
    digest: str = field(default="", metadata=NOT_STORED)


def test_to_json_omits_defaults_and_fields_that_are_not_stored() -> None:
    assert to_json([Older(1), {"b": Older(2, "blue", "abc")}]) == [{"size": 1}, {"b": {"size": 2, "color": "blue"}}]
    assert parse(Cart, to_json(CART), "cart") == CART
