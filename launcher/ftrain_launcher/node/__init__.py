"""What runs on a node: the agent, and what it does with the node's workers, store and daemon."""
