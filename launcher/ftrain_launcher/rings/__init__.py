"""Reads the rings of a node's workers, from outside and without torch, and reports how far each rank is."""
