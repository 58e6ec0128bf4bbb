"""The command line as a user meets it: exit codes, one clear paragraph, nothing half written."""

import gzip
import json
import re
import shutil

import nibabel
import numpy as np
import pytest

from conftest import as_nibabel
from sctrt import nifti


@pytest.fixture
def pet_file(nac_body, tmp_path):
    path = tmp_path / "nac.nii.gz"
    nac_body.pet().save(path)
    return path


def leftovers(folder, *known):
    return sorted(p.name for p in folder.iterdir() if p.name not in known)


def test_synthesize_writes_every_output_on_the_pets_grid(run, pet_file, tiny_bundle, tmp_path):
    names = ["ct.nii.gz", "mu.nii", "u.nii.gz", "p.png", "r.json"]
    ct, mu, uncertainty, preview, report = (tmp_path / name for name in names)
    code, _, said = run(
        *("synthesize", pet_file, "-o", ct, "--model", tiny_bundle.path, "--mu-map", mu, "--uncertainty", uncertainty),
        *("--preview", preview, "--report", report),
    )
    assert code == 0, said
    assert leftovers(tmp_path, pet_file.name) == sorted(names)
    assert "ot for clinical use" in said
    pet = nibabel.load(pet_file)
    for path in (ct, mu, uncertainty):
        image = nibabel.load(path)
        assert image.shape == pet.shape
        np.testing.assert_array_equal(image.affine, pet.affine)
    assert nifti.load(mu).array.min() >= 0
    assert preview.read_bytes()[:4] == b"\x89PNG"
    facts = json.loads(report.read_text())
    assert facts["runtime"]["name"] == "native"
    assert facts["model"]["fingerprint"] == tiny_bundle.fingerprint
    assert facts["seconds"]["total"] > 0


def test_synthesize_without_a_terminal_prints_plain_lines(run, pet_file, tiny_bundle, tmp_path):
    _, _, said = run("synthesize", pet_file, "-o", tmp_path / "ct.nii.gz", "--model", tiny_bundle.path)
    assert "axial: started" in said and "sagittal: done" in said
    assert "\x1b[" not in said


def four_dimensional(path, pet):
    nibabel.save(nibabel.Nifti1Image(np.ones((12, 12, 12, 3), np.float32), np.diag([4, 4, 4, 1.0])), path)


def two_dimensional(path, pet):
    nibabel.save(nibabel.Nifti1Image(np.ones((12, 12), np.float32), np.diag([4, 4, 4, 1.0])), path)


def one_slice(path, pet):
    nibabel.save(nibabel.Nifti1Image(pet[:, :, :1], np.diag([4, 4, 4, 1.0])), path)


def with_nan(path, pet):
    pet[5, 5, 5] = np.nan
    nibabel.save(nibabel.Nifti1Image(pet, np.diag([4, 4, 4, 1.0])), path)


def all_zero(path, pet):
    nibabel.save(nibabel.Nifti1Image(np.zeros_like(pet), np.diag([4, 4, 4, 1.0])), path)


def not_nifti(path, pet):
    path.write_text("hello")


def truncated(path, pet):
    nibabel.save(nibabel.Nifti1Image(pet, np.diag([4, 4, 4, 1.0])), path)
    path.write_bytes(path.read_bytes()[:-2000])


def singular(path, pet):
    raw = bytearray(nibabel.Nifti1Image(pet, np.diag([4, 4, 4, 1.0])).to_bytes())
    raw[312:328] = raw[296:312]  # srow_z = srow_y
    path.write_bytes(gzip.compress(raw))


def a_ct(path, pet):
    nibabel.save(nibabel.Nifti1Image((pet / pet.max() * 1500 - 1000), np.diag([4, 4, 4, 1.0])), path)


def tiny_body(path, pet):
    nibabel.save(nibabel.Nifti1Image(pet, np.diag([0.9, 0.9, 0.9, 1.0])), path)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (four_dimensional, "4D|four|three-dimensional"),
        (two_dimensional, "2D|three-dimensional"),
        (one_slice, "single slice"),
        (with_nan, "NaN|finite"),
        (all_zero, "zero|constant"),
        (not_nifti, "NIfTI"),
        (truncated, "breaks off"),
        (singular, "singular|affine"),
        (a_ct, "CT|HU|negative"),
        (tiny_body, "body|ml|mm"),
    ],
)
def test_unfit_input_is_refused_with_one_paragraph_and_nothing_written(
    run, spoil, reason, nac_body, tiny_bundle, tmp_path
):
    path = tmp_path / "bad.nii.gz"
    spoil(path, np.ascontiguousarray(as_nibabel(nac_body.pet()).get_fdata(dtype=np.float32)))
    output = tmp_path / "ct.nii.gz"
    output.write_bytes(b"an older result")
    code, _, said = run("synthesize", path, "-o", output, "--model", tiny_bundle.path, "--report", tmp_path / "r.json")
    assert code == 3, said
    assert len(said.strip().splitlines()) == 1 and "Traceback" not in said
    assert re.search(reason, said), said
    assert output.read_bytes() == b"an older result"
    assert leftovers(tmp_path, "bad.nii.gz", "ct.nii.gz") == []


def test_missing_file_is_refused(run, tmp_path):
    code, _, said = run("synthesize", tmp_path / "absent.nii.gz", "-o", tmp_path / "ct.nii.gz")
    assert code == 3 and "absent.nii.gz" in said and "no such file" in said


def test_a_changed_manifest_is_refused(run, pet_file, bundle_copy, tmp_path):
    manifest = json.loads((bundle_copy / "manifest.json").read_text())
    manifest["normaliser"]["exponent"] = 3.0
    (bundle_copy / "manifest.json").write_text(json.dumps(manifest))
    code, _, said = run("synthesize", pet_file, "-o", tmp_path / "ct.nii.gz", "--model", bundle_copy)
    assert code == 3 and "manifest.json" in said and "changed" in said


@pytest.mark.parametrize("name", ["encoder.onnx", "decoder.onnx", "codebook.npy", "weights.safetensors"])
def test_a_bundle_with_a_changed_byte_is_refused(run, pet_file, bundle_copy, tmp_path, name):
    content = bytearray((bundle_copy / name).read_bytes())
    content[len(content) // 2] ^= 1
    (bundle_copy / name).write_bytes(content)
    code, _, said = run("synthesize", pet_file, "-o", tmp_path / "ct.nii.gz", "--model", bundle_copy)
    assert code == 3 and name in said and "SHA-256" in said
    assert not (tmp_path / "ct.nii.gz").exists()


def test_a_bundle_of_a_newer_format_is_refused(run, pet_file, bundle_copy, tmp_path):
    manifest = json.loads((bundle_copy / "manifest.json").read_text())
    (bundle_copy / "manifest.json").write_text(json.dumps({**manifest, "format_version": 99, "new": 1}))
    code, _, said = run("synthesize", pet_file, "-o", tmp_path / "ct.nii.gz", "--model", bundle_copy)
    assert code == 3 and "99" in said and "upgrade" in said


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["-o", "ct.png"], "nii"),
        (["-o", "ct.nii.gz", "--preview", "p.jpg"], "png"),
        (["-o", "missing/ct.nii.gz"], "cannot be written"),
        (["-o", "nac.nii.gz"], "is the input"),
        (["-o", "sub/../nac.nii.gz"], "is the input"),
        (["-o", "linked/nac.nii.gz"], "is the input"),
        (["-o", "ct.nii.gz", "--mu-map", "ct.nii.gz"], "same name"),
        (["-o", "ct.nii.gz", "--uncertainty", "sub/../ct.nii.gz"], "same name"),
        (["-o", "ct.nii.gz", "--uncertainty", "linked/ct.nii.gz"], "same name"),
        (["-o", "ct.nii.gz", "--kvp", "90"], "--kvp"),
        (["-o", "ct.nii.gz", "--fusion", "axial", "--uncertainty", "u.nii.gz"], "three planes"),
        ([], "output"),
    ],
)
def test_wrong_usage_ends_with_2_before_any_work(run, pet_file, tmp_path, monkeypatch, options, reason):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    (tmp_path / "linked").symlink_to(tmp_path)
    before = pet_file.read_bytes()
    code, _, said = run("synthesize", pet_file, *options)
    assert code == 2 and reason in " ".join(said.replace("│", " ").split())
    assert pet_file.read_bytes() == before


@pytest.mark.parametrize("options", [["--fusion", "mode"], ["--runtime", "tflite"], ["--device", "tpu"]])
def test_unknown_choices_end_without_a_traceback(run, pet_file, tiny_bundle, tmp_path, options):
    arguments = ["synthesize", pet_file, "-o", tmp_path / "ct.nii.gz", "--model", tiny_bundle.path, *options]
    code, _, said = run(*arguments)
    assert code == 2 and options[1] in said and "Traceback" not in said


def test_debug_shows_the_traceback(run, tmp_path):
    with pytest.raises(Exception, match="no such file"):
        run("--debug", "synthesize", tmp_path / "absent.nii.gz", "-o", tmp_path / "ct.nii.gz")


def test_info_names_kernels_runtimes_and_choice(run):
    code, out, _ = run("info", "--json")
    facts = json.loads(out)
    assert code == 0
    assert facts["chosen"]["cpu"].startswith("native")
    assert facts["kernels"]["compiler"]
    assert run("info")[0] == 0


def test_simulate_writes_a_case_that_synthesize_takes(run, tiny_bundle, tmp_path):
    pytest.importorskip("torch")
    case = tmp_path / "case"
    code, _, said = run("simulate", "-o", case, "--seed", 3, "--voxel-mm", 10, "--region", "torso")
    assert code == 0, said
    assert leftovers(case) == ["activity.nii.gz", "ct.nii.gz", "labels.nii.gz", "meta.json", "nac.nii.gz"]
    assert json.loads((case / "meta.json").read_text())["seed"] == 3
    grids = {nibabel.load(case / f"{name}.nii.gz").affine.tobytes() for name in ("nac", "ct", "activity", "labels")}
    assert len(grids) == 1
    code, _, said = run("synthesize", case / "nac.nii.gz", "-o", tmp_path / "ct.nii.gz", "--model", tiny_bundle.path)
    assert code == 0, said


def test_simulate_takes_person_and_scan(run, tmp_path):
    pytest.importorskip("torch")
    case = tmp_path / "case"
    scan = ("--counts-per-slice", 1e5, "--scatter-fraction", 0.2)
    code, _, said = run(
        *("simulate", "-o", case, "--voxel-mm", 12, "--region", "torso", "--arms", "up", "--bmi", 30, *scan)
    )
    assert code == 0, said
    meta = json.loads((case / "meta.json").read_text())
    assert (meta["counts_per_slice"], meta["scatter_fraction"]) == (1e5, 0.2)
    assert (meta["phantom"]["arms"], meta["phantom"]["bmi"]) == ("up", 30)


@pytest.mark.parametrize(
    "options",
    [
        *(["--voxel-mm", 99], ["--region", "leg"], ["--tof-ps", -5], ["--bmi", 60], ["--arms", "crossed"]),
        *(["--counts-per-slice", 0], ["--scatter-fraction", 1.0], ["--ct", "any.nii.gz", "--bmi", 30]),
    ],
)
def test_simulate_refuses_wrong_options_with_2(run, tmp_path, options):
    pytest.importorskip("torch")
    code, _, said = run("simulate", "-o", tmp_path / "case", *options)
    assert code == 2 and "Traceback" not in said
    assert not (tmp_path / "case").exists()


def test_simulate_does_not_write_over_its_ct(run, tmp_path):
    pytest.importorskip("torch")
    path = tmp_path / "ct.nii.gz"
    a_ct(path, np.ones((9, 9, 9)))
    before = path.read_bytes()
    code, _, said = run("simulate", "-o", tmp_path, "--ct", path)
    assert code == 2 and "is the input" in " ".join(said.replace("│", " ").split())
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_simulate_refuses_a_ct_that_is_none(run, tmp_path):
    pytest.importorskip("torch")
    path = tmp_path / "pet.nii.gz"
    tiny_body(path, np.random.default_rng(0).random((40, 40, 40), np.float32))
    code, _, said = run("simulate", "-o", tmp_path / "case", "--ct", path)
    assert code == 3 and "expected the CT in HU" in said and not (tmp_path / "case").exists()


def test_simulate_refuses_a_ct_without_a_body(run, tmp_path):
    pytest.importorskip("torch")
    path = tmp_path / "air.nii.gz"
    nibabel.save(nibabel.Nifti1Image(np.full((30, 30, 30), -1000, np.int16), np.diag([4, 4, 4, 1.0])), path)
    code, _, said = run("simulate", "-o", tmp_path / "case", "--ct", path)
    assert code == 3 and "body" in said


def test_export_refuses_what_is_no_checkpoint(run, tmp_path):
    pytest.importorskip("torch")
    (tmp_path / "x.ckpt").write_text("hello")
    code, _, said = run("export", tmp_path / "x.ckpt", "-o", tmp_path / "x.sctrt")
    assert code == 3 and "x.ckpt" in said
    assert leftovers(tmp_path, "x.ckpt") == []


def test_export_refuses_a_cohort_that_is_not_there(run, tmp_path):
    pytest.importorskip("torch")
    (tmp_path / "x.ckpt").write_text("hello")
    code, _, said = run("export", tmp_path / "x.ckpt", "-o", tmp_path / "x.sctrt", "--cohort", tmp_path / "none")
    assert code == 2 and "--cohort" in said


def test_demo_compares_with_trivial_guesses(run, tmp_path, monkeypatch, tiny_bundle):
    """With a tiny network and a coarse body: the files and the table are there; the quality is no matter here."""
    pytest.importorskip("torch")
    import sctrt.bundle
    import sctrt.demo

    monkeypatch.setattr(sctrt.bundle, "default_bundle", lambda: tiny_bundle.path)
    simulate = sctrt.demo.simulate_case
    monkeypatch.setattr(
        sctrt.demo, "simulate_case", lambda seed, **o: simulate(seed, voxel_mm=10.0, region="torso", **o)
    )
    code, out, said = run("demo", "-o", tmp_path / "demo")
    assert code == 0, said
    assert {"preview.png", "report.json", "ct_synthetic.nii.gz", "mu.nii.gz"} <= set(leftovers(tmp_path / "demo"))
    assert "water" in out and "not comparable" in out
    rows = json.loads((tmp_path / "demo" / "report.json").read_text())["metrics"]
    assert len(rows) == 4
    shutil.rmtree(tmp_path / "demo")


# The memory plan


def test_plan_prints_and_writes_nothing(run, pet_file, tiny_bundle, tmp_path):
    code, printed, said = run("synthesize", pet_file, "--model", tiny_bundle.path, "--plan")
    assert code == 0, said
    assert re.search(r"axial +\d+ +\d+ x \d+", printed) and "GB" not in printed
    options = ("--model", tiny_bundle.path, "--plan", "--device", "cuda", "--vram-gb", 8)
    code, printed, said = run("synthesize", pet_file, *options)
    assert code == 0, said
    assert re.search(r"peak +\d\.\d+ GB of 8\.00 GB; volumes stay on the GPU", printed)
    assert leftovers(tmp_path, pet_file.name) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--plan", "-o", "ct.nii.gz"), "--plan runs and writes nothing"),
        (("--plan", "--report", "r.json"), "--plan runs and writes nothing"),
        ((), "expected --output"),
        (("-o", "ct.nii.gz", "--vram-gb", "8"), "give --device cuda"),
    ],
)
def test_options_of_the_plan_that_make_no_sense_are_wrong_usage(run, pet_file, options, message):
    code, _, said = run("synthesize", pet_file, *options)
    assert code == 2 and message in " ".join(said.replace("│", " ").split())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--device", "gpu"), "expected device cpu or cuda[:i], got 'gpu'"),
        (("--precision", "fp16"), "expected --precision fp32, bf16 with --device cpu"),
        (("--runtime", "tensorrt"), "expected --runtime auto, native"),
        (("--device", "cuda", "--runtime", "openvino"), "expected --runtime auto, tensorrt"),
        (("--device", "cuda", "--vram-gb", "inf"), "10000"),
    ],
)
def test_what_does_not_go_together_is_wrong_usage(run, pet_file, tmp_path, options, message):
    code, _, said = run("synthesize", pet_file, "-o", tmp_path / "ct.nii.gz", *options)
    assert code == 2 and message in " ".join(said.replace("│", " ").split())


def test_the_plan_on_a_cpu_is_what_is_run(run, pet_file, tiny_bundle, tmp_path, monkeypatch):
    monkeypatch.setattr("sctrt.engines.threads_with_slices", lambda runtime: 3 if runtime == "native" else 1)
    options = ("--model", tiny_bundle.path)
    _, printed, _ = run("synthesize", pet_file, *options, "--plan")
    code, _, said = run("synthesize", pet_file, *options, "-o", tmp_path / "ct.nii.gz", "--report", tmp_path / "r.json")
    assert code == 0, said
    ran = json.loads((tmp_path / "r.json").read_text())["plan"]["planes"]
    planned = {plane: int(batch) for plane, batch in re.findall(r"(\w+) +\d+ +\d+ x \d+ +(\d+)", printed)}
    assert planned == {plane: one["batch"] for plane, one in ran.items()}


def test_memory_that_cannot_suffice_is_an_error(run, pet_file):
    code, _, said = run("synthesize", pet_file, "--plan", "--device", "cuda", "--vram-gb", 0.2)
    assert code == 1 and "expected at least" in said and "--device cpu" in said
