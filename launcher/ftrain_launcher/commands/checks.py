"""What users write on the command line of ``ftrain run``, checked: each raises UsageError with one line."""

from __future__ import annotations

import errno
import socket
import stat
from pathlib import Path

from ftrain_launcher.commands import own_address
from ftrain_launcher.errors import UsageError
from ftrain_launcher.terminal import announce

PARITY_MAX = 4
_PARITY_TWO_FROM_NODES = 5
"""From here on, two-parity groups outlive mirrored pairs at a third of their memory (DESIGN 5)."""
_NAME_LENGTH_MAX = 48
_LABEL_LENGTH_MAX = 64
_SECRET_BYTES_MIN = 16
_ANSWER_SECONDS = 1.0
_CANDIDATE_PORT = 29400
"""Where candidates listen if nothing is said: torchrun's port for its rendezvous."""
_SECRET_BYTES_MAX = 64 * 2**10
_YEAR_SECONDS = 365 * 86400
_LOCAL_NODES_MAX = 1000
"""Emulated nodes: each is three processes or more."""
_NUMBER_MAX = 10**15
"""What is said to agents and daemons has 64 bits, and more steps than this nobody trains."""
_RATE_MAX = 1 << 56
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}


def at_least(flag: str, value: int, least: int) -> int:
    """A number that is large enough."""
    if value < least:
        raise UsageError(f"{flag} must be at least {least}, not {value}")
    if value > _NUMBER_MAX:
        raise UsageError(f"{flag} must be at most {_NUMBER_MAX}, not {value}")
    return value


def not_negative(flag: str, seconds: float) -> float:
    """A time that may be none at all."""
    if not 0 <= seconds < float("inf"):
        raise UsageError(f"{flag} must be 0 or more, not {seconds:g}")
    return seconds


def positive(flag: str, seconds: float) -> float:
    """A time that can be waited for."""
    if not 0 < seconds < float("inf"):
        raise UsageError(f"{flag} must be more than 0, not {seconds:g}")
    return seconds


ABORT_GRACE_SECONDS_MAX = 5.0
"""A node that has not stopped its workers after 10 s counts as lost."""


def abort_grace(seconds: float) -> float:
    """How long a worker may take to leave."""
    if positive("--abort-grace-seconds", seconds) > ABORT_GRACE_SECONDS_MAX:
        raise UsageError(f"--abort-grace-seconds must be at most {ABORT_GRACE_SECONDS_MAX:g}, not {seconds:g}")
    return seconds


def in_process(wanted: bool | None, standbys: int) -> bool:
    """Whether survivors stay; standbys are for nothing else."""
    if wanted is False and standbys > 0:
        raise UsageError(f"--standby {standbys} and --no-in-process: a standby takes a rank among ranks that stay")
    return standbys > 0 if wanted is None else wanted


def collective_timeout(seconds: float | None) -> float | None:
    """A timeout that torch can count, or none."""
    if seconds is not None and not 1 <= seconds <= _YEAR_SECONDS:
        raise UsageError(f"--collective-timeout must be 1 second to a year, not {seconds:g}")
    return seconds


def nodes(nnodes: str, local_nodes: str | None) -> tuple[int, int, bool]:
    """With how few nodes the job goes on, how many it has at most, and whether they are real hosts."""
    least, most = _range("--nnodes", nnodes)
    if local_nodes is None:
        return least, most, most > 1
    if most > 1:
        raise UsageError(
            f"--nnodes {nnodes} with --local-nodes {local_nodes}: a node is either a host or emulated on this one"
        )
    least, most = _range("--local-nodes", local_nodes)
    if most > _LOCAL_NODES_MAX:
        raise UsageError(f"--local-nodes {local_nodes}: {_LOCAL_NODES_MAX} at most; each is processes of its own")
    return least, most, False


def _range(flag: str, word: str) -> tuple[int, int]:
    """N, or MIN:MAX."""
    least, colon, most = word.partition(":")
    most = most if colon else least
    if not (least.isdecimal() and most.isdecimal() and 1 <= int(least) <= int(most)):
        raise UsageError(f"{flag} {word}: give a number of nodes, 1 or more, or MIN:MAX")
    return int(least), int(most)


def snapshot_every(word: str) -> int:
    """Steps between snapshots; 0: as often as costs little."""
    if word == "auto":
        return 0
    if not word.removeprefix("-").isdecimal():
        raise UsageError(f"--snapshot-every {word}: give a number of steps, or auto")
    return at_least("--snapshot-every", int(word), 1)


def parity(chosen: int | None, nodes: int) -> int:
    """Lost nodes of a group that are survived; 0: none."""
    if chosen is None:
        return min(nodes - 1, 2 if nodes >= _PARITY_TWO_FROM_NODES else 1)
    if chosen < 0:
        raise UsageError(f"--parity must be at least 0, not {chosen}")
    if chosen >= nodes:
        raise UsageError(
            f"--parity {chosen} with {nodes} nodes: parity lies on other nodes than the data, so at most {nodes - 1}"
        )
    if chosen > PARITY_MAX:
        raise UsageError(f"--parity {chosen}: at most {PARITY_MAX}")
    return chosen


def codec(choice: str) -> str:
    """An engine for parity that is here; ``auto`` always finds one."""
    if choice != "auto":
        from ftrain_snapshot.codec import choose
        from ftrain_snapshot.errors import CodecUnsupported

        try:
            choose(choice)
        except CodecUnsupported as error:
            raise UsageError(f"--codec {choice}: {error}") from error
    return choice


def bytes_per_second(flag: str, word: str | None) -> int:
    """A rate like 500M; 0: none was given, so there is no limit."""
    if word is None:
        return 0
    number, unit = (word[:-1], word[-1].upper()) if word[-1:].isalpha() else (word, "")
    try:
        rate = float(number) * _UNITS[unit]
    except (ValueError, KeyError):
        rate = 0.0
    if not 1 <= rate <= _RATE_MAX:
        raise UsageError(f"{flag} {word}: give bytes per second, like 500M or 1.5G; without it there is no limit")
    return int(rate)


def failure_domains(word: str | None, count: int) -> tuple[str, ...]:
    """One label for each of this machine's nodes."""
    if word is None:
        return ()
    labels = tuple(label.strip() for label in word.split(","))
    if len(labels) != count:
        given = f"{len(labels)} label{'s' * (len(labels) != 1)}"
        raise UsageError(f"--failure-domain {word}: {given} for {count} node{'s' * (count != 1)}, spares included")
    if any(not label or len(label) > _LABEL_LENGTH_MAX for label in labels):
        raise UsageError(f"--failure-domain {word}: a label has 1 to {_LABEL_LENGTH_MAX} characters")
    return labels


def node_rank(chosen: int | None, nodes: int, *, hosts: bool) -> int | None:
    """The position that this host is meant for."""
    if chosen is None or (chosen == 0 and not hosts):
        return None
    if not hosts:
        raise UsageError(f"--node-rank {chosen}: only with --nnodes 2 or more")
    if not 0 <= chosen < nodes:
        raise UsageError(f"--node-rank {chosen}: give 0 to {nodes - 1}; spares are started without")
    return chosen


def secret(path: Path | None) -> bytes | None:
    """What all hosts know, from a file that only its owner can read."""
    if path is None:
        return None
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise UsageError(f"--secret-file {path}: not a file")
        if found.st_mode & 0o077:
            raise UsageError(f"--secret-file {path}: others can read it; chmod 600 it")
        with path.open("rb") as file:
            text = file.read(_SECRET_BYTES_MAX + 1).strip()
    except OSError as error:
        raise UsageError(f"--secret-file {path}: {error.strerror or error}") from error
    if not _SECRET_BYTES_MIN <= len(text) <= _SECRET_BYTES_MAX:
        raise UsageError(
            f"--secret-file {path}: give {_SECRET_BYTES_MIN} bytes or more (and at most {_SECRET_BYTES_MAX})"
        )
    return text


def job_name(name: str) -> str:
    """A name that can be a folder's."""
    if not name or len(name) > _NAME_LENGTH_MAX or not all(c.isalnum() or c in "-_." for c in name) or name[0] == ".":
        raise UsageError(f"--name {name!r}: use up to {_NAME_LENGTH_MAX} letters, digits, '-', '_' and '.'")
    return name


def controller(word: str) -> tuple[str, int]:
    """HOST and PORT."""
    host, colon, port = word.rpartition(":")
    if not colon or not port.isdecimal() or not host or int(port) > 65535:
        raise UsageError(f"--controller {word}: give HOST:PORT")
    return host, int(port)


def candidates(word: str | None, controller_word: str | None, *, hosts: bool) -> tuple[str, ...]:
    """``--controller-candidates``, as HOST:PORT each; empty: there is only one."""
    if word is None:
        return ()
    flag = f"--controller-candidates {word}"
    if not hosts:
        raise UsageError(f"{flag}: emulated nodes have one host; it is for --nnodes")
    if controller_word is not None:
        raise UsageError(f"{flag}: leave out --controller {controller_word}; the job begins on the first candidate")
    places = [part if part.rpartition(":")[1] else f"{part}:{_CANDIDATE_PORT}" for part in word.split(",")]
    if len(places) < 2 or len(set(places)) < len(places):
        raise UsageError(f"{flag}: give two hosts or more, each once, as HOST[:PORT],HOST[:PORT]")
    for place in places:
        controller(place)
    return tuple(places)


def own_candidate(places: tuple[str, ...]) -> tuple[int, str, int] | None:
    """Which candidate this host is, and the address to listen on; None: it is none.

    A name that nobody knows is another host's: a lost one's may be taken out of the name server.
    """
    unknown = [place for place in places if not _is_known(controller(place)[0])]
    if len(unknown) == len(places):
        raise UsageError(f"--controller-candidates {','.join(places)}: none of these hosts is known here")
    if unknown:
        announce(f"warning: --controller-candidates: not known here, for now: {', '.join(unknown)}")
    for number, (host, port) in enumerate(map(controller, places)):
        address = None if places[number] in unknown else address_if_ours(host, port)
        if address is not None:
            return number, address, port
    return None


def _is_known(host: str) -> bool:
    try:
        socket.getaddrinfo(host, None)
    except socket.gaierror:
        return False
    return True


def same_candidates(theirs: tuple[str, ...], ours: tuple[tuple[str, int], ...]) -> None:
    """Raises UsageError unless the job has the candidates that were given here."""
    here = ",".join(f"{host}:{port}" for host, port in ours) if len(ours) > 1 else ""
    if ",".join(theirs) != here:
        there = ",".join(theirs) or "none"
        raise UsageError(f"--controller-candidates must be the same on all hosts: {here or 'none'} here, {there} there")


def anybody_at(places: tuple[str, ...]) -> bool:
    """Whether something listens at one of these places: the job runs, and its controller is there or stands by."""
    for place in map(controller, places):
        try:
            socket.create_connection(place, _ANSWER_SECONDS).close()
        except OSError:
            continue
        return True
    return False


def address_to_listen(host: str, port: int) -> str:
    """The address to listen on, if HOST is this machine and the port is free."""
    place = f"--controller {host}:{port}"
    try:
        return _bind(host, port)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise UsageError(f"{place}: the port is in use; choose another, or 0 for any") from error
        raise UsageError(f"{place}: cannot listen there ({error.strerror or error})") from error


def free_port(flag: str, port: int) -> int:
    """A port of this machine that nobody listens at; 0: any."""
    if port:
        try:
            _bind("", port)
        except OSError as error:
            raise UsageError(f"{flag} {port}: {error.strerror or error}; choose another, or leave it out") from error
    return port


def address_if_ours(host: str, port: int) -> str | None:
    """Of several hosts: the address to listen on if HOST is this one; None: the controller runs elsewhere.

    Where the port is taken, it may be by the controller itself: a second launcher on its host joins it.
    """
    if port == 0:
        raise UsageError(f"--controller {host}:0: the other hosts must know the port; choose one")
    if host == "0.0.0.0":
        raise UsageError(f"--controller {host}:{port}: give the address of the one host that runs the controller")
    try:
        address = _bind(host, port)
        if own_address.is_only_ours(host, address) and own_address.outward() is not None:
            address = _bind(own_address.EVERYWHERE, port)
        _claim(address, port)
        return address
    except OSError as error:
        if isinstance(error, socket.gaierror):
            raise UsageError(f"--controller {host}:{port}: {host} is not known here ({error.strerror})") from error
        if error.errno not in (errno.EADDRINUSE, errno.EADDRNOTAVAIL):
            raise UsageError(f"--controller {host}:{port}: {error.strerror or error}") from error
        return None


_claims: list[socket.socket] = []


def _claim(address: str, port: int) -> None:
    """Of launchers that start at once on one machine, one leads: a name that ends with its process. Raises OSError."""
    claim = socket.socket(socket.AF_UNIX)
    _claims.append(claim)
    claim.bind(f"\0ftrain-controller-{address}-{port}")


def _bind(host: str, port: int) -> str:
    """Raises OSError."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((host, port))
        address: str = probe.getsockname()[0]
        return address
