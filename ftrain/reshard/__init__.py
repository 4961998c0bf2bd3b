"""From a snapshot of one world to the objects of another: what a rank reads from whom, and how its objects get it.

`describer` says at capture what each rank holds (ftrain/logical); `origin` reads what all old ranks said (`said`), and
gives verified bytes; `filling` carries out a plan of reads; `values` is about what is no tensor; `restoring` brings it
together for a rank's tracked objects; `certificate` proves the result before a step is taken. `storage` gives the same
reads to ``torch.distributed.checkpoint``. docs/resharding.md.
"""
