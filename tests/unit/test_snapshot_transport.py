"""The handshake: both sides must know the secret, and neither can be answered with its own words."""

import pytest

from ftrain_snapshot.errors import ProtocolError
from ftrain_snapshot.transport import Handshake

SECRET = b"s" * 32


def test_two_who_know_the_secret_are_proved_to_each_other():
    dialler, acceptor = Handshake(SECRET, dialled=True), Handshake(SECRET, dialled=False)
    assert len(dialler.greeting) == acceptor.needed()
    proof, other = acceptor.feed(dialler.greeting), dialler.feed(acceptor.greeting)
    assert proof is not None
    assert other is not None
    assert len(proof) == dialler.needed()
    assert dialler.feed(proof) is None
    assert acceptor.feed(other) is None


@pytest.mark.parametrize("dialled", [True, False])
def test_a_stranger_is_not(dialled):
    mine, stranger = Handshake(SECRET, dialled=dialled), Handshake(b"guess", dialled=not dialled)
    mine.feed(stranger.greeting)
    proof = stranger.feed(mine.greeting)
    assert proof is not None
    with pytest.raises(ProtocolError, match="secret"):
        mine.feed(proof)


def test_a_mirror_is_not():
    mine = Handshake(SECRET, dialled=True)
    proof = mine.feed(mine.greeting)
    assert proof is not None
    with pytest.raises(ProtocolError):
        mine.feed(proof)


def test_another_protocol_is_refused_at_its_first_bytes():
    with pytest.raises(ProtocolError, match="protocol"):
        Handshake(SECRET, dialled=False).feed(b"GET / HTTP/1.1\r\n".ljust(50))
