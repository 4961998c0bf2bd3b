"""The recorder's library: built with the user's compiler, once per machine and version of torch, and kept in a cache.

It is C++ against torch's own headers, so it fits that version and no other, whatever the Python. Building takes about
ten seconds of one core. Several processes that want it at once build it once; a build that failed is not tried again
for a while. Nothing here imports torch.

``python -m ftrain.comm.library`` builds it.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

BUILD_SECONDS_MAX = 300.0
"""Ten are usual; a machine that is busy with other things may need many more."""
FAILURE_KEPT_SECONDS = 600.0
ZYGOTE_PATIENCE_SECONDS = 40.0
"""How long a zygote waits for a build beyond its own imports."""
_LOCK_POLL_SECONDS = 0.1
_SOURCES = Path(__file__).parent / "cpp"
_COMPILERS = ("c++", "g++", "clang++")


class Unavailable(Exception):
    """There is no library, for the reason given."""


def cached() -> Path:
    """The library's file. Raises Unavailable if it has not been built."""
    path = library_path()
    if not path.exists():
        raise Unavailable(_failure(path) or f"{path} has not been built")
    return path


def ensure() -> Path:
    """The library's file, built if need be. Raises Unavailable."""
    path = library_path()
    if path.exists():
        return path
    _make_private(path.parent)
    deadline = time.monotonic() + BUILD_SECONDS_MAX
    with _locked(path.with_suffix(".lock"), deadline):
        if not path.exists():
            _build_or_remember(path, deadline - time.monotonic())
    return path


def is_wanted() -> bool:
    """Nobody has switched the recorder off for all workers."""
    return os.environ.get("FTRAIN_RECORDER") != "0"


def needs_building() -> bool:
    """The library is wanted and not there, and nothing speaks against building it now."""
    try:
        path = library_path()
    except Unavailable:
        return False
    return is_wanted() and not path.exists() and _failure(path) is None


def start_building() -> subprocess.Popen[bytes] | None:
    """Build in a process of its own; None: there is nothing to do."""
    if not needs_building():
        return None
    return subprocess.Popen([sys.executable, "-P", "-m", "ftrain.comm.library"], stdin=subprocess.DEVNULL)


def finish_building(building: subprocess.Popen[bytes]) -> None:
    """Wait until it is built, or ``ZYGOTE_PATIENCE_SECONDS``: then it goes on for the jobs to come."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        building.wait(ZYGOTE_PATIENCE_SECONDS)


def library_path() -> Path:
    """Where the library is, or will be; its name tells torch's version, and the sources'. Raises Unavailable."""
    try:
        version = importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError as error:
        raise Unavailable("torch is not installed") from error
    digest = hashlib.sha256(version.encode())
    for source in sorted(_SOURCES.iterdir()):
        digest.update(source.read_bytes())
    folder = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(folder) / "ftrain" / f"recorder-torch{version}-{os.uname().machine}-{digest.hexdigest()[:12]}.so"


def _make_private(folder: Path) -> None:
    """What lies there is executed: nobody else may write to it."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.stat()
    except OSError as error:
        raise Unavailable(f"{folder} cannot be made: {error.strerror}") from error
    if status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise Unavailable(f"{folder} is not this user's alone")


@contextlib.contextmanager
def _locked(path: Path, deadline: float) -> Iterator[None]:
    with path.open("wb") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise Unavailable(f"another process builds it, for more than {BUILD_SECONDS_MAX:.0f} s") from None
                time.sleep(_LOCK_POLL_SECONDS)  # flock itself waits without a time limit
        yield


def _build_or_remember(path: Path, timeout_seconds: float) -> None:
    if (reason := _failure(path)) is not None:
        raise Unavailable(reason)
    try:
        _build(path, timeout_seconds)
    except Unavailable as error:
        path.with_suffix(".failed").write_text(str(error))
        raise
    path.with_suffix(".failed").unlink(missing_ok=True)


def _failure(path: Path) -> str | None:
    """Why a build failed not long ago; None: none did."""
    with contextlib.suppress(OSError):
        failure = path.with_suffix(".failed")
        if time.time() - failure.stat().st_mtime < FAILURE_KEPT_SECONDS:
            return failure.read_text()
    return None


def _build(path: Path, timeout_seconds: float) -> None:
    made = path.with_suffix(".building")
    try:
        errors = _compile(_command(made), timeout_seconds)
        if errors is not None:
            lines = [line for line in errors.splitlines() if "error" in line] or ["no reason given"]
            raise Unavailable(f"the compiler failed: {lines[0]}")
        made.replace(path)
    except OSError as error:
        raise Unavailable(f"it cannot be built: {error}") from error
    finally:
        made.unlink(missing_ok=True)


def _compile(command: list[str], timeout_seconds: float) -> str | None:
    """What the compiler complains of; None: it did its work."""
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    ) as compiler:
        try:
            errors = compiler.communicate(timeout=timeout_seconds)[1]
        except subprocess.TimeoutExpired as error:
            compiler.terminate()  # it takes along the processes that it started, which it could not if it were killed
            raise Unavailable(f"the compiler took more than {timeout_seconds:.0f} s") from error
    return None if compiler.returncode == 0 else errors


def _command(target: Path) -> list[str]:
    spec = importlib.util.find_spec("torch")
    if spec is None or not spec.submodule_search_locations:
        raise Unavailable("torch is not installed")
    torch = Path(spec.submodule_search_locations[0])
    headers = torch / "include"
    includes = [f"-isystem{folder}" for folder in (headers, headers / "torch" / "csrc" / "api" / "include")]
    options = ["-std=c++20", "-O2", "-fPIC", "-shared", f"-D_GLIBCXX_USE_CXX11_ABI={_abi(torch)}"]
    # No path to torch's libraries is built in: they are there when this one is loaded.
    libraries = [f"-L{torch / 'lib'}", "-ltorch_cpu", "-lc10"]
    return [*_compiler(), *options, *includes, *map(str, sorted(_SOURCES.glob("*.cpp"))), "-o", str(target), *libraries]


def _compiler() -> list[str]:
    if chosen := os.environ.get("CXX", "").split():
        return chosen
    for name in _COMPILERS:
        if found := shutil.which(name):
            return [found]
    raise Unavailable("there is no C++ compiler: neither $CXX nor c++, g++ or clang++ in the PATH")


def _abi(torch: Path) -> str:
    """Which of its two string types torch was built with, as its package says to others who build against it."""
    with contextlib.suppress(OSError):
        text = (torch / "share" / "cmake" / "Torch" / "TorchConfig.cmake").read_text()
        if found := re.search(r"_GLIBCXX_USE_CXX11_ABI=([01])", text):
            return found[1]
    return "1"


def main() -> None:
    """Build the library, or say why not."""
    try:
        print(ensure())
    except Unavailable as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
