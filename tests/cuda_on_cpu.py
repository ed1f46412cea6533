"""Text of CUDA kernels in; the same as C++ out, called on NumPy's arrays as CuPy calls them."""

import ctypes
import re
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import numpy as np
import pytest

_HEADER = Path(__file__).with_suffix(".h")
_NAME = re.compile(r'extern "C" __global__ void (?:__launch_bounds__\(\w+\) )?(\w+)\(')
# No fused products, as numba has none: results differ by rounding alone. No checks of longjmp,
# which take the stack of another thread for a mistake.
_FLAGS = "-O2", "-shared", "-fPIC", "-ffp-contract=off", "-U_FORTIFY_SOURCE", "-fno-gnu-unique"


@cache
def compiled(code, options):
    """Library of the kernels, made by g++."""
    if shutil.which("g++") is None:
        pytest.skip("needs g++")
    table = ", ".join(f"KERNEL({name})" for name in _NAME.findall(code))
    text = f'#include "{_HEADER}"\n#line 1 "kernels.cu"\n{code}\n'
    text += f"const std::vector<Kernel> kernels{{{table}}};\n"
    with tempfile.TemporaryDirectory() as folder:
        source, library = Path(folder, "kernels.cpp"), Path(folder, "kernels.so")
        source.write_text(text)
        command = ["g++", *_FLAGS, *options, "-o", library, source]
        subprocess.run(command, check=True, timeout=120)  # noqa: S603
        loaded = ctypes.CDLL(str(library))
    loaded.kinds.restype = ctypes.c_char_p
    return loaded


class Module:
    """CuPy's RawModule; `seed` draws the order of blocks, and of threads between barriers."""

    def __init__(self, *, code, options=(), seed=0):
        self.code, self.options, self.seed = code, options, seed

    def get_function(self, name):
        return Kernel(self, name)


class Kernel:
    """CuPy's RawKernel, but that it refuses arguments which are not the parameters'."""

    def __init__(self, module, name):
        self._library = compiled(module.code, module.options)
        kinds = self._library.kinds(name.encode())
        if kinds is None:
            raise KeyError(name)
        self._name, self._seed, self.kinds = name, module.seed, kinds.decode().split()

    def __call__(self, grid, block, args, *, shared_mem=0):
        if shared_mem or len(grid) != 1 or len(block) != 1:
            raise NotImplementedError("only static shared memory, and one dimension")
        if len(args) != len(self.kinds):
            raise TypeError(f"{self._name} has {len(self.kinds)} parameters: {len(args)} given")
        held = []  # each argument's value: of an array its address
        for number, (kind, arg) in enumerate(zip(self.kinds, args, strict=True)):
            if given(arg) != kind:
                raise TypeError(f"argument {number} of {self._name} is {given(arg)}, not {kind}")
            if isinstance(arg, np.ndarray):
                if not arg.flags.c_contiguous:
                    raise TypeError(f"argument {number} of {self._name} is not contiguous")
                arg = np.uintp(arg.ctypes.data)
            held.append(np.array(arg))
        pointers = (ctypes.c_void_p * len(held))(*(value.ctypes.data for value in held))
        line = self._library.launch(self._name.encode(), *grid, *block, self._seed, pointers)
        if line:
            raise RuntimeError(f"not all threads of a block meet in line {line}")


def given(arg):
    """What an argument is, as the kernels' parameters are written; None for what CuPy takes not."""
    if not isinstance(arg, np.ndarray | np.generic):
        return None
    kind = "u1" if arg.dtype == bool else f"{arg.dtype.kind}{arg.dtype.itemsize}"
    return f"*{kind}" if isinstance(arg, np.ndarray) else kind
