"""The parts of the transport against other libraries' own: frames, header blocks, metadata."""

from __future__ import annotations

from urllib.parse import unquote_to_bytes

import hyperframe.frame as theirs
import pytest
from hpack import Decoder, Encoder
from hypothesis import given
from hypothesis import strategies as st

from service.api.grpc.transport import frames
from service.api.grpc.transport.frames import ErrorCode
from service.api.grpc.transport.header_blocks import HeaderBlocks, block_of
from service.api.grpc.transport.metadata import MAX_MESSAGE_BYTES, RequestHead, binary, percent_decoded, percent_encoded

STREAMS = st.integers(1, 2**31 - 1)
NAMES = st.sampled_from(["x-a", "x-b", "grpc-timeout", "user-agent", ":path", ":method", "content-type"])
VALUES = st.sampled_from(["", "1S", "a", "application/grpc", "b" * 100, "c" * 3000, "/x/y", "POST"])
Fields = list[tuple[str, str]]
FIELDS = st.lists(st.tuples(NAMES, VALUES), max_size=6)
CALL = [(b":method", b"POST"), (b":scheme", b"http"), (b":path", b"/"), (b"content-type", b"application/grpc")]


def parsed(data: bytes) -> theirs.Frame:
    """A frame as hyperframe reads it."""
    frame, size = theirs.Frame.parse_frame_header(memoryview(data[:9]))
    frame.parse_body(memoryview(data[9 : 9 + size]))
    return frame


@given(number=STREAMS, increment=STREAMS, payload=st.binary(max_size=100))
def test_frames_as_another_library_reads_them(number: int, increment: int, payload: bytes) -> None:
    """Kinds, streams, values."""
    update = parsed(frames.window_update(number, increment))
    assert isinstance(update, theirs.WindowUpdateFrame)
    assert (update.stream_id, update.window_increment) == (number, increment)
    reset = parsed(frames.rst_stream(number, ErrorCode.CANCEL))
    assert isinstance(reset, theirs.RstStreamFrame)
    assert (reset.stream_id, reset.error_code) == (number, 8)
    away = parsed(frames.goaway(number, ErrorCode.PROTOCOL_ERROR, "why"))
    assert isinstance(away, theirs.GoAwayFrame)
    assert (away.last_stream_id, away.error_code, away.additional_data) == (number, 1, b"why")
    wanted = parsed(frames.settings({frames.MAX_CONCURRENT_STREAMS: 7, frames.INITIAL_WINDOW_SIZE: increment}))
    assert isinstance(wanted, theirs.SettingsFrame)
    assert wanted.settings == {3: 7, 4: increment}
    data = parsed(frames.frame(frames.DATA, frames.END_STREAM, number, payload))
    assert isinstance(data, theirs.DataFrame)
    assert (data.data, data.flags) == (payload, {"END_STREAM"})


@given(content=st.binary(max_size=50), padding=st.integers(0, 255))
def test_padding_comes_off(content: bytes, padding: int) -> None:
    """As hyperframe puts it on."""
    data = theirs.DataFrame(1, content, pad_length=padding, flags=["PADDED"]).serialize()
    assert frames.unpadded(data[9:], data[4]) == content


@given(blocks=st.lists(st.tuples(FIELDS, st.booleans()), max_size=20), repeats=st.integers(1, 3))
def test_kept_requests_are_those_that_would_be_read(
    blocks: list[tuple[list[tuple[str, str]], bool]], repeats: int
) -> None:
    """Whatever an encoder puts into its table and takes out of it, with and without the requests kept."""
    encoder, reader, plain = Encoder(), HeaderBlocks(), Decoder()
    for fields, resize in blocks:
        if resize:
            encoder.header_table_size = 4096 if encoder.header_table_size < 4096 else 100
        for _ in range(repeats):
            block = bytes(encoder.encode(fields))
            again = encoder.encode(fields) if not resize else b""
            for each in (block, bytes(again)):
                if each:
                    expected = [(bytes(name), bytes(value)) for name, value in plain.decode(each, raw=True)]
                    assert list(reader.request(each)._headers) == expected


@given(fields=st.lists(st.tuples(st.binary(min_size=1, max_size=200), st.binary(max_size=300)), max_size=5))
def test_blocks_as_another_library_reads_them(fields: list[tuple[bytes, bytes]]) -> None:
    """Literals of any length."""
    assert [(bytes(n), bytes(v)) for n, v in Decoder().decode(block_of(fields), raw=True)] == fields


@given(text=st.text(max_size=200))
def test_percent_encoding(text: str) -> None:
    """Printable ASCII without spaces around it stays; everything comes back, also through urllib."""
    encoded = percent_encoded(text)
    assert all(0x20 <= byte < 0x7F for byte in encoded)
    assert percent_decoded(encoded) == text
    assert unquote_to_bytes(encoded).decode() == text


@given(text=st.text(alphabet="aü%\U0001f600", min_size=2000, max_size=8000))
def test_long_texts_are_cut_between_characters(text: str) -> None:
    """Within the bound."""
    encoded = percent_encoded(text)
    assert len(encoded) <= MAX_MESSAGE_BYTES
    assert text.startswith(percent_decoded(encoded))


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("1H", 3600), ("2M", 120), ("99999999S", 99_999_999), ("5m", 0.005), ("7u", 7e-6), ("3n", 3e-9), ("0n", 0)],
)
def test_timeouts(text: str, seconds: float) -> None:
    """Of every unit."""
    head = RequestHead(
        [(b":method", b"POST"), (b":scheme", b"http"), (b":path", b"/"), (b"grpc-timeout", text.encode())]
    )
    assert head.timeout_s == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "1", "S", "-1S", "1.5S", "123456789S", "1s", " 1S", "1S\u0661"])
def test_wrong_timeouts(text: str) -> None:
    """INVALID_ARGUMENT, as no time can be guessed."""
    head = RequestHead([*CALL, (b"grpc-timeout", text.encode())])
    assert head.status is not None
    assert head.status.code.name == "INVALID_ARGUMENT"


@pytest.mark.parametrize(("value", "expected"), [(b"AP8=", b"\0\xff"), (b"AP8", b"\0\xff"), (b"", b""), (b"!", b"")])
def test_binary_metadata(value: bytes, expected: bytes) -> None:
    """Padded or not; rubbish is nothing."""
    assert binary(value) == expected
