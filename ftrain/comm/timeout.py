"""One timeout for all groups of a job.

torch gives every group that a script makes (`new_group`, `split_group`, device meshes) its own default, 30 minutes,
whatever `init_process_group` was told (FACTS 10). All of them, and `monitored_barrier`, ask one function of torch for
that default; under `ftrain run` it answers with the timeout of the default group. A timeout that the script
passes is never looked at here.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta

import torch.distributed as dist
from torch.distributed import distributed_c10d

_ASKED = "_get_default_timeout"
Default = Callable[[dist.Backend], timedelta]


def inherit_timeout(job_timeout_seconds: float | None) -> bool:
    """Let groups have the default group's timeout, and the default group the job's. Once per process.

    Args:
        job_timeout_seconds: None: the default group keeps torch's default, unless the script says otherwise.

    Returns:
        Whether this torch has the function (2.2 to 2.13 do); without it nothing changes.
    """
    ask_torch: Default | None = getattr(distributed_c10d, _ASKED, None)
    if ask_torch is None:
        return False
    job_timeout = None if job_timeout_seconds is None else timedelta(seconds=job_timeout_seconds)
    setattr(distributed_c10d, _ASKED, _inheriting(ask_torch, job_timeout))
    return True


def _inheriting(ask_torch: Default, job_timeout: timedelta | None) -> Default:
    def default_timeout(backend: dist.Backend) -> timedelta:
        if not dist.is_initialized():
            return job_timeout or ask_torch(backend)
        given = group_timeout(distributed_c10d._get_default_group())
        # torch's own default is nobody's wish: NCCL's differs from gloo's, and each keeps its own.
        if given is None or given == ask_torch(dist.Backend(dist.get_backend())):
            return ask_torch(backend)
        return given

    return default_timeout


def group_timeout(group: dist.ProcessGroup) -> timedelta | None:
    """The timeout that a group's operations have; None: its backends do not tell."""
    for device in group._device_types:
        with suppress(RuntimeError):  # no backend for this device
            timeout = getattr(getattr(group._get_backend(device), "options", None), "_timeout", None)
            if isinstance(timeout, timedelta):
                return timeout
    return None
