"""Python imports this at the start of a worker that was exec'd: it starts the recorder, and leaves no other trace.

The zygote's child puts this folder in front of PYTHONPATH. Here it is taken out again, from this interpreter and for
those that the script starts, and a ``sitecustomize`` of the user's own gets its turn.
"""

import os
import sys

_folder = os.path.dirname(__file__)
sys.path[:] = [entry for entry in sys.path if entry != _folder]
_rest = [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry != _folder]
if _rest:
    os.environ["PYTHONPATH"] = os.pathsep.join(_rest)
else:
    del os.environ["PYTHONPATH"]
_this = sys.modules.pop("sitecustomize")
try:
    import sitecustomize  # type: ignore[import-not-found]  # noqa: F401
except ModuleNotFoundError as error:
    if error.name != "sitecustomize":
        raise
finally:
    sys.modules.setdefault("sitecustomize", _this)  # the import of this file ends with a look at it
    from ftrain.comm import worker

    worker.start(build=True)
