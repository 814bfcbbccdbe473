"""Docker's stream formats: frames with an eight-byte header, and the connection taken over by an exec.

Bytes and sockets only; it knows nothing of containers.
"""

from __future__ import annotations

import asyncio
import fcntl
import struct
import termios
import time

from aiohttp import web

_SWITCHING = (
    b"HTTP/1.1 101 UPGRADED\r\n"
    b"Content-Type: application/vnd.docker.raw-stream\r\n"
    b"Connection: Upgrade\r\n"
    b"Upgrade: tcp\r\n\r\n"
)


def frame(stream: int, data: bytes) -> bytes:
    """One frame: stream 1 is stdout, 2 is stderr."""
    return struct.pack(">BxxxL", stream, len(data)) + data


class Spent(web.StreamResponse):
    """What a handler returns when it has already written to the connection itself and closed it."""

    async def prepare(self, request: web.BaseRequest) -> None:
        """Write nothing."""

    async def write_eof(self, data: bytes = b"") -> None:
        """Write nothing."""


async def take_over(request: web.Request) -> asyncio.Transport:
    """Answer 101 and hand out the raw connection.

    docker-py reads the answer's head through a buffer and the frames past it, so a frame that came in the same
    packet would be lost to it. The head is therefore let through first.
    """
    transport = request.transport
    if transport is None:
        raise ConnectionResetError("The client left before its exec began.")
    transport.write(_SWITCHING)
    end = time.monotonic() + 2.0
    while _unread(transport) and time.monotonic() < end:
        await asyncio.sleep(0.001)
    return transport


def _unread(transport: asyncio.Transport) -> int:
    """How many bytes the client has not read yet."""
    if transport.is_closing():
        return 0
    descriptor = transport.get_extra_info("socket").fileno()
    answer = fcntl.ioctl(descriptor, termios.TIOCOUTQ, b"\0" * 4)
    return int.from_bytes(answer, "little") + transport.get_write_buffer_size()
