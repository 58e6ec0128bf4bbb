"""Ensembles of folds: the CT is the members' median, the uncertainty their range; what is unfit is refused."""

import gc
import itertools
import json
import os
import re
import shutil
import tracemalloc
import weakref

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import sctrt
from conftest import random_model
from sctrt import (
    BundleError,
    EngineError,
    Ensemble,
    Synthesizer,
    VolumeError,
    engines,
    ensemble,
    ensemble_bundle,
    nifti,
)
from sctrt import bundle as bundles
from sctrt.domain import Domain
from sctrt.ensemble import median_and_spread
from sctrt.ensemble_bundle import EnsembleManifest, write_ensemble
from sctrt.planes import PLANES
from test_bundle import change
from test_cli import leftovers
from test_layering import TRAINING_LIBRARIES, run_blocked
from test_timeline import nested_properly

FOLDS = ["fold-0", "fold-1", "fold-2"]


@pytest.fixture(scope="module")
def folds(tiny_bundle, tmp_path_factory):
    """Bundles of three networks of random weights. Do not write to them."""
    from sctrt.bundle import Normaliser
    from sctrt.model.export import export_bundle

    folder = tmp_path_factory.mktemp("folds")
    how = {"spacing_mm": 4.0, "normaliser": Normaliser(), "training": {}}
    others = [export_bundle(random_model(seed), folder / f"seed{seed}.sctrt", **how).path for seed in (1, 2)]
    return [tiny_bundle.path, *others]


@pytest.fixture(scope="module")
def three(folds, tmp_path_factory):
    """The ensemble of them. Do not write to it."""
    return write_ensemble(folds, tmp_path_factory.mktemp("ensemble") / "three.sctrt")


@pytest.fixture
def copy(three, tmp_path):
    """One that a test may damage."""
    return shutil.copytree(three.path, tmp_path / "copy.sctrt")


@pytest.fixture(scope="module")
def pet(nac_body):
    return nac_body.pet()


@pytest.fixture(scope="module")
def own(folds, pet):
    """What each member makes alone."""
    return [Synthesizer(fold)(pet) for fold in folds]


@pytest.fixture(scope="module")
def result(three, pet):
    return Ensemble(three.path)(pet)


# Median and spread


@st.composite
def volumes(draw):
    shape = draw(st.tuples(*[st.integers(1, 6)] * 3))
    hu = st.one_of(st.floats(-1024, 2976, width=32), st.sampled_from([-1000.0, 0.0]))  # often equal
    return [draw(arrays(np.float32, shape, elements=hu)) for _ in range(draw(st.integers(2, 5)))]


@given(volumes())
def test_the_median_and_the_spread_are_numpys(cts):
    before = np.stack(cts)
    for ct in cts:
        ct.setflags(write=False)
    median, spread = median_and_spread(cts)
    assert median.dtype == spread.dtype == np.float32 and median.shape == spread.shape == cts[0].shape
    np.testing.assert_array_equal(median, np.median(before, axis=0))
    np.testing.assert_array_equal(spread, before.max(axis=0) - before.min(axis=0))
    np.testing.assert_array_equal(np.stack(cts), before)


@given(volumes(), st.randoms())
def test_the_order_of_the_members_does_not_matter(cts, random):
    expected = median_and_spread(cts)
    random.shuffle(cts)
    np.testing.assert_array_equal(median_and_spread(cts), expected)


def test_no_further_whole_volumes_are_made(rng):
    cts = [rng.normal(size=(50, 40, 40)).astype(np.float32) for _ in range(5)]
    tracemalloc.start()
    median_and_spread(cts)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2.5 * cts[0].nbytes  # the two that come out, and slices


# A whole synthesis


def test_the_ct_is_the_median_of_the_members_own(result, own, pet):
    cts = np.stack([one.ct.array for one in own])
    np.testing.assert_array_equal(result.ct.array, np.median(cts, axis=0))
    np.testing.assert_array_equal(result.uncertainty.array, cts.max(axis=0) - cts.min(axis=0))
    assert result.uncertainty.array.max() > 10  # they do differ
    for volume in (result.ct, result.uncertainty):
        np.testing.assert_array_equal(volume.affine, pet.affine)
        assert volume.unit == "HU" and volume.array.dtype == np.float32
    assert result.mu_map(kvp=100).unit == "1/cm"


def test_two_members_give_their_mean(folds, own, pet, tmp_path):
    result = sctrt.synthesize(pet, model=write_ensemble(folds[:2], tmp_path / "two.sctrt").path)
    first, second = (one.ct.array for one in own[:2])
    np.testing.assert_array_equal(result.ct.array, (first + second) / 2)
    np.testing.assert_array_equal(result.uncertainty.array, abs(first - second))


def test_options_go_to_the_members(three, folds, pet):
    options = {"fusion": "coronal", "runtime": "onnxruntime"}
    cts = [Synthesizer(fold, **options)(pet).ct.array for fold in folds]
    result = sctrt.synthesize(pet, model=str(three.path), **options)
    np.testing.assert_array_equal(result.ct.array, np.median(cts, axis=0))
    assert result.uncertainty.array.max() > 10  # of the folds, though one plane alone has none
    assert result.report["fusion"] == "coronal" and result.report["runtime"]["name"] == "onnxruntime"


def test_one_member_is_loaded_at_a_time(three, pet, monkeypatch):
    alive, opened, load = weakref.WeakSet(), [], engines.load

    class Watched(Synthesizer):
        def __init__(self, model, **options):
            assert not alive
            opened.append(model.stem)
            super().__init__(model, **options)
            alive.add(self)

    def watched_load(*arguments, **options):
        engine = load(*arguments, **options)
        alive.add(engine)
        return engine

    monkeypatch.setattr(ensemble, "Synthesizer", Watched)
    monkeypatch.setattr(engines, "load", watched_load)
    gc.disable()  # nothing waits for it
    try:
        many = Ensemble(three.path)
        first = many(pet)
        np.testing.assert_array_equal(many(pet).ct.array, first.ct.array)
    finally:
        gc.enable()
    assert opened == ["fold-0", *FOLDS, *FOLDS] and not alive


def test_progress_names_the_member(three, pet):
    told = []
    Ensemble(three.path)(pet, progress=lambda *stage: told.append(stage))
    assert list(dict.fromkeys(name for name, _, _ in told)) == [f"{fold} {plane}" for fold in FOLDS for plane in PLANES]


def test_the_report_tells_of_each_member(result, own, three, pet):
    report = json.loads(json.dumps(result.report, allow_nan=False))
    assert report == result.report
    assert report["model"]["name"] == "three" and report["model"]["fingerprint"] == three.fingerprint
    members = report["ensemble"]["members"]
    assert [member["name"] for member in members] == FOLDS
    assert [member["model"] for member in members] == ["tiny", "seed1", "seed2"]
    assert [member["fingerprint"] for member in members] == [bundle.fingerprint for bundle in three.members]
    assert all(member["seconds"] >= member["seconds_by_stage"]["total"] > 0 for member in members)
    seconds = report["seconds"]
    assert set(seconds) == {"load", *FOLDS, "fuse", "other", "total"}
    assert seconds["total"] == pytest.approx(sum(s for name, s in seconds.items() if name != "total"))
    assert report["ensemble"]["seconds"] == seconds["total"]
    assert own[0].report.keys() - report.keys() == set() and report["input"] == own[0].report["input"]
    assert report["hu"]["p1"] <= report["hu"]["p50"] <= report["hu"]["p99"]
    assert report["plan"]["events"] == [] and "not for clinical use" in report["model"]["intended_use"]


def test_the_timeline_has_the_members_in_their_place(result):
    timeline, members = result.timeline, {one["name"]: one for one in result.report["ensemble"]["members"]}
    assert all(one.end <= other.begin + 1e-6 for one, other in itertools.pairwise(timeline.spans))
    for fold, member in members.items():
        opening, *own = (span for span in timeline.spans if span.of.get("fold") == fold)
        assert opening.stage == "open" and opening.seconds > 0
        sums = {stage: sum(s.seconds for s in own if s.stage == stage) for stage in ("load", "encoder", "resample")}
        assert sums == {stage: pytest.approx(member["seconds_by_stage"][stage]) for stage in sums}
        assert opening.seconds + sum(span.seconds for span in own) <= member["seconds"]
    events = timeline.chrome_trace()["traceEvents"]
    assert nested_properly(events)
    outer = [event["name"] for event in events if event["name"] in (*FOLDS, *PLANES, "fuse")]
    assert outer == [name for fold in FOLDS for name in (fold, *PLANES, "fuse")] + ["fuse"]
    assert timeline.seconds()["total"] == pytest.approx(result.report["seconds"]["total"])


def with_domain(folder, **ranges):
    change(folder, training__domain=Domain(cases=2, ranges=ranges).model_dump(mode="json"))
    return folder


def test_what_no_fold_was_trained_on_is_said_once(folds, pet, tmp_path):
    copies = [shutil.copytree(fold, tmp_path / fold.name) for fold in folds]
    with_domain(copies[0], voxel_mm=(1.0, 1.5))
    with_domain(copies[1], voxel_mm=(1.0, 1.6), depth_mm=(900.0, 1000.0))
    result = sctrt.synthesize(pet, model=write_ensemble(copies, tmp_path / "m.sctrt").path)
    alone = [Synthesizer(fold)(pet).report["outside_training"] for fold in copies]
    assert [len(said) for said in alone] == [1, 2, 0]
    assert result.report["outside_training"] == [alone[0][0], alone[1][1]]
    trained = [member["trained_on"] for member in result.report["ensemble"]["members"]]
    assert trained[0]["ranges"].keys() == {"voxel_mm"} and isinstance(trained[2], str)


def test_what_happened_to_a_member_is_an_event_under_its_name(three, pet, monkeypatch):
    call = Synthesizer.__call__

    def shrinking(self, *arguments, **options):
        result = call(self, *arguments, **options)
        if self.bundle.path.stem == "fold-1":
            result.report["plan"]["events"].append("memory ran out")
        return result

    monkeypatch.setattr(Synthesizer, "__call__", shrinking)
    assert Ensemble(three.path)(pet).report["plan"]["events"] == ["fold-1: memory ran out"]


def test_unfit_pets_and_options_are_refused(three, pet):
    with pytest.raises(ValueError, match="expected fusion median"):
        Ensemble(three.path, fusion="max")
    with pytest.raises(EngineError, match="expected runtime auto"):
        Ensemble(three.path, runtime="caffe")
    with pytest.raises(TypeError, match="colour"):
        Ensemble(three.path, colour="red")
    with pytest.raises(VolumeError, match="pass the PET, not the CT"):
        Ensemble(three.path)(sctrt.Volume(pet.array, pet.affine, "HU"))


def test_a_member_that_is_replaced_meanwhile_is_refused(copy, pet):
    opened = Ensemble(copy)
    change(copy / "fold-1.sctrt", training__steps=9)
    with pytest.raises(BundleError, match=r"fold-1\.sctrt was replaced since its ensemble was opened; open"):
        opened(pet)


def test_an_ensemble_runs_without_torch(three, pet, tmp_path):
    pet.save(tmp_path / "pet.nii.gz")
    script = """
import json
import sctrt
result = sctrt.Ensemble(sys.argv[2])(sys.argv[1])
print(json.dumps([result.report["runtime"]["name"], sorted({name.split(".")[0] for name in sys.modules})]))
"""
    runtime, loaded = run_blocked(script, TRAINING_LIBRARIES, tmp_path / "pet.nii.gz", three.path)
    assert runtime == "openvino" and not TRAINING_LIBRARIES & set(loaded)


# The bundle


def test_members_are_whole_bundles(three, folds):
    assert ensemble_bundle.load(str(three.path)) == three
    assert leftovers(three.path) == ["ensemble.json", *(f"{fold}.sctrt" for fold in FOLDS)]
    assert three.manifest.name == "three" and three.manifest.format_version == 1
    for member, source in zip(three.members, folds, strict=True):
        original = bundles.load(source)
        assert member.manifest == original.manifest and member.fingerprint == original.fingerprint
        assert bundles.load(member.path) == member
    assert three.manifest.intended_use == three.members[0].manifest.intended_use  # said once
    assert (three.path.stat().st_mode & 0o777) == 0o755


def test_what_members_say_differently_is_joined(folds, tmp_path):
    copies = [shutil.copytree(fold, tmp_path / fold.name) for fold in folds]
    change(copies[1], licence="CC0", intended_use="Water phantoms only.")
    manifest = write_ensemble(copies, tmp_path / "m.sctrt").manifest
    licence = bundles.load(folds[0]).manifest.licence
    assert manifest.licence == f"{licence}; CC0" and manifest.intended_use.endswith(
        "clinical use. Water phantoms only."
    )


def test_what_lies_beside_a_bundles_files_is_not_copied(folds, tmp_path):
    copies = [shutil.copytree(fold, tmp_path / fold.name) for fold in folds]
    (copies[0] / "notes.txt").write_text("mine")
    made = write_ensemble(copies, tmp_path / "m.sctrt")
    assert not (made.path / "fold-0.sctrt" / "notes.txt").exists()


def test_an_older_ensemble_is_replaced_even_by_its_own_members(folds, copy):
    (copy / "left over").write_text("of the older one")
    made = write_ensemble([copy / "fold-2.sctrt", copy / "fold-0.sctrt"], str(copy))
    assert [member.manifest.name for member in made.members] == ["seed2", "tiny"]
    assert leftovers(copy) == ["ensemble.json", "fold-0.sctrt", "fold-1.sctrt"]
    assert leftovers(copy.parent) == ["copy.sctrt"]


@pytest.mark.parametrize("moment", ["copy", "manifest", "rename"])
def test_a_killed_write_leaves_nothing_and_the_older_ensemble(folds, copy, monkeypatch, moment):
    fingerprint = ensemble_bundle.load(copy).fingerprint
    copyfile, replace, done = shutil.copyfile, os.replace, []

    def fail_late(source, target):
        done.append(target)
        if len(done) == 7:
            raise KeyboardInterrupt
        return copyfile(source, target)

    def fail(*_, **__):
        raise KeyboardInterrupt

    def fail_once(source, target):
        if str(target) == str(copy) and not done:  # the new one is complete; moving it into place fails
            done.append(target)
            raise OSError("disk full")
        replace(source, target)

    if moment == "copy":
        monkeypatch.setattr(shutil, "copyfile", fail_late)
    elif moment == "manifest":
        monkeypatch.setattr(EnsembleManifest, "model_dump_json", fail)
    else:
        monkeypatch.setattr(os, "replace", fail_once)
    for path in (copy, copy.parent / "new.sctrt") if moment != "rename" else (copy,):
        done.clear()
        with pytest.raises((KeyboardInterrupt, OSError)):
            write_ensemble(folds[:2], path)
    monkeypatch.undo()
    assert ensemble_bundle.load(copy).fingerprint == fingerprint
    assert leftovers(copy.parent) == ["copy.sctrt"]


def test_only_ensembles_are_replaced(folds, tmp_path):
    model = shutil.copytree(folds[0], tmp_path / "model.sctrt")
    (tmp_path / "file.sctrt").write_text("mine")
    (tmp_path / "folder.sctrt").mkdir()
    for name in ("model.sctrt", "file.sctrt", "folder.sctrt"):
        with pytest.raises(BundleError, match=rf"{name} is no ensemble, so it is not replaced; remove it or name"):
            write_ensemble(folds, tmp_path / name)
    assert bundles.load(model).manifest.name == "tiny" and (tmp_path / "file.sctrt").read_text() == "mine"


def test_members_that_do_not_fit_make_no_ensemble(folds, three, scales_bundle, tmp_path):
    coarse, other_range, damaged = (shutil.copytree(folds[1], tmp_path / f"{name}.sctrt") for name in "abc")
    change(coarse, spacing_mm=5.0)
    change(other_range, hu_range=[-1000.0, 2000.0])
    (damaged / "codebook.npy").write_bytes(b"")
    new = tmp_path / "new.sctrt"
    for members, message in {
        (): "expected 2 models or more, one a fold, got 0",
        (folds[0],): "expected 2 models or more, one a fold, got 1; name all folds",
        (folds[0], folds[1], folds[0]): r"expected different models, got the same in .*tiny.* and .*tiny.*once",
        (
            folds[0],
            coarse,
        ): r"expected models of one voxel size \[mm\], got 4.0 in .*tiny.* and 5.0 in .*a\.sctrt; train",
        (folds[0], other_range): r"one HU range, got \(-1024.0, 2976.0\) in .* and \(-1000.0, 2000.0\) in",
        (folds[0], damaged): r"codebook\.npy has changed",
        (folds[0], tmp_path / "none.sctrt"): "expected a model bundle",
        (folds[0], three.path): "expected one model, got .*three.sctrt, an ensemble of several",
    }.items():
        with pytest.raises(BundleError, match=message):
            write_ensemble(members, new)
    with pytest.raises(BundleError, match=r"ends in \.sctrt, got .*m\.zip"):
        write_ensemble(folds, tmp_path / "m.zip")
    assert leftovers(tmp_path) == ["a.sctrt", "b.sctrt", "c.sctrt"]
    assert len(write_ensemble([folds[0], scales_bundle.path], new).members) == 2  # other networks may be members


# Hostile and damaged


def sign(folder, **fields):
    """Sets fields of ensemble.json; the digest fits, where the rest is valid."""
    content = {**json.loads((folder / "ensemble.json").read_bytes()), **fields}
    try:
        content["digest"] = EnsembleManifest.model_validate(content).own_digest()
    except ValueError:
        pass
    (folder / "ensemble.json").write_text(json.dumps(content))


def members_of(folder):
    return json.loads((folder / "ensemble.json").read_bytes())["members"]


@pytest.mark.parametrize(
    "name",
    [
        *("../fold-0.sctrt", "/etc/fold-0.sctrt", "sub/fold-0.sctrt", "..\\fold-0.sctrt", "..", ".", "", "fold-0"),
        *(".sctrt", "..sctrt", "fold-0.sctrt/", "fold-0.sctrt\n", "a\x00.sctrt", "fold 0.sctrt", 3, None),
    ],
)
def test_a_folder_outside_the_ensemble_is_never_opened(copy, name, monkeypatch):
    shutil.copytree(copy / "fold-0.sctrt", copy.parent / "fold-0.sctrt")
    shutil.copytree(copy / "fold-0.sctrt", copy / "sub" / "fold-0.sctrt")
    first, *others = members_of(copy)
    sign(copy, members=[{**first, "name": name}, *others])
    monkeypatch.setattr(bundles, "load", lambda path: pytest.fail(f"{path} was opened"))
    with pytest.raises(BundleError, match=r"ensemble\.json is not a valid manifest: members\.0\.name.*again"):
        ensemble_bundle.load(copy)


@pytest.mark.parametrize(
    ("change_members", "problem"),
    [
        (lambda members: [], "members: .*at least 2"),
        (lambda members: members[:1], "members: .*at least 2"),
        (lambda members: [members[0], members[0]], "expected members of different names, got fold-0.sctrt, fold-0"),
        (lambda members: [members[0], {**members[1], "name": "Fold-0.sctrt"}], "expected members of different names"),
        (lambda members: [{**members[0], "fingerprint": "0" * 63}, members[1]], "members.0.fingerprint"),
        (lambda members: [{**members[0], "surprise": 1}, members[1]], "members.0.surprise"),
        (lambda members: "fold-0.sctrt", "members"),
    ],
)
def test_an_invalid_list_of_members_is_refused(copy, change_members, problem):
    sign(copy, members=change_members(members_of(copy)))
    with pytest.raises(BundleError, match=rf"not a valid manifest: .*{problem}"):
        ensemble_bundle.load(copy)


@pytest.mark.parametrize("content", [b"", b"\xff", b"{", b"[]", b"null", b"{}", b"[" * 100_000])
def test_what_is_no_manifest_is_refused(copy, content):
    (copy / "ensemble.json").write_bytes(content)
    with pytest.raises(BundleError, match=r"ensemble\.json is not the manifest of an ensemble: .*again"):
        ensemble_bundle.load(copy)


def test_another_format_and_an_unknown_field_are_refused(copy):
    sign(copy, format_version=99, future=1)
    with pytest.raises(BundleError, match="bundle format 99, and this sctrt reads formats up to 1; upgrade sctrt"):
        ensemble_bundle.load(copy)
    sign(copy, format_version=1)
    with pytest.raises(BundleError, match="not a valid manifest: future"):
        ensemble_bundle.load(copy)


def test_a_changed_manifest_is_refused(copy):
    content = (copy / "ensemble.json").read_text()
    (copy / "ensemble.json").write_text(content.replace("Research only", "All patients"))
    with pytest.raises(BundleError, match=r"ensemble\.json has changed since the bundle was made: its digest"):
        ensemble_bundle.load(copy)
    (copy / "ensemble.json").write_text(re.sub(r',\s+"digest": ".*"', "", content))
    with pytest.raises(BundleError, match="its digest does not fit"):
        ensemble_bundle.load(copy)


def test_a_member_that_is_missing_damaged_or_another_is_refused(copy, folds):
    member = copy / "fold-1.sctrt"
    change(member, training__steps=1)
    with pytest.raises(BundleError, match=r"fold-1\.sctrt is another model than .* expected the fingerprint .* got"):
        ensemble_bundle.load(copy)
    (member / "encoder.onnx").write_bytes(b"")
    with pytest.raises(BundleError, match=r"encoder\.onnx has changed since the bundle was made"):
        ensemble_bundle.load(copy)
    shutil.rmtree(member)
    with pytest.raises(BundleError, match=r"lacks its member fold-1\.sctrt; copy or make the ensemble again"):
        ensemble_bundle.load(copy)
    member.write_text("a file")
    with pytest.raises(BundleError, match=r"lacks its member fold-1\.sctrt"):
        ensemble_bundle.load(copy)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"spacing_mm": 3.0}, r"expected models of one voxel size \[mm\], got 4.0 in .*fold-0.* and 3.0 in .*fold-2"),
        ({"hu_range": [-1024.0, 3000.0]}, "expected models of one HU range"),
    ],
)
def test_members_of_other_volumes_are_refused(copy, fields, message):
    change(copy / "fold-2.sctrt", **fields)
    *others, last = members_of(copy)
    sign(copy, members=[*others, {**last, "fingerprint": bundles.sha256(copy / "fold-2.sctrt" / "manifest.json")}])
    with pytest.raises(BundleError, match=message):
        ensemble_bundle.load(copy)


def test_one_model_under_two_names_is_refused(copy):
    shutil.rmtree(copy / "fold-1.sctrt")
    shutil.copytree(copy / "fold-0.sctrt", copy / "fold-1.sctrt")
    first, second, third = members_of(copy)
    sign(copy, members=[first, {**second, "fingerprint": first["fingerprint"]}, third])
    with pytest.raises(BundleError, match=r"expected different models, got the same in .*fold-0.* and .*fold-1"):
        ensemble_bundle.load(copy)


def test_an_ensemble_in_an_ensemble_is_refused(copy, three):
    shutil.rmtree(copy / "fold-1.sctrt")
    shutil.copytree(three.path, copy / "fold-1.sctrt")
    with pytest.raises(BundleError, match=r"expected one model, got .*fold-1\.sctrt, an ensemble of several"):
        ensemble_bundle.load(copy)


def test_one_model_is_no_ensemble(folds, tmp_path):
    for path in (folds[0], tmp_path, tmp_path / "none.sctrt"):
        with pytest.raises(BundleError, match=r"expected an ensemble .*found none at .*sctrt\.Synthesizer"):
            Ensemble(path)


def test_where_one_model_is_expected_an_ensemble_is_explained(three, pet):
    message = (
        r"expected one model, got .*three\.sctrt, an ensemble of several; name one of the folders in it, such as "
        r".*fold-0\.sctrt, or run all of them with sctrt synthesize --model .*three\.sctrt or sctrt\.Ensemble"
    )
    for use in (bundles.load, Synthesizer):
        with pytest.raises(BundleError, match=message):
            use(three.path)


# The command line


@pytest.fixture
def pet_file(pet, tmp_path):
    pet.save(tmp_path / "nac.nii.gz")
    return tmp_path / "nac.nii.gz"


def test_the_command_makes_an_ensemble(run, folds, three, tmp_path):
    code, _, said = run("ensemble", *folds, "-o", tmp_path / "three.sctrt")
    assert code == 0, said
    assert "3 models" in said and three.fingerprint[:16] in said  # the same as by Python
    assert ensemble_bundle.load(tmp_path / "three.sctrt").fingerprint == three.fingerprint


@pytest.mark.parametrize(("count", "name", "code"), [(1, "m.sctrt", 3), (0, "m.sctrt", 2), (2, "m.json", 2)])
def test_the_command_refuses_in_one_paragraph(run, folds, tmp_path, count, name, code):
    given_code, _, said = run("ensemble", *folds[:count], "-o", tmp_path / name)
    assert given_code == code and "Traceback" not in said
    assert code == 2 or ("expected 2 models or more" in said and len(said.strip().splitlines()) == 1)
    assert leftovers(tmp_path) == []


def test_the_command_refuses_damaged_members(run, folds, tmp_path):
    damaged = shutil.copytree(folds[1], tmp_path / "damaged.sctrt")
    (damaged / "decoder.onnx").unlink()
    code, _, said = run("ensemble", folds[0], damaged, "-o", tmp_path / "m.sctrt")
    assert code == 3 and "lacks its file 'decoder.onnx'" in said
    assert leftovers(tmp_path) == ["damaged.sctrt"]


def test_synthesize_takes_an_ensemble(run, pet_file, three, result, tmp_path):
    ct, mu, uncertainty, preview, report = (
        tmp_path / name for name in ("ct.nii", "mu.nii", "u.nii", "p.png", "r.json")
    )
    code, _, said = run(
        *("synthesize", pet_file, "-o", ct, "--model", three.path, "--mu-map", mu, "--uncertainty", uncertainty),
        *("--preview", preview, "--report", report),
    )
    assert code == 0, said
    assert "fold-0 axial: started" in said and "fold-2 sagittal: done" in said and "with openvino (first of" in said
    np.testing.assert_array_equal(nifti.load(ct).array, result.ct.array)
    np.testing.assert_array_equal(nifti.load(uncertainty).array, result.uncertainty.array)
    assert nifti.load(mu).array.max() > 0 and preview.read_bytes()[:4] == b"\x89PNG"
    assert [member["name"] for member in json.loads(report.read_text())["ensemble"]["members"]] == FOLDS


def test_the_spread_is_that_of_the_folds_even_of_one_plane_alone(run, pet_file, three, tmp_path, monkeypatch):
    titles = []
    monkeypatch.setattr("sctrt.preview.save_preview", lambda *_, spread_of: titles.append(spread_of))
    outputs = ("-o", tmp_path / "ct.nii", "--uncertainty", tmp_path / "u.nii", "--preview", tmp_path / "p.png")
    code, _, said = run("synthesize", pet_file, *outputs, "--model", three.path, "--fusion", "axial")
    assert code == 0, said
    assert nifti.load(tmp_path / "u.nii").array.max() > 10 and titles == ["folds"]


def test_the_plan_is_that_of_each_member(run, pet_file, three, tmp_path):
    code, printed, said = run("synthesize", pet_file, "--model", three.path, "--plan")
    assert code == 0, said
    assert all(str(member.path) in printed for member in three.members)
    assert len(re.findall(r"axial +\d+ +\d+ x \d+", printed)) == 3


def test_a_damaged_ensemble_ends_with_3_and_nothing_written(run, pet_file, copy, tmp_path):
    shutil.rmtree(copy / "fold-2.sctrt")
    code, _, said = run("synthesize", pet_file, "-o", tmp_path / "ct.nii.gz", "--model", copy)
    assert code == 3 and "lacks its member fold-2.sctrt" in said and len(said.strip().splitlines()) == 1
    assert leftovers(tmp_path, "nac.nii.gz", "copy.sctrt") == []


def test_commands_for_one_model_explain_what_an_ensemble_is(run, pet_file, nac_body, pet, three, tmp_path):
    nac_body.ct(pet).save(tmp_path / "ct.nii.gz")
    for command in (
        ("build-engine", three.path),
        ("examine", pet_file, tmp_path / "ct.nii.gz", "--model", three.path),
    ):
        code, _, said = run(*command)
        assert code == 3 and "an ensemble of several; name one of the folders in it" in said, command
        assert len(said.strip().splitlines()) == 1
