"""The binary form of membership changes (docs/formats/conf_change.md)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nokv.errors import Corruption
from nokv.raft import (
    ConfChange,
    ConfChangeKind,
    ConfChangeTransition,
    ConfChangeV2,
    EntryKind,
    SingleChange,
    decode_conf_change,
    encode_conf_change,
)

IDS = st.integers(0, (1 << 64) - 1)
SINGLES = st.builds(SingleChange, st.sampled_from(ConfChangeKind), IDS)
CHANGES = st.one_of(
    st.builds(ConfChange, st.sampled_from(ConfChangeKind), IDS, st.binary(max_size=40)),
    st.builds(
        ConfChangeV2,
        st.lists(SINGLES, max_size=8).map(tuple),
        st.sampled_from(ConfChangeTransition),
        st.binary(max_size=40),
    ),
)


@given(CHANGES)
def test_round_trip(change: ConfChange | ConfChangeV2) -> None:
    assert decode_conf_change(change.entry_kind, encode_conf_change(change)) == change


def test_golden() -> None:
    change = ConfChangeV2(
        (SingleChange(ConfChangeKind.ADD_VOTER, 300), SingleChange(ConfChangeKind.REMOVE, 2)),
        ConfChangeTransition.JOINT_EXPLICIT,
        b"ctx",
    )
    assert encode_conf_change(change).hex() == GOLDEN
    assert encode_conf_change(ConfChangeV2()) == b""


GOLDEN = "01020200ac02010203637478b81fa12a"


@given(st.binary(max_size=64), st.sampled_from(EntryKind))
def test_any_bytes_decode_or_are_refused(data: bytes, kind: EntryKind) -> None:
    try:
        change = decode_conf_change(kind, data)
    except Corruption as error:
        assert "conf change" in str(error)
    else:
        assert change.entry_kind is kind


@given(CHANGES, st.data())
def test_damage_is_noticed(change: ConfChange | ConfChangeV2, data: st.DataObject) -> None:
    encoded = encode_conf_change(change)
    if not encoded:
        return
    at = data.draw(st.integers(0, len(encoded) * 8 - 1))
    damaged = bytearray(encoded)
    damaged[at // 8] ^= 1 << at % 8
    with pytest.raises(Corruption):
        decode_conf_change(change.entry_kind, bytes(damaged))
    cut = data.draw(st.integers(1, len(encoded) - 1))
    with pytest.raises(Corruption):
        decode_conf_change(change.entry_kind, encoded[:cut])
