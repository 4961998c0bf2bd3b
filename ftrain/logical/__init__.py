"""State described by what it is, not by who holds it; and what a rank of one world reads from another's.

`axes` cuts a dimension, `placements` a tensor over a mesh, `rules` is the layout language; `state` is the description,
`live` makes it of live objects, and is the only one here that loads torch. `coverage` checks a world before it is
trusted; `reads` plans, by the copies of `blocks`; `scatter` puts the bytes in place. docs/resharding.md.
"""
