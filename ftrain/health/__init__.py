"""What a node can do, measured in a process of its own: ``python -m ftrain.health``, started by the node's agent.

It reads tasks from stdin, one JSON document a line, answers each on stdout, and ends with its stdin. It imports torch
once, for all tasks of a round; agents, which must not, only hand tasks and answers (`words.py`) through.
"""
