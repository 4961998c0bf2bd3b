"""``ftrain trace``: the last steps of all ranks, out of their rings, as a file for Perfetto."""
