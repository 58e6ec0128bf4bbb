"""Dependencies run one way, heavy libraries stay in their place, and synthesis needs no torch."""

import ast
import graphlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "sctrt"

# Part of the package -> what it may know. A new part takes its place here; `TOP` may know all.
MAY_IMPORT = {
    "errors": set(),
    "units": set(),
    "attenuation": {"units"},
    "planes": set(),
    "files": set(),
    "ops": {"errors", "planes"},
    "layers": set(),
    "volume": {"errors"},
    "nifti": {"errors", "volume", "files"},
    "dicom": {"errors", "volume", "files"},
    "checks": {"errors", "volume"},
    "domain": set(),
    "bundle": {"errors", "files", "domain"},
    "ensemble_bundle": {"errors", "files", "bundle"},
    "timeline": {"files"},
    "device": {"errors", "ops", "timeline"},
    "preprocess": {"errors", "volume", "ops", "bundle", "device", "domain"},
    "model": {"errors", "units", "bundle", "preprocess", "files"},
    "gpus": set(),
    "engines": {"errors", "bundle", "device", "files", "gpus", "layers", "model", "ops", "planes", "preprocess"},
    "plan": {"errors", "planes", "bundle", "engines", "tiles"},
    "tiles": set(),
    "run": {"errors", "units", "planes", "ops", "bundle", "engines", "device", "preprocess", "plan", "tiles"},
    "orientation": {"volume"},
    "interfile": {"errors", "volume", "files", "orientation"},
    "mu_map": {"errors", "units", "volume", "attenuation", "preprocess"},
    "pipeline": {
        *("errors", "units", "attenuation", "planes", "volume", "nifti", "checks", "ops", "bundle", "preprocess"),
        *("engines", "device", "plan", "run", "mu_map", "timeline"),
    },
    "ensemble": {"errors", "volume", "bundle", "ensemble_bundle", "device", "pipeline", "timeline"},
    "physics": {"errors", "units", "volume", "attenuation"},
    "phantom": {"errors", "units", "volume"},
    "cases": {"errors", "volume", "nifti", "files", "checks", "phantom", "physics"},
    "evaluation": {
        *("errors", "volume", "attenuation", "units", "files", "nifti", "checks", "orientation", "preprocess"),
        *("ops", "phantom", "physics"),
    },
    "preview": {"errors", "volume", "units", "planes", "preprocess", "files", "evaluation"},
    "bench": {
        *(
            "errors",
            "units",
            "planes",
            "volume",
            "files",
            "checks",
            "ops",
            "bundle",
            "device",
            "engines",
            "gpus",
            "model",
        ),
        *("phantom", "pipeline", "preprocess"),
    },
    "training": {
        *("errors", "units", "planes", "volume", "nifti", "files", "ops", "bundle", "preprocess", "model"),
        *("attenuation", "cases", "checks", "domain", "ensemble_bundle", "phantom", "physics", "preview"),
    },
}
TOP = {"demo", "examine", "cli", "info", "__main__"}
# Called where the lower part is used only by the upper one's caller: Volume.save writes a NIfTI file.
MAY_IMPORT_LATE = {("volume", "nifti")}
# The one part of `engines` that knows the network in PyTorch.
ONLY_FROM = {("engines", "model"): "engines/torch.py"}

# Library -> the files that may import it; a name that ends in / is a folder.
HEAVY = {
    "torch": ("bench/", "model/", "training/", "physics/", "evaluation/", "engines/torch.py"),
    "lightning": ("training/",),
    "onnx": ("model/export.py", "engines/network.py"),
    "onnxscript": ("model/export.py",),
    "safetensors": ("model/",),
    "PIL": ("training/photographs.py",),
    "openvino": ("engines/openvino.py",),
    "onnxruntime": ("bench/plain.py", "engines/onnxruntime.py"),
    "monai": ("bench/plain.py", "bench/kernels/lookup.py"),
    "faiss": ("bench/kernels/lookup.py",),
    "tensorrt": ("engines/tensorrt.py",),
    "tensorrt_rtx": ("engines/tensorrt.py",),
    "cupy": ("bench/measure.py", "device.py"),
    "pydicom": ("dicom.py", "dicom/"),
    "matplotlib": (
        "bench/chart.py",
        "preview.py",
        "evaluation/figures.py",
        "evaluation/pet_figures.py",
        "training/previews.py",
    ),
    "typer": ("cli/",),
}
FILES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))


def part_of(file):
    return file.split("/")[0].removesuffix(".py")


def imports(file):
    """(dotted module, whether it is imported late) of each import; the package's own begin with `sctrt`."""
    tree = ast.parse((PACKAGE / file).read_text())

    def within(kind, condition=lambda node: True):
        outer = (node for node in ast.walk(tree) if isinstance(node, kind) and condition(node))
        return {id(inner) for node in outer for inner in ast.walk(node)}

    functions = within(ast.FunctionDef | ast.AsyncFunctionDef)
    type_checking = within(ast.If, lambda node: "TYPE_CHECKING" in ast.unparse(node.test))
    here = ["sctrt", *file.split("/")[:-1]]
    for node in ast.walk(tree):
        if id(node) in type_checking:
            continue
        late = id(node) in functions
        if isinstance(node, ast.Import):
            yield from ((alias.name, late) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = here[: len(here) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            if module == "sctrt":  # from . import x: x is the module
                yield from ((f"sctrt.{alias.name}", late) for alias in node.names)
            else:
                yield module, late


def test_the_parser_sees_imports():
    assert ("sctrt.bundle", False) in set(imports("pipeline.py"))
    assert ("sctrt.nifti", True) in set(imports("volume.py"))
    assert ("torch", False) in set(imports("engines/torch.py"))
    assert ("sctrt.engines", False) in set(imports("engines/openvino.py"))


def test_every_part_has_its_place():
    parts = {part_of(file) for file in FILES} - {"__init__"} - TOP
    assert parts <= MAY_IMPORT.keys(), f"say in MAY_IMPORT what {parts - MAY_IMPORT.keys()} may know"


def test_the_allowed_dependencies_have_no_circle():
    tuple(graphlib.TopologicalSorter(MAY_IMPORT).static_order())


@pytest.mark.parametrize("file", [file for file in FILES if part_of(file) not in {"__init__", *TOP}])
def test_a_part_knows_only_what_it_may(file):
    part = part_of(file)
    for module, late in imports(file):
        if not module.startswith("sctrt."):
            continue
        other = module.split(".")[1]
        if other in (part, "_native") or (late and (part, other) in MAY_IMPORT_LATE):
            continue
        assert other in MAY_IMPORT[part], f"sctrt/{file} must not import sctrt.{other}"
        assert ONLY_FROM.get((part, other), file) == file, f"sctrt/{file} must not import sctrt.{other}"


def test_only_ops_and_layers_know_the_native_module():
    users = {file for file in FILES for module, _ in imports(file) if module == "sctrt._native"}
    assert users == {"layers.py", "ops.py"}


@pytest.mark.parametrize("file", FILES)
def test_heavy_libraries_stay_in_their_place(file):
    for module, _ in imports(file):
        places = HEAVY.get(module.split(".")[0])
        if places is not None:
            allowed = any(file.startswith(place) if place.endswith("/") else file == place for place in places)
            assert allowed, f"sctrt/{file} must not import {module}"


BLOCKED = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked}:
            raise ModuleNotFoundError(f"{{name}} is blocked", name=name)

sys.meta_path.insert(0, Blocker())
"""
TRAINING_LIBRARIES = {"torch", "lightning", "pytorch_lightning", "onnx", "onnxscript", "safetensors", "diffusers"}


def run_blocked(script, blocked=TRAINING_LIBRARIES, *arguments):
    """Runs a script in a Python that cannot import some libraries; returns its last line as JSON."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", BLOCKED.format(blocked=sorted(blocked)) + script, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(PACKAGE.parent)},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_synthesis_runs_without_torch(tiny_bundle, nac_body, tmp_path):
    nac_body.pet().save(tmp_path / "pet.nii.gz")
    script = """
import json
import sctrt
result = sctrt.synthesize(sys.argv[1], model=sys.argv[2])
result.ct.save(sys.argv[3])
result.mu_map().save(sys.argv[4])
loaded = sorted({name.split(".")[0] for name in sys.modules})
print(json.dumps([result.report["runtime"]["name"], loaded]))
"""
    paths = tmp_path / "pet.nii.gz", tiny_bundle.path, tmp_path / "ct.nii.gz", tmp_path / "mu.nii.gz"
    runtime, loaded = run_blocked(script, TRAINING_LIBRARIES, *paths)
    assert runtime == "native"
    assert not TRAINING_LIBRARIES & set(loaded)
    assert (tmp_path / "ct.nii.gz").is_file() and (tmp_path / "mu.nii.gz").is_file()


def test_import_loads_no_runtime_and_nothing_heavy():
    script = """
import json
import sctrt
print(json.dumps(sorted({name.split(".")[0] for name in sys.modules})))
"""
    loaded = set(run_blocked(script, TRAINING_LIBRARIES | {"openvino", "onnxruntime", "matplotlib", "typer"}))
    assert loaded & HEAVY.keys() <= {"pydicom"}  # which nibabel imports where it is installed


def test_the_kernels_need_numpy_alone():
    script = """
import json
import numpy as np
from sctrt import ops
planes = ops.extract_planes(np.zeros((2, 3, 4), np.float32), "axial", 0, 2)
print(json.dumps(planes.shape))
"""
    core = {"nibabel", "scipy", "skimage", "pydantic", "openvino", "rich", "typer", "matplotlib"}
    assert run_blocked(script, TRAINING_LIBRARIES | core) == [2, 1, 3, 4]
