"""Fixtures that several test files share."""

import os
import sys

import numpy as np
import pytest
from hypothesis import settings

# A busy machine is no failure; a continuous-integration run is the same every time.
settings.register_profile("sctrt", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("sctrt")


@pytest.fixture
def rng():
    return np.random.default_rng(20240)


class OnGpu:
    """Puts NumPy arrays on the GPU and takes them back, with CuPy or PyTorch, whichever is there."""

    def __init__(self, library):
        self.library = library
        self.name = library.__name__

    def put(self, array):
        array = np.ascontiguousarray(array)
        return self.library.from_numpy(array).cuda() if self.name == "torch" else self.library.asarray(array)

    def get(self, array):
        return array.cpu().numpy() if self.name == "torch" else self.library.asnumpy(array)


@pytest.fixture(params=["torch", "cupy"])
def gpu(request):
    """A GPU through one array library. Without one the test is skipped, or fails where SCTRT_REQUIRE_CUDA=1."""
    from sctrt import ops

    required = os.environ.get("SCTRT_REQUIRE_CUDA") == "1"
    if ops.cuda_device_count() == 0:
        give_up("no GPU that the kernels can use", required)
    if request.param not in sys.modules:
        try:
            __import__(request.param)
        except ImportError:
            pytest.skip(f"{request.param} is not installed")
    library = sys.modules[request.param]
    if request.param == "torch" and not library.cuda.is_available():
        give_up("this PyTorch has no CUDA", required)
    return OnGpu(library)


def give_up(reason, required):
    (pytest.fail if required else pytest.skip)(reason)
