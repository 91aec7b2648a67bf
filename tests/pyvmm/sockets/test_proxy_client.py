# SPDX-License-Identifier: Apache-2.0
"""A lab's proxy that ends the connection in the middle of its reply."""

from __future__ import annotations

import socket
import threading
from pathlib import Path

import pytest

from pyvmm.sockets.proxy_client import LENGTH, close_forwarded_listener, connect_through_proxy


@pytest.mark.parametrize("reply", [b"", b"\1", LENGTH.pack(5) + b"four"])
def test_an_incomplete_reply_is_a_connection_error(tmp_path: Path, reply: bytes) -> None:
    path = tmp_path / "proxy"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        listener.settimeout(20)

        def serve() -> None:
            for _ in range(2):
                with listener.accept()[0] as connection:
                    connection.recv(1000)
                    connection.sendall(reply)

        proxy = threading.Thread(target=serve)
        proxy.start()
        with pytest.raises(ConnectionResetError, match="the lab closed the connection"):
            connect_through_proxy(path, "tcp:127.0.0.1:1")
        with pytest.raises(ConnectionResetError, match="the lab closed the connection"):
            close_forwarded_listener(path, tmp_path / "inner")
        proxy.join(20)
        assert not proxy.is_alive()
