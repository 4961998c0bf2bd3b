"""The durable tier: a protected snapshot, read from the nodes' memory, becomes a DCP checkpoint on storage.

`writer` runs beside the training on every node, as a process of its own at low priority; `reader` is how a job resumes
from what it wrote when memory is gone. Names, listing and retention need no torch: `ftrain_snapshot.storage`.
"""
