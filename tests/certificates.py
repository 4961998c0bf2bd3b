"""Certificates for tests of TLS, made by the openssl command; tests skip where there is none."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

_NEW_KEY = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]


@dataclass(frozen=True, kw_only=True)
class Certificates:
    """An authority, and one node's certificate of it."""

    certificate: Path
    key: Path
    authority: Path

    def arguments(self) -> list[str]:
        """For a daemon's command line."""
        return ["--tls-cert", str(self.certificate), "--tls-key", str(self.key), "--tls-ca", str(self.authority)]


def make_certificates(folder: Path) -> Certificates:
    """A new authority and a node's certificate, in ``folder``."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl command to make certificates with")
    folder.mkdir(parents=True, exist_ok=True)
    authority, node = folder / "ca.pem", folder / "node.pem"
    keys = {path: path.with_suffix(".key") for path in (authority, node)}
    _openssl(*_NEW_KEY, "-subj", "/CN=authority", "-keyout", keys[authority], "-out", authority)
    signed = ["-CA", authority, "-CAkey", keys[authority], "-addext", "basicConstraints=critical,CA:FALSE"]
    _openssl(*_NEW_KEY, *signed, "-subj", "/CN=node", "-keyout", keys[node], "-out", node)
    return Certificates(certificate=node, key=keys[node], authority=authority)


def _openssl(*arguments: object) -> None:
    command = ["openssl", "req", "-x509", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    if done.returncode:
        pytest.skip(f"this openssl command makes no certificates: {done.stderr.strip()[-200:]}")
