"""What a Ray cluster is to run: made by the driver, read by supervisor and members. It crosses in JSON."""

from __future__ import annotations

import msgspec

NAMESPACE = "ftrain"
"""Of all supervisors: jobs are found by name, whoever started them."""


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """One job."""

    name: str
    options: tuple[str, ...]
    """Of `ftrain run`, as the user gave them."""
    script: tuple[str, ...]
    """The script, made absolute, and its arguments."""
    least: int
    most: int
    spares: int
    workers: int
    """On each node."""
    share: dict[str, float]
    """Ray's resources that a node of the job takes."""
    secret: str
    """What those know that may join; hex."""
    folder: str
    """The working folder, on every machine."""
    arena_folder: str
    variables: dict[str, str]
    """Of the environment, that `ftrain run` reads options from."""

    def difference(self, other: Order) -> str | None:
        """In what another order of the same name is for another job, in one word; None: in nothing."""
        for what, mine, theirs in (
            ("script", self.script[:1], other.script[:1]),
            ("its arguments", self.script[1:], other.script[1:]),
            ("--nnodes", (self.least, self.most), (other.least, other.most)),
            ("--nproc-per-node", self.workers, other.workers),
        ):
            if mine != theirs:
                return what
        return None

    def lead(self, host: str, port: int, secret_file: str) -> list[str]:
        """The words of `ftrain run` that run the controller."""
        return self._run("none", f"{host}:{port}", secret_file)

    def join(self, host: str, port: int, secret_file: str) -> list[str]:
        """The words of `ftrain run` that run a node."""
        return self._run("host", f"{host}:{port}", secret_file)

    def _run(self, engine: str, controller: str, secret_file: str) -> list[str]:
        """The user's own options, and what takes their place: of an option that is given twice, the last counts."""
        ours = ["--engine", engine, "--controller", controller, "--secret-file", secret_file]
        ours += ["--name", self.name, "--nproc-per-node", str(self.workers)]
        return ["run", *self.options, *ours, "--", *self.script]
