"""Processes: the zygote that forks workers, the hold on them, their environment and their output."""
