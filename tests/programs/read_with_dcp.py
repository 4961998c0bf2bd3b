"""Read a checkpoint as somebody does who has torch and no ftrain: read_with_dcp.py CHECKPOINT EXPECTED PLAIN.

EXPECTED is a file of what it must hold, PLAIN is written by torch's own conversion. Prints "same".
"""

import sys
import warnings


class Barred:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0].startswith("ftrain"):
            raise ImportError("ftrain is not installed")


sys.meta_path.insert(0, Barred())
warnings.simplefilter("ignore")

import numpy  # noqa: E402
import torch  # noqa: E402
import torch.distributed.checkpoint as dcp  # noqa: E402
from torch.distributed.checkpoint._fsspec_filesystem import FsspecReader  # noqa: E402
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save  # noqa: E402

path, expected_file, plain = sys.argv[1:]
expected = torch.load(expected_file, weights_only=False)


def blank(value):
    if isinstance(value, torch.Tensor):
        return torch.zeros_like(value)
    if isinstance(value, dict):
        return type(value)((k, blank(v)) for k, v in value.items())
    return [blank(v) for v in value] if isinstance(value, list) else value if isinstance(value, tuple) else None


def check(got, want, where):
    if isinstance(want, torch.Tensor):
        assert got.dtype == want.dtype, where
        assert got.shape == want.shape, where
        assert got.contiguous().view(-1).view(torch.uint8).equal(want.contiguous().view(-1).view(torch.uint8)), where
    elif isinstance(want, numpy.ndarray):
        assert got.dtype == want.dtype, where
        assert (got == want).all(), where
    elif isinstance(want, dict):
        for key in want:  # DCP puts what was under 1 back under "1", and says nothing of what is empty
            if not (isinstance(want[key], dict) and not want[key]):
                check(got[str(key) if str(key) in got else key], want[key], f"{where}.{key}")
    elif isinstance(want, list | tuple):
        assert len(got) == len(want), where
        for i, value in enumerate(want):
            check(got[i], value, f"{where}[{i}]")
    else:
        assert got == want, (where, got, want)
        assert type(got) is type(want), (where, got, want)


for reader in (None, FsspecReader(path)):
    state = blank(expected)
    dcp.load(state, checkpoint_id=path if reader is None else None, storage_reader=reader)
    check(state, expected, "")
only = {"model": blank(expected["model"])}
dcp.load(only, checkpoint_id=path)
check(only["model"], expected["model"], "model")
dcp_to_torch_save(path, plain)
check(torch.load(plain, weights_only=False), expected, "")
assert not [name for name in sys.modules if name.startswith("ftrain")]
print("same")
