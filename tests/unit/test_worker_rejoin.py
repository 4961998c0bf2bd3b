"""A worker that leaves its generation: when it is interrupted, and which of its sockets are shut down."""

from __future__ import annotations

import socket
import sys
import threading

import pytest

from ftrain.errors import GenerationEnded
from ftrain.rejoin import Window
from ftrain.sever import Sockets


def connection() -> tuple[socket.socket, socket.socket]:
    """Both ends."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        near = socket.create_connection(server.getsockname())
        return near, server.accept()[0]


def test_only_who_is_in_the_window_is_interrupted() -> None:
    window = Window()
    window.interrupt(0, None)
    with pytest.raises(GenerationEnded), window:
        window.interrupt(0, None)
    window.interrupt(0, None)


def test_an_exception_on_its_way_is_not_cut_off_by_the_next_signal() -> None:
    window = Window()
    cleaned_up = []

    def train() -> None:
        try:
            window.interrupt(0, None)
        finally:
            window.interrupt(0, None)
            cleaned_up.append(True)

    with pytest.raises(GenerationEnded), window:
        train()
    assert cleaned_up


def test_an_import_may_end_first() -> None:
    window = Window()
    source = "window.interrupt(0, sys._getframe())"
    with window:
        exec(compile(source, "<frozen importlib._bootstrap>", "exec"), {"window": window, "sys": sys})
    with pytest.raises(GenerationEnded), window:
        window.interrupt(0, sys._getframe())


def test_only_sockets_that_were_watched_are_severed_and_a_reader_of_theirs_wakes() -> None:
    sockets = Sockets()
    ours, far_of_ours = connection()
    with sockets.watch():
        theirs, far_of_theirs = connection()
        listener = socket.create_server(("127.0.0.1", 0))
    woken = threading.Thread(target=theirs.recv, args=(1,))
    woken.start()
    assert sockets.sever() == 2
    woken.join(10)
    assert not woken.is_alive()
    assert far_of_theirs.recv(1) == b""
    ours.sendall(b"x")
    assert far_of_ours.recv(1) == b"x"
    with socket.create_connection(listener.getsockname()):
        pass  # a listener is left alone
    for each in (ours, far_of_ours, theirs, far_of_theirs, listener):
        each.close()


def test_what_connects_while_a_group_is_being_made_is_severed_too_and_forgotten_ones_are_not() -> None:
    sockets = Sockets()
    with sockets.watch():
        near, far = connection()
        assert sockets.sever() == 2
    sockets.forget()
    assert sockets.sever() == 0
    near.close()
    far.close()
