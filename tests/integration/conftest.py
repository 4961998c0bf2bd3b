"""What several integration tests begin with."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from certificates import Certificates, make_certificates
from integration.worker_node import Forker


@pytest.fixture(scope="module")
def forker() -> Iterator[Forker]:
    """Has torch imported once for all ranks of a module."""
    forker = Forker()
    yield forker
    forker.close()


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """Of one authority."""
    return make_certificates(tmp_path_factory.mktemp("certificates"))
