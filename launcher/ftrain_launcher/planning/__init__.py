"""What a job's snapshots will cost, and how likely they are to be enough.

`formulas` are pure mathematics; `model` puts a job and its rivals into them; `rates` are figures that others published
or that we measured; `measure` takes one here; `table` and `plot` show it. Nothing here knows of a job that runs.
"""
