"""fastjson's text: what is no JSON is read, what is written has its habits, and hostile text is refused."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_rmq.errors import ProtocolError
from trio_rmq.wire import fastjson
from trio_rmq.wire.fastjson import BodyReader, encode_fastjson, to_strict_json

trees = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(st.characters(codec="utf-8")),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(st.characters(codec="utf-8")), inner, max_size=4)
    ),
    max_leaves=20,
)
int_maps = st.dictionaries(st.integers(), st.dictionaries(st.integers(-9, 9), st.text('a",:{}[]\\é1 '), max_size=3))


@given(trees, st.sampled_from([None, 1]))
def test_json_stays_as_it_is(tree: Any, indent: int | None) -> None:
    text = json.dumps(tree, ensure_ascii=False, indent=indent)
    assert json.loads(to_strict_json(text.encode())) == tree


@given(int_maps, st.booleans())
def test_bare_number_keys_are_read(table: dict[int, dict[int, str]], pretty: bool) -> None:
    reader = BodyReader(dict[int, dict[int, str]])
    bare = encode_fastjson(table, pretty=pretty)
    assert reader.decode(bare) == table
    assert reader.decode(encode_fastjson(table, standard=True)) == table
    if table:
        assert not bare.startswith(b'{"')


def test_object_keys_become_strings_of_json() -> None:
    text = b'{"offsetTable" : {{"brokerName":"a\\"b","queueId":0}:5,{"queueId":1}:{"x":{2:[3]}}}}'
    assert json.loads(to_strict_json(text)) == {
        "offsetTable": {'{"brokerName":"a\\"b","queueId":0}': 5, '{"queueId":1}': {"x": {"2": [3]}}}
    }


@pytest.mark.parametrize(
    "text",
    [
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"{" * 100_000,
        b"{{{1:2}:3}:4}",
        b'"open',
        b"}",
        b"{]",
        b"{'a':1}",
        b"{a:1}",
        b"\xff",
        b"",
        b"{} {}",
        b"nul",
        b'{1:"\\ud800"}',
        b"[1,]",
        b"9" * 5000,
    ],
)
def test_hostile_text_is_refused(text: bytes) -> None:
    class Wide(msgspec.Struct):
        known: int = 0

    for kind in (Wide, dict[int, int], dict[str, Any], list[int]):
        with pytest.raises(ProtocolError):
            BodyReader(kind).decode(text)


@pytest.mark.parametrize("text", [b'{"1":"\xff"}', b"{" + b"9" * 5000 + b":1}", b'{"1":1e999}'])
def test_values_that_python_cannot_hold_are_refused(text: bytes) -> None:
    for kind in (dict[int, int], dict[int, str]):
        with pytest.raises(ProtocolError):
            BodyReader(kind).decode(text)


def test_a_body_over_its_limit_is_refused() -> None:
    with pytest.raises(ProtocolError, match="over the limit"):
        BodyReader(dict[int, int]).decode(b"{1:2} ", size_max_bytes=5)


def test_nulls_count_as_missing_and_scalars_are_converted() -> None:
    class Body(msgspec.Struct):
        count: int = 7
        name: str = "default"
        items: list[int] = []
        on: bool = False

    reader = BodyReader(Body)
    assert reader.decode(b'{"count":null,"name":null,"items":[null,1],"on":null}') == Body(items=[1])
    assert reader.decode(b'{"count":"12","on":"true"}') == Body(count=12, on=True)
    with pytest.raises(ProtocolError, match="Body"):
        reader.decode(b'{"count":"twelve"}')


@given(st.binary(max_size=60) | st.text('{}[]",:1a\\n ', max_size=60).map(str.encode))
def test_arbitrary_bytes_raise_only_protocol_errors(data: bytes) -> None:
    for kind in (dict[int, int], dict[str, Any], Any):
        try:
            BodyReader(kind).decode(data)
        except ProtocolError:
            continue


def test_what_is_written() -> None:
    class Key(msgspec.Struct, frozen=True):
        a: int

    class Bean(msgspec.Struct, omit_defaults=True, kw_only=True):
        name: str = fastjson.shown("")
        new: int | None = None
        table: dict[Any, Any] = fastjson.shown_dict()
        things: list[Any] = fastjson.shown_list()

    bean = Bean(name="é", table={2: "x", Key(1): None, "b": 1.5, 1: True})
    assert encode_fastjson(bean) == '{"name":"é","table":{2:"x","b":1.5,1:true},"things":[]}'.encode()
    assert encode_fastjson(bean, standard=True) == (
        b'{"name":"\\u00e9","table":{"1":true,"2":"x","b":1.5},"things":[]}'
    )
    assert encode_fastjson({Key(1): [Key(2)]}) == b'{{"a":1}:[{"a":2}]}'
    assert encode_fastjson(Bean()) == fastjson.encode_json(Bean()) == b'{"name":"","table":{},"things":[]}'
    assert encode_fastjson(Bean(things=[1, {"a": {3: 4}}]), pretty=True).decode() == (
        '{\n\t"name":"",\n\t"table":{},\n\t"things":[\n\t\t1,\n\t\t{\n\t\t\t"a":{3:4\n\t\t\t}\n\t\t}\n\t]\n}'
    )
