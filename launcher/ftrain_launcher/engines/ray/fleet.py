"""The members of a job as Ray's actors: the placement group's, and those that come one by one."""

from __future__ import annotations

from typing import Any

from ftrain_launcher.engines.ray.member import Member
from ftrain_launcher.engines.ray.order import Order
from ftrain_launcher.engines.ray.placing import bundles, extras


class Fleet:
    """Owned by the supervisor; Ray ends all of it with that actor."""

    def __init__(self, order: Order, encoded: bytes, supervisor: Any) -> None:
        from ray.util.placement_group import placement_group

        self._order, self._encoded, self._supervisor = order, encoded, supervisor
        self._extras: dict[str, tuple[Any, Any, tuple[str, ...]]] = {}
        """Actor, what it returns at its end, and the machines that were closed to it."""
        self._count = 0
        name = f"ftrain-{order.name}"
        self._group = placement_group([order.share] * bundles(order), strategy="STRICT_SPREAD", name=name)
        self._members = [self._in_bundle(number) for number in range(bundles(order))]

    def _in_bundle(self, number: int) -> Any:
        """Ray starts it again, wherever its bundle is then, and calls its ``serve`` again."""
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        strategy = PlacementGroupSchedulingStrategy(self._group, placement_group_bundle_index=number)
        actor = self._start(f"bundle {number}", scheduling_strategy=strategy, max_restarts=-1, max_task_retries=-1)
        actor.serve.remote()
        return actor

    def _start(self, name: str, **options: Any) -> Any:
        import ray

        share = dict(self._order.share)
        amounts = {"num_cpus": share.pop("CPU", 0.0), "num_gpus": share.pop("GPU", 0.0), "resources": share}
        return ray.remote(Member).options(**amounts, **options).remote(name, self._encoded, self._supervisor)

    @property
    def grows(self) -> bool:
        """More may come than there are bundles."""
        return extras(self._order) > 0

    def ended(self) -> list[str]:
        """Those that came one by one and are gone, with their machines or by themselves."""
        import ray

        ends = {end: name for name, (_, end, _) in self._extras.items()}
        done, _ = ray.wait(list(ends), num_returns=len(ends), timeout=0) if ends else ([], [])
        gone = [ends[end] for end in done]
        for name in gone:
            del self._extras[name]
        return gone

    def grow(self, running: frozenset[str], closed: tuple[str, ...], aside: int) -> None:
        """Ask Ray for one more where the job is not yet, if more are wanted; it waits there for room.

        ``running``: members that have a machine; ``closed``: machines where another one is of no use; ``aside``:
        members that have no machine to themselves.
        """
        import ray

        waiting = [name for name in self._extras if name not in running]
        for name in waiting:
            if self._extras[name][2] == closed:
                return
            ray.kill(self._extras.pop(name)[0])
        if len(self._extras) < extras(self._order) + aside:
            self._count += 1
            name = f"extra {self._count}"
            # Which machines are meant by "elsewhere" changes: Ray does not start it again by itself.
            actor = self._start(name, label_selector={"ray.io/node-id": f"!in({','.join(closed)})"})
            self._extras[name] = actor, actor.serve.remote(), closed

    @property
    def extras(self) -> tuple[str, ...]:
        """Those that came one by one, or are to come."""
        return tuple(self._extras)

    def close(self) -> None:
        """Give the cluster's resources back."""
        import ray
        from ray.util.placement_group import remove_placement_group

        for actor in (*self._members, *(actor for actor, _, _ in self._extras.values())):
            ray.kill(actor)
        remove_placement_group(self._group)
