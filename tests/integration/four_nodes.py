"""Four real daemons, in a new generation for each test."""

from snapshot_nodes import Cluster, cluster_root

SIZE = 4_300_000
"""Five chunks, the last one short."""


def four_nodes():
    """With two lanes each."""
    folder = cluster_root()
    cluster = Cluster(next(folder), 4, lanes=2)
    yield cluster
    cluster.stop()
    next(folder, None)


def new_generation(nodes):
    """Four nodes in a new generation that starts from nothing."""
    for position, node in enumerate(nodes.nodes):
        if node.process.poll() is not None:
            nodes.replace(position)
    nodes.configure()
    nodes.wait_restored()
    nodes.reserve(SIZE)
    return nodes
