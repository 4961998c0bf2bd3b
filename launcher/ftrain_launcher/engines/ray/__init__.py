"""Nodes on a Ray cluster: Ray chooses the machines, each then runs what a real host runs (docs/ray.md).

    driver.py      `ftrain run --engine ray`: starts the supervisor, shows what is said, ends as the job does
    supervisor.py  a detached actor: runs the controller's launcher, places the members, keeps their last words
    fleet.py       all members, as actors: a placement group, and those that come later
    member.py      an actor on each machine: runs a host's launcher, anew where that is of use
    kept.py        a launcher as those two have it: a process under a guard, whose lines are read
    guard.py       that guard, a process of its own: nothing of a launcher outlives its actor
    order.py       what is to be run
    placing.py     pure: what is asked of Ray, who may run where
    window.py      pure: the newest lines

Ray itself is imported in functions only: no other command, and no process of a node, ever loads it.
"""
