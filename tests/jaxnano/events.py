"""A reader of event files of our own: TFRecord frames with masked CRC-32C around Event messages."""

import json
import struct

import numpy as np

from jaxnano.curves import EVENTS, METRICS


def crc32c(data):
    """Bit by bit, from the polynomial. Source: RFC 3720, appendix B.4."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def masked(data):
    crc = crc32c(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def read_events(folder):
    """All events of the one event file in a folder, every frame checked."""
    from tensorboardX.proto.event_pb2 import Event

    (path,) = folder.glob(EVENTS + "*")
    content, events = path.read_bytes(), []
    while content:
        (length, check), data = struct.unpack("<QI", content[:12]), content[12:]
        assert check == masked(content[:8])
        (check,) = struct.unpack("<I", data[length : length + 4])
        assert check == masked(data[:length])
        events.append(Event.FromString(data[:length]))
        content = data[length + 4 :]
    return events


def scalars(events):
    """(step, value) by tag, in the order written."""
    found = {}
    for event in events:
        for value in event.summary.value:
            if value.WhichOneof("value") == "simple_value":
                found.setdefault(value.tag, []).append((event.step, value.simple_value))
    return found


def rows(folder):
    return [json.loads(line) for line in (folder / METRICS).read_text().splitlines()]


def of(tag, lines, position=lambda row: row["step"]):
    """The same from the lines; event files hold single precision."""
    return [(position(row), float(np.float32(row[tag]))) for row in lines if row.get(tag) is not None]
