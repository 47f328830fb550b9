"""The floor: a bare Trio loop that splits frames and answers each with one constant, and nothing else.

Run as a process of its own: `python -m benchmark.floor FILE`; the file holds the constant answer.  Prints its address.
"""

from __future__ import annotations

import struct
import sys
from pathlib import Path

import trio

READ_BYTES = 256 * 1024
_INT = struct.Struct(">i")


async def serve(stream: trio.SocketStream, answer: bytes) -> None:
    """All whole frames of a read are split and answered in one write."""
    rest = b""
    unpack = _INT.unpack_from
    receive, send = stream.socket.recv, stream.send_all
    while data := await receive(READ_BYTES):
        if rest:
            data = rest + data
        position, size = 0, len(data)
        frames = []
        while size - position >= 4:
            end = position + 4 + unpack(data, position)[0]
            if end > size:
                break
            frames.append(data[position + 4 : end])
            position = end
        rest = data[position:]
        if frames:
            await send(answer * len(frames))


async def main(answer: bytes) -> None:
    """Listen on a free port and serve until killed."""
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    print(f"127.0.0.1:{listener.socket.getsockname()[1]}", flush=True)

    async def handler(stream: trio.SocketStream) -> None:
        await serve(stream, answer)

    await trio.serve_listeners(handler, [listener])


if __name__ == "__main__":
    trio.run(main, Path(sys.argv[1]).read_bytes())
