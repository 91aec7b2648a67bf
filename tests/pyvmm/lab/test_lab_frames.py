# SPDX-License-Identifier: Apache-2.0
"""Frames on the lab's link, split anywhere, and bytes that are not frames."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvmm.lab.frames import (
    CREDIT,
    HEADER,
    MAX_NAME_BYTES,
    MAX_PAYLOAD_BYTES,
    Decoder,
    Frame,
    FrameError,
    FrameType,
    encode,
)

_PAYLOADS = {
    FrameType.CONTROL: st.binary(max_size=200),
    FrameType.OPEN: st.binary(max_size=200),
    FrameType.DATA: st.binary(max_size=2000),
    FrameType.EOF: st.just(b""),
    FrameType.CLOSE: st.just(b""),
    FrameType.CREDIT: st.binary(min_size=CREDIT.size, max_size=CREDIT.size),
    FrameType.CONNECT: st.binary(max_size=200),
    FrameType.CONNECTED: st.binary(max_size=200),
}
_FRAMES = st.sampled_from(FrameType).flatmap(
    lambda kind: st.builds(Frame, st.just(kind), st.integers(0, 0xFFFF), _PAYLOADS[kind])
)


@given(frames=st.lists(_FRAMES, max_size=8), data=st.data())
def test_frames_split_anywhere_decode_the_same(frames: list[Frame], data: st.DataObject) -> None:
    stream = b"".join(encode(frame) for frame in frames)
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=12).map(sorted))
    decoder = Decoder()
    got = []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        got += decoder.feed(stream[start:end])
    assert got == frames


@given(st.binary(max_size=300))
def test_garbage_decodes_to_frames_or_ends_in_an_error(garbage: bytes) -> None:
    decoder = Decoder()
    try:
        frames = decoder.feed(garbage)
    except FrameError:
        with pytest.raises(FrameError, match="broken"):
            decoder.feed(b"")
    else:
        assert garbage.startswith(b"".join(encode(frame) for frame in frames))


@pytest.mark.parametrize(
    "header",
    [
        (0, 0, 1, 0),
        (99, 0, 1, 0),
        (FrameType.DATA, 1, 1, 0),
        (FrameType.DATA, 0, 1, MAX_PAYLOAD_BYTES + 1),
        (FrameType.EOF, 0, 1, 1),
        (FrameType.CREDIT, 0, 1, 3),
        (FrameType.CONNECT, 0, 1, MAX_NAME_BYTES + 1),
        (FrameType.CONTROL, 0, 0, 0xFFFFFFFF),
    ],
)
def test_a_bad_header_is_refused_before_its_payload_arrives(
    header: tuple[int, int, int, int],
) -> None:
    with pytest.raises(FrameError):
        Decoder().feed(HEADER.pack(*header))


def test_an_overlong_payload_is_not_encoded() -> None:
    with pytest.raises(FrameError):
        encode(Frame(FrameType.DATA, 1, bytes(MAX_PAYLOAD_BYTES + 1)))
