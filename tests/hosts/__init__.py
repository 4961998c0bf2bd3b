"""Hosts for tests: network, processes, name and shared memory of their own, on one machine (see `hosts.lab`)."""

from hosts.lab import Lab, LabError, unavailable

__all__ = ["Lab", "LabError", "unavailable"]
