"""Models of pydantic and Structs of msgspec, where those are installed."""

from __future__ import annotations

import datetime as dt
from typing import Any
from uuid import UUID

import attrs
import pytest

from trio_rpc import DecodeError, EncodeError
from trio_rpc.codecs import adapter_for

FIELDS: dict[str, Any] = {"n": 5, "id": UUID(int=7), "at": dt.datetime(2024, 1, 1, tzinfo=dt.UTC), "tags": ["a"]}
TYPES: dict[str, Any] = {"n": int, "id": UUID, "at": dt.datetime, "tags": list[str]}


@pytest.fixture(params=["pydantic", "msgspec"])
def model(request: pytest.FixtureRequest) -> Any:
    """A class of the library; the test is skipped where the library is not installed."""
    library = pytest.importorskip(request.param)
    if request.param == "pydantic":
        return library.create_model("Model", **{name: (type_, ...) for name, type_ in TYPES.items()})
    return library.defstruct("Model", list(TYPES.items()))


def test_models_come_back(codec: str, model: Any) -> None:
    """Alone, in containers, in unions, and as a field of an attrs class."""
    holder = attrs.make_class("Holder", {"model": attrs.field(type=model), "more": attrs.field(type=list[model])})
    value = model(**FIELDS)
    for type_, sent in [
        (model, value),
        (model | None, value),
        (dict[str, model], {"a": value}),
        (model | holder, value),
        (holder, holder(value, [value])),
    ]:
        carrier = adapter_for(codec).carrier(type_)
        assert carrier.decode(carrier.encode(sent)[0], ()) == sent


def test_models_are_strict(codec: str, model: Any) -> None:
    """A misfit is refused both ways, with its path."""
    adapter = adapter_for(codec)
    carrier = adapter.carrier(list[model])
    plain = adapter.carrier(Any).decode(carrier.encode([model(**FIELDS)])[0], ())
    for wrong, path in (({"n": "7"}, r"\.n"), ({"tags": [1]}, r"\.tags\[0\]")):
        payload, _ = adapter.carrier(Any).encode([plain[0] | wrong])
        with pytest.raises(DecodeError, match=rf"^\$\[0\]{path}: "):
            carrier.decode(payload, ())
    changed = model(**FIELDS)
    changed.n = "7"
    for bad in (changed, FIELDS, None):
        with pytest.raises(EncodeError, match=r"^\$\[0\]"):
            carrier.encode([bad])


def test_a_model_full_of_errors_is_told_in_one_sentence(codec: str, model: Any) -> None:
    """W13: a description of each would take seconds; one that is too large for that is refused before it is looked at."""
    adapter = adapter_for(codec)
    plain = adapter.carrier(Any).decode(adapter.carrier(model).encode(model(**FIELDS))[0], ())
    many = "1000 of its values do not fit" if hasattr(model, "model_fields") else r"\.tags\[0\]: "
    for count, text in ((1000, many), (120_000, r"max_values|\.tags\[0\]: ")):
        payload, _ = adapter.carrier(Any).encode(plain | {"tags": [1] * count})
        with pytest.raises(DecodeError, match=text):
            adapter.carrier(model).decode(payload, ())
