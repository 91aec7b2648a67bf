# SPDX-License-Identifier: Apache-2.0
"""The answers to the page's requests: its files, the description of the source, a recording.

A recording may be large, and its file system slow, so threads read it, not the event loop.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Generator
from contextlib import aclosing
from functools import partial
from importlib.resources import files
from typing import Any

from tornado.iostream import StreamClosedError
from tornado.web import HTTPError, RequestHandler

from pyvmm.blocking.in_thread import Worker, call_in_thread
from pyvmm.errors import UserError
from pyvmm.qmp.client import ConnectionClosedError
from pyvmm.qmp.messages import QmpError
from pyvmm.scope import guest_memory
from pyvmm.scope.guard import GuardedHandler
from pyvmm.scope.live_guest import LiveGuest
from pyvmm.scope.live_socket import LiveSocket

CONTENT_TYPES = {
    "html": "text/html; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "svg": "image/svg+xml",
}


_READER = "recording-reader"
"""The name of the threads that read a recording."""


class PageFile(GuardedHandler):
    """A file of the page."""

    def get(self, name: str = "index.html") -> None:
        """Send the file `name`."""
        content_type = CONTENT_TYPES.get(name.rpartition(".")[2])
        path = files("pyvmm.scope.page").joinpath(name)
        if content_type is None or not path.is_file():
            raise HTTPError(404, reason="Not found")
        self.set_header("Content-Type", content_type)
        self.finish(path.read_bytes())


class JsonHandler(GuardedHandler):
    """A request whose answer is `document`, in JSON; an error of the user is `error` in it."""

    async def get(self) -> None:
        """Send the document."""
        self.set_header("Content-Type", "application/json")
        try:
            document = await self.document()
        except UserError as error:
            self.set_status(409)
            document = {"error": str(error)}
        self.finish(json.dumps(document))

    async def document(self) -> Any:
        """Return what is sent. Raises UserError and HTTPError."""
        raise NotImplementedError


class SourceDescription(JsonHandler):
    """`api/source`: what there is to see."""

    async def document(self) -> Any:
        """Return the description of the source."""
        source = self.site.source
        if isinstance(source, LiveGuest):
            return source.describe()
        return await call_in_thread(_READER, source.describe)


class RecordedChunks(GuardedHandler):
    """`api/chunks`: all chunks of a recording, one after the other."""

    async def get(self) -> None:
        """Send the chunks, each when the one before has been taken."""
        self.set_header("Content-Type", "application/octet-stream")
        source = self.site.source
        if isinstance(source, LiveGuest):
            raise HTTPError(409, reason="The events of a live guest come over api/live")
        try:
            async with aclosing(_read_in_thread(source.chunks())) as chunks:
                async for chunk in chunks:
                    self.write(chunk)
                    await self.flush()
        except StreamClosedError:
            return  # the page has been closed
        except UserError as error:
            if self._headers_written:
                self.detach().close()  # an answer without its end is an error to the page
                return
            self.set_status(409)
            self.finish(json.dumps({"error": str(error)}))


async def _read_in_thread(chunks: Generator[bytes]) -> AsyncGenerator[bytes]:
    """Yield what `chunks` yield in a thread, each when it is asked for."""
    worker = Worker(_READER)
    try:
        while (chunk := await worker.call(partial(next, chunks, None))) is not None:
            yield chunk
    finally:
        worker.call(chunks.close)  # closes the file
        worker.end()


class GuestHandler(JsonHandler):
    """A question about the state of a live guest."""

    @property
    def guest(self) -> LiveGuest:
        """The guest; HTTPError for a recording."""
        if not isinstance(self.site.source, LiveGuest):
            raise HTTPError(409, reason="A recording has no guest to look into")
        return self.site.source

    async def document(self) -> Any:
        """Return the answer, or why there is none."""
        try:
            return await self.answer()
        except QmpError as error:
            raise UserError(error.desc) from error
        except ConnectionClosedError as error:
            raise UserError("the guest has ended") from error

    async def answer(self) -> Any:
        """Return the answer. Raises `QmpError` and `ConnectionClosedError`."""
        raise NotImplementedError


class Registers(GuestHandler):
    """`api/registers?device=`: as `x-query-pci-registers`."""

    async def answer(self) -> Any:
        """Return the registers."""
        return await self.guest.query(
            "x-query-pci-registers", device=self.get_query_argument("device")
        )


class Queue(GuestHandler):
    """`api/queue?device=&queue=`: the rings of a queue."""

    async def answer(self) -> Any:
        """Return the rings, read now."""
        queue = await guest_memory.find_queue(
            self.guest, self.get_query_argument("device"), self.get_query_argument("queue")
        )
        return await guest_memory.read_rings(self.guest, queue)


class Buffer(GuestHandler):
    """`api/buffer?device=&queue=&head=`: a buffer with its bytes, decoded."""

    async def answer(self) -> Any:
        """Return the buffer, read now."""
        head = self.get_query_argument("head")
        if not (head.isascii() and head.isdigit() and len(head) <= 5):
            raise HTTPError(400, reason="The head is no index")
        queue = await guest_memory.find_queue(
            self.guest, self.get_query_argument("device"), self.get_query_argument("queue")
        )
        return await guest_memory.read_buffer(self.guest, queue, int(head))


class MemoryMap(GuestHandler):
    """`api/pages?cells=`: the states of the guest's pages, in at most that many cells."""

    async def answer(self) -> Any:
        """Return the counts of each cell, and the resident memory."""
        cells = self.get_query_argument("cells")
        if not (cells.isascii() and cells.isdigit() and 0 < len(cells) <= 5 and int(cells)):
            raise HTTPError(400, reason="The cells are no number")
        return await guest_memory.read_page_states(self.guest, int(cells))


PATHS: dict[str, type[RequestHandler]] = {
    "": PageFile,
    r"page/(?P<name>[a-z_]+\.[a-z]+)": PageFile,
    "api/source": SourceDescription,
    "api/chunks": RecordedChunks,
    "api/live": LiveSocket,
    "api/queue": Queue,
    "api/buffer": Buffer,
    "api/registers": Registers,
    "api/pages": MemoryMap,
}
"""Handlers by their paths behind the token, regular expressions."""
