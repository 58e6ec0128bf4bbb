"""Fixtures that several test files share."""

import itertools
import os
import shutil
import sys

import nibabel
import numpy as np
import pytest
from hypothesis import settings
from nibabel.orientations import apply_orientation, inv_ornt_aff

import shim

LPS_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
BODY_CENTRE = np.array([12.0, -25.0, 310.0])  # LPS mm
ORIENTATIONS = [  # all 48 ways to store the axes of a volume, as nibabel's (axis, direction) pairs
    np.array(list(zip(axes, flips, strict=True)))
    for axes in itertools.permutations(range(3))
    for flips in itertools.product((1, -1), repeat=3)
]

# A busy machine is no failure; a continuous-integration run is the same every time.
settings.register_profile("sctrt", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("sctrt")

# Another build of the kernels, of csrc/shim and with sanitizers for instance (.ci/run), in place of the installed one.
if "SCTRT_NATIVE" in os.environ:
    sys.modules["sctrt._native"] = shim.load(os.environ["SCTRT_NATIVE"], "sctrt._native")


@pytest.fixture
def rng():
    return np.random.default_rng(20240)


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs `sctrt ARGS` in this process; returns (exit code, standard output, standard error)."""

    from sctrt import cli

    def call(*args):
        monkeypatch.setattr(sys, "argv", ["sctrt", *map(str, args)])
        try:
            cli.main()
            code = 0
        except SystemExit as stop:
            code = stop.code or 0
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


class OnGpu:
    """Puts NumPy arrays on the GPU and takes them back, with CuPy or PyTorch, whichever is there."""

    def __init__(self, library):
        self.library = library
        self.name = library.__name__

    def put(self, array):
        array = np.ascontiguousarray(array)
        if self.name != "torch":
            return self.library.asarray(array)
        if array.dtype.name == "bfloat16":  # which torch does not take from NumPy
            return self.library.from_numpy(array.view(np.int16)).cuda().view(self.library.bfloat16)
        return self.library.from_numpy(array).cuda()

    def get(self, array):
        if self.name != "torch":
            return self.library.asnumpy(array)
        if array.dtype == self.library.bfloat16:
            import ml_dtypes

            return array.view(self.library.int16).cpu().numpy().view(ml_dtypes.bfloat16)
        return array.cpu().numpy()


@pytest.fixture(params=["torch", "cupy", "shim"])
def gpu(request):
    """A GPU through one array library, or the CUDA kernels on the CPU through the shim, by arrays that pass for CuPy's.

    Without a GPU the first two are skipped, or fail where SCTRT_REQUIRE_CUDA=1.
    """
    if request.param == "shim":
        return request.getfixturevalue("shim_gpu")
    from sctrt import ops

    required = os.environ.get("SCTRT_REQUIRE_CUDA") == "1"
    if ops.cuda_device_count() == 0:
        give_up("no GPU that the kernels can use", required)
    if request.param not in sys.modules:
        try:
            __import__(request.param)
        except ImportError:
            give_up(f"{request.param} is not installed", required)
    library = sys.modules[request.param]
    if request.param == "torch" and not library.cuda.is_available():
        give_up("this PyTorch has no CUDA", required)
    if request.param == "cupy":
        library.cuda.set_allocator(None)  # no pool: compute-sanitizer sees where each array ends
    return OnGpu(library)


@pytest.fixture
def shim_gpu(monkeypatch):
    """Two GPUs that are the CPU; threads and blocks run in a scattered order."""
    from sctrt import ops

    if shim.missing_tools():
        pytest.skip(f"the CUDA kernels cannot be compiled for the CPU without {', '.join(shim.missing_tools())}")
    cupy = shim.stand_in_for_cupy()
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    monkeypatch.setattr(ops, "_native", shim.shim().native)
    shim.shim().reset(shim.DEVICES, shim.SEED)
    shim.memory.reset()
    yield OnGpu(cupy)
    shim.shim().reset(0, 0)


def give_up(reason, required):
    (pytest.fail if required else pytest.skip)(reason)


class NacBody:
    """A smooth torso-like PET, known at every point of space, so that it can be sampled on any grid."""

    semi_axes = np.array([60.0, 50.0, 70.0])  # mm
    level = 5000.0  # Bq/ml of muscle

    def at(self, points):
        """Activity [Bq/ml] at LPS points [..., 3] in mm; no mirror or turn leaves it as it is."""
        x, y, z = np.moveaxis(points - BODY_CENTRE, -1, 0)

        def blob(centre, radii, edge=0.12):
            distance = np.sqrt(sum(((a - c) / r) ** 2 for a, c, r in zip((x, y, z), centre, radii, strict=True)))
            return 1 / (1 + np.exp(np.clip((distance - 1) / edge, -50, 50)))

        texture = 1 + 0.08 * np.sin(x / 4) * np.sin(y / 5 + 1) * np.cos(z / 4.5)
        activity = blob((0, 0, 0), self.semi_axes, edge=0.05) * texture
        lungs = blob((24, -5, 20), (18, 22, 30)) + blob((-24, -5, 20), (18, 22, 30))
        liver, lesion = blob((-25, 5, -35), (25, 25, 20)), blob((10, 20, -10), (6, 6, 6))
        return (self.level * (activity * (1 - 0.5 * lungs) + 0.8 * liver + 2 * lesion)).astype(np.float32)

    def pet(self, shape=(40, 40, 40), spacing=(4.0, 4.0, 4.0), turn=None):
        """A Volume of the body in the middle of an LPS grid.

        Args:
            shape: (z, y, x).
            spacing: (x, y, z) [mm].
            turn: [3, 3] rotation of the grid.
        """
        from sctrt import Volume

        affine = np.eye(4)
        affine[:3, :3] = (np.eye(3) if turn is None else turn) * spacing
        affine[:3, 3] = BODY_CENTRE - affine[:3, :3] @ ((np.array(shape[::-1]) - 1) / 2)
        index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij")[::-1], axis=-1)
        return Volume(self.at(index @ affine[:3, :3].T + affine[:3, 3]), affine, "Bq/ml")

    def ct(self, pet):
        """A CT on the PET's grid [HU]: soft tissue where the PET is high, lung where it is low, air outside."""
        from sctrt import Volume

        ratio = pet.array / self.level
        hu = np.select([ratio > 2, ratio > 0.75, ratio > 0.3], [400.0, 40.0, -750.0], -1000.0).astype(np.float32)
        return Volume(hu, pet.affine, "HU")

    def save_case(self, folder, pet):
        """A case folder as `sctrt train` takes it: the PET, and the CT on its grid."""
        folder.mkdir(parents=True)
        pet.save(folder / "nac.nii.gz")
        self.ct(pet).save(folder / "ct.nii.gz")


@pytest.fixture(scope="session")
def nac_body():
    return NacBody()


@pytest.fixture(scope="module")
def one_thread():
    """Sums that several threads share are rounded as the threads happen to run; equal runs need one."""
    torch = pytest.importorskip("torch")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def as_nibabel(volume, orientation=None):
    """A Volume as a nibabel image, its axes permuted and flipped in storage but not in space."""
    array, affine = volume.array.T, LPS_RAS @ volume.affine
    if orientation is not None:
        affine = affine @ inv_ornt_aff(orientation, array.shape)
        array = apply_orientation(array, orientation)
    return nibabel.Nifti1Image(array, affine)


def random_model(seed=0, **architecture):
    """A small network with random weights whose codebook is spread as its latents are, so that many codes are used."""
    pytest.importorskip("torch")
    from sctrt.bundle import Architecture
    from sctrt.model.untrained import untrained

    return untrained(Architecture(**{"channels": 8, "blocks": 1, "groups": 4, "codes": 64, **architecture}), seed)


@pytest.fixture(scope="session")
def tiny_model():
    """Three equal grey channels in, three to be averaged out, as a published vq-f4 has them."""
    return random_model()


@pytest.fixture(scope="session")
def tiny_bundle(tiny_model, tmp_path_factory):
    """A bundle of random weights, one grey channel, fp32. Do not write to it: see `bundle_copy`."""
    from sctrt.bundle import Normaliser
    from sctrt.model.export import export_bundle

    path = tmp_path_factory.mktemp("bundles") / "tiny.sctrt"
    return export_bundle(tiny_model, path, spacing_mm=4.0, normaliser=Normaliser(), training={"steps": 0})


@pytest.fixture(scope="session")
def scales_model():
    """PET at three scales in, one channel out."""
    return random_model(output_channels=1)


@pytest.fixture(scope="session")
def scales_bundle(scales_model, tmp_path_factory):
    """A bundle of random weights, PET at three scales, weights stored in fp16. Do not write to it."""
    from sctrt.bundle import Normaliser
    from sctrt.model.export import export_bundle

    path = tmp_path_factory.mktemp("bundles") / "scales.sctrt"
    normaliser = Normaliser(scales=(0, 1, 2))
    return export_bundle(
        scales_model, path, spacing_mm=4.0, normaliser=normaliser, training={"steps": 0}, half_weights=True
    )


@pytest.fixture
def bundle_copy(tiny_bundle, tmp_path):
    """The folder of a bundle that a test may damage."""
    return shutil.copytree(tiny_bundle.path, tmp_path / "copy.sctrt")
