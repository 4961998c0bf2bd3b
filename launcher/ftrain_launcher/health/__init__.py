"""Checking nodes: what to measure with whom (`schedule`), what it says (`judge`, `links`), and the asking (`round`)."""
