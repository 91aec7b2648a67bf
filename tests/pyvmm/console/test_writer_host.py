# SPDX-License-Identifier: Apache-2.0
"""A `ConsoleWriter` as the host of a port: slow readers, lost output, and room for input."""

from __future__ import annotations

import asyncio
import os

from pyvmm.console.writer import MAX_UNWRITTEN_BYTES, ConsoleWriter
from pyvmm.console.writer_host import WriterHost
from tests.pyvmm.console.console_guest import board_guest

BYTES = 1 << 20


def test_a_slow_reader_stops_the_guest_and_loses_nothing() -> None:
    async def scenario() -> None:
        reader, writer = os.pipe()
        console_writer = ConsoleWriter(writer)
        async with board_guest() as guest:
            host = WriterHost(asyncio.get_running_loop(), guest.port, console_writer)
            data = os.urandom(BYTES)
            writing = asyncio.create_task(guest.write(data))
            await asyncio.sleep(0.3)
            assert guest.model.output_bytes <= 3 * MAX_UNWRITTEN_BYTES, "queue, write and pipe"
            assert len(console_writer.queue) <= MAX_UNWRITTEN_BYTES
            received = b""
            while len(received) < BYTES:
                received += await asyncio.to_thread(os.read, reader, 1 << 16)
            await writing
            assert received == data
            host.guest_open_changed(False)
        console_writer.close()
        os.close(reader)
        os.close(writer)

    asyncio.run(asyncio.wait_for(scenario(), 30))


def test_output_that_is_lost_does_not_stop_the_guest() -> None:
    async def scenario() -> None:
        reader, writer = os.pipe()
        os.close(reader)
        console_writer = ConsoleWriter(writer)
        async with board_guest() as guest:
            WriterHost(asyncio.get_running_loop(), guest.port, console_writer)
            await guest.write(bytes(BYTES))
        console_writer.close()
        os.close(writer)

    asyncio.run(asyncio.wait_for(scenario(), 30))


def test_room_for_input_is_announced_on_the_loop() -> None:
    async def scenario() -> None:
        reader, writer = os.pipe()
        console_writer = ConsoleWriter(writer)
        async with board_guest() as guest:
            loop, room = asyncio.get_running_loop(), asyncio.Event()
            WriterHost(loop, guest.port, console_writer, room.set)
            taken = guest.port.offer(bytes(BYTES))
            assert 0 < taken < BYTES
            while guest.port.offer(b"x"):
                pass
            room.clear()
            await guest.read(taken)
            await room.wait()
        console_writer.close()
        os.close(reader)
        os.close(writer)

    asyncio.run(asyncio.wait_for(scenario(), 30))
