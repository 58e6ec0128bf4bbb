"""Cohorts: folders and tables of pairs, all that is wrong with one at once, and a cache that knows a case at a time."""

import gzip
import json
import re
import shutil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from sctrt import SctrtError, Volume, VolumeError, nifti
from sctrt.bundle import Normaliser
from sctrt.preprocess import network_input, to_grid

pytest.importorskip("torch")
pytest.importorskip("lightning")

from sctrt.cli import app
from sctrt.training import cache
from sctrt.training.cache import cache_cohort
from sctrt.training.cohort import CohortError, list_pairs, read_cohort

SPACING = 4.0


@pytest.fixture(scope="module")
def made(nac_body, tmp_path_factory):
    """Three whole cases; not to be changed."""
    folder = tmp_path_factory.mktemp("cohorts") / "whole"
    for name, shape in (("a", (20, 40, 40)), ("b", (22, 40, 38)), ("c", (20, 38, 42))):
        nac_body.save_case(folder / name, nac_body.pet(shape))
    return folder


@pytest.fixture
def cohort(made, tmp_path):
    """A copy of them."""
    return shutil.copytree(made, tmp_path / "cohort")


def table(cohort, name, rows):
    """A CSV or JSON file in the cohort."""
    file = cohort / name
    if name.endswith(".json"):
        file.write_text(json.dumps(rows))
    else:
        columns = list(dict.fromkeys(key for row in rows for key in row))
        lines = [",".join(columns)] + [",".join(str(row.get(key, "")) for key in columns) for row in rows]
        file.write_text("\n".join(lines) + "\n")
    return file


def row(patient, folder=None, **more):
    folder = folder or patient
    return {"patient": patient, "pet": f"{folder}/nac.nii.gz", "ct": f"{folder}/ct.nii.gz", **more}


def problems_of(path, tmp_path):
    with pytest.raises(CohortError) as caught:
        cache_cohort(path, tmp_path / "cache", SPACING)
    return caught.value.problems


# Reading


@pytest.mark.parametrize("name", ["cohort.csv", "cohort.json"])
def test_a_table_gives_the_pairs_of_the_folder(cohort, name):
    file = table(cohort, name, [row(one) for one in "cab"])
    assert read_cohort(file) == [type(pair)(pair.patient, "", pair.pet, pair.ct) for pair in read_cohort(cohort)]
    assert [pair.name for pair in read_cohort(file)] == ["a", "b", "c"]


def test_a_patient_may_have_several_scans(cohort):
    file = table(cohort, "cohort.csv", [row("p", "a", scan="1"), row("p", "b", scan="2"), row("q", "c")])
    assert [(pair.patient, pair.name) for pair in read_cohort(file)] == [("p", "p/1"), ("p", "p/2"), ("q", "q")]


@pytest.mark.parametrize(
    ("meta", "patient"),
    [
        ({"patient": "P7"}, "P7"),
        ({"ct": "liver.nii.gz"}, "liver.nii.gz"),
        ({"ct": "/x/y.nii.gz"}, "y.nii.gz"),
        ({}, "a"),
        ({"patient": None}, "a"),
        ({"patient": None, "ct": "liver.nii.gz"}, "liver.nii.gz"),
    ],
)
def test_a_case_folder_says_whose_it_is(cohort, meta, patient):
    (cohort / "a" / "meta.json").write_text(json.dumps(meta))
    assert {pair.patient for pair in read_cohort(cohort)} == {patient, "b", "c"}


def test_draws_of_one_ct_are_of_one_patient(cohort):
    for name in "ab":
        (cohort / name / "meta.json").write_text('{"seed": 1, "ct": "liver.nii.gz"}')
    assert [(pair.patient, pair.scan) for pair in read_cohort(cohort)] == [
        ("c", "c"),
        ("liver.nii.gz", "a"),
        ("liver.nii.gz", "b"),
    ]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.csv", None, "found nothing at"),
        ("empty.csv", "patient,pet,ct\n", "expected rows with patient, pet, ct"),
        ("object.json", "{}", "a list of objects, got dict"),
        ("broken.json", "[{", "expected a CSV file or a JSON list"),
        ("deep.json", "[" * 3, "expected a CSV file or a JSON list"),
        ("bytes.csv", b"\xff\xfe\x00", "expected a CSV file or a JSON list"),
    ],
)
def test_what_is_no_table_is_refused(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(VolumeError, match=message):
        list_pairs(tmp_path / name)


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(VolumeError, match=r"expected case folders with nac\.nii\.gz and ct\.nii\.gz in .*found none"):
        list_pairs(tmp_path)


VALUES = st.one_of(st.none(), st.integers(), st.text(max_size=4))
ROWS = st.one_of(VALUES, st.dictionaries(st.sampled_from(["patient", "pet", "ct", "scan", "age"]), VALUES))


@given(st.lists(ROWS, min_size=1, max_size=4))
def test_whatever_a_table_holds_is_told(tmp_path_factory, rows):
    file = tmp_path_factory.mktemp("table") / "cohort.json"
    file.write_text(json.dumps(rows))
    pairs, problems = list_pairs(file)
    assert pairs == [] and len(problems) >= len(rows)


# What is wrong with a cohort


def spoil(volume, **changes):
    return Volume(changes.get("array", volume.array), changes.get("affine", volume.affine), volume.unit)


def test_everything_wrong_is_listed_at_once(cohort, nac_body, tmp_path):
    for i, name in enumerate(("no-ct", "shifted", "nan", "empty", "truncated", "pet-as-ct")):
        nac_body.save_case(cohort / name, nac_body.pet((24 + i, 40, 40)))
    (cohort / "no-ct" / "ct.nii.gz").unlink()
    ct = nifti.load(cohort / "shifted" / "ct.nii.gz", unit="HU")
    far = ct.affine.copy()
    far[2, 3] += 60.0
    spoil(ct, affine=far).save(cohort / "shifted" / "ct.nii.gz")
    pet = nifti.load(cohort / "nan" / "nac.nii.gz")
    array = pet.array.copy()
    array[3, 3, 3] = np.nan
    spoil(pet, array=array).save(cohort / "nan" / "nac.nii.gz")
    pet = nifti.load(cohort / "empty" / "nac.nii.gz")
    noise = np.random.default_rng(0).uniform(0, 0.001, pet.shape).astype(np.float32)
    noise[5:7, 5:7, 5:7] = 500
    spoil(pet, array=noise).save(cohort / "empty" / "nac.nii.gz")
    whole = (cohort / "truncated" / "nac.nii.gz").read_bytes()
    (cohort / "truncated" / "nac.nii.gz").write_bytes(whole[: len(whole) // 2])
    nifti.load(cohort / "pet-as-ct" / "nac.nii.gz").save(cohort / "pet-as-ct" / "ct.nii.gz")
    found = problems_of(cohort, tmp_path)
    expected = {
        "no-ct": r"no CT at",
        "shifted": r"expected a CT on a grid that covers the PET's body, got one that reaches \d+%",
        "nan": r"expected finite samples, got 1 of",
        "empty": r"expected a body of at least",
        "truncated": r"(breaks off|expected)",
        "pet-as-ct": r"expected the CT in HU",
    }
    assert len(found) == len(expected)
    for name, message in expected.items():
        (problem,) = [one for one in found if f"/{name}/" in one]
        assert re.search(message, problem), problem


def test_a_patient_that_stands_there_twice_is_listed(cohort, tmp_path):
    (problem,) = problems_of(table(cohort, "c.csv", [row("a"), row("a", "b"), row("c")]), tmp_path)
    assert problem.startswith("patient a stands there 2 times") and "tell a patient's scans apart" in problem


def test_one_file_of_two_patients_is_listed(cohort, tmp_path):
    found = problems_of(table(cohort, "c.csv", [row("a"), row("x", "a"), row("c")]), tmp_path)
    assert any("nac.nii.gz is of several patients: a, x" in problem for problem in found)


def test_a_copy_of_a_pet_is_listed(cohort, tmp_path):
    """Under another name, it would stand in two folds."""
    shutil.copytree(cohort / "a", cohort / "copy")
    (problem,) = problems_of(cohort, tmp_path)
    assert "nac.nii.gz of patient copy is the same as" in problem and "of patient a" in problem


def test_a_pet_of_two_scans_is_listed(cohort, tmp_path):
    file = table(cohort, "c.csv", [row("a", scan="1"), row("a", scan="2"), row("c")])
    (problem,) = problems_of(file, tmp_path)
    assert "a/nac.nii.gz stands there 2 times (a/1, a/2)" in problem


def test_a_copy_of_a_pet_as_another_scan_is_listed(cohort, tmp_path):
    shutil.copytree(cohort / "a", cohort / "copy")
    (problem,) = problems_of(table(cohort, "c.csv", [row("a", scan="1"), row("a", "copy", scan="2")]), tmp_path)
    assert "copy/nac.nii.gz of a/2 is the same as" in problem and problem.endswith("a/nac.nii.gz of a/1")


def test_two_scans_may_share_a_ct(cohort):
    rows = [row("a", scan="1"), {**row("a", "b", scan="2"), "ct": "a/ct.nii.gz"}, row("c")]
    assert len(read_cohort(table(cohort, "c.csv", rows))) == 3


def test_a_copy_of_a_ct_is_listed(cohort, nac_body, tmp_path):
    nac_body.save_case(cohort / "d", nac_body.pet((24, 42, 40)))
    shutil.copy(cohort / "d" / "ct.nii.gz", cohort / "a" / "ct.nii.gz")
    (problem,) = problems_of(cohort, tmp_path)
    assert "ct.nii.gz of patient d is the same as" in problem and "of patient a" in problem


def test_a_copy_that_was_packed_anew_is_listed(cohort, tmp_path):
    """Another gzip level or header: other bytes, the same patient."""
    shutil.copytree(cohort / "a", cohort / "copy")
    for name in ("nac.nii.gz", "ct.nii.gz"):
        content = gzip.decompress((cohort / "a" / name).read_bytes())
        (cohort / "copy" / name).write_bytes(gzip.compress(content, 1, mtime=0))
    (problem,) = problems_of(cohort, tmp_path)
    assert "nac.nii.gz of patient copy is the same as" in problem and "of patient a" in problem


def test_a_table_may_begin_with_blank_lines(cohort):
    file = table(cohort, "c.csv", [row("a"), row("b")])
    file.write_text("\n\n" + file.read_text() + "x\n")
    pairs, problems = list_pairs(file)
    assert [pair.patient for pair in pairs] == ["a", "b"]
    assert problems[0].startswith("line 6: pet")


def test_a_patient_named_zero_is_one(cohort):
    for name in "ab":
        (cohort / name / "meta.json").write_text('{"patient": 0}')
    assert [pair.patient for pair in read_cohort(cohort)] == ["0", "0", "c"]


def test_spaces_make_no_other_patient(cohort):
    file = table(cohort, "c.json", [row("p", "a", scan="1"), row(" p ", "b", scan="2")])
    assert {pair.patient for pair in read_cohort(file)} == {"p"}


@pytest.mark.parametrize("meta", ['{"ct": 5}', "[" * 100_000, "[]", "{", '"a"'])
def test_a_hostile_meta_json_is_listed(cohort, tmp_path, meta):
    (cohort / "a" / "meta.json").write_text(meta)
    (problem,) = problems_of(cohort, tmp_path)
    assert "meta.json: " in problem


@pytest.mark.parametrize("name", ["x\0y", "n" * 300, "loop/nac.nii.gz"])
def test_a_hostile_path_is_listed(cohort, tmp_path, name):
    (cohort / "loop").symlink_to(cohort / "loop")
    problems = problems_of(table(cohort, "c.json", [row("a"), {**row("b"), "pet": name}]), tmp_path)
    assert problems and all("b" in problem or "entry 2" in problem for problem in problems)


def test_a_damaged_record_is_made_again(cohort, tmp_path):
    cache_cohort(cohort, tmp_path / "cache", SPACING)
    victim = sorted((tmp_path / "cache").iterdir())[0] / "case.json"
    victim.write_text(victim.read_text().replace("box_zyx", "box"))
    said = []
    assert len(cache_cohort(cohort, tmp_path / "cache", SPACING, said.append)) == 3 and len(said) == 1


def test_rows_that_lack_something_are_listed(cohort, tmp_path):
    rows = [row("a"), {"patient": "b", "pet": "b/nac.nii.gz"}, {**row("c"), "age": 3}]
    found = problems_of(table(cohort, "c.json", rows), tmp_path)
    assert [problem.partition(":")[0] for problem in found] == ["entry 2", "entry 3"]


def test_lines_are_those_of_the_file(cohort):
    (cohort / "c.csv").write_text("patient,pet,ct\n\n\na,a/nac.nii.gz,a/ct.nii.gz\n\nb,b/nac.nii.gz,\n")
    assert [problem.partition(":")[0] for problem in list_pairs(cohort / "c.csv")[1]] == ["line 6"]


def test_the_command_lists_them_and_trains_nothing(cohort, tmp_path):
    (cohort / "a" / "ct.nii.gz").unlink()
    (cohort / "b" / "nac.nii.gz").write_bytes(b"")
    output = tmp_path / "run"
    result = CliRunner().invoke(app, ["train", str(cohort), "--folds", "2", "-o", str(output)])
    assert result.exit_code == 3 or isinstance(result.exception, CohortError)
    assert not list(output.rglob("*.ckpt")) and not (output / "config.json").exists()


# The cache


def test_a_cached_case_is_its_pair_on_the_models_grid(cohort, tmp_path):
    (case, *_) = cache_cohort(cohort, tmp_path / "cache", SPACING)
    pet, ct = nifti.load(cohort / "a" / "nac.nii.gz"), nifti.load(cohort / "a" / "ct.nii.gz", unit="HU")
    prepared = network_input(pet, SPACING, Normaliser())
    np.testing.assert_allclose(
        case.pet[case.box], to_grid(pet, prepared.grid, 0) / prepared.reference, rtol=1e-3, atol=1e-6
    )
    np.testing.assert_allclose(case.ct[case.box], to_grid(ct, prepared.grid, -1000), atol=0.5)
    assert isinstance(case.pet, np.memmap) and not case.pet.flags.writeable
    again = network_input(case.volume(), SPACING, Normaliser())
    np.testing.assert_allclose(again.channels, prepared.channels, atol=2e-3)
    np.testing.assert_allclose(again.grid.affine, prepared.grid.affine, atol=1e-9)


def test_another_user_may_read_the_cache(cohort, tmp_path):
    cache_cohort(cohort, tmp_path / "cache", SPACING)
    assert {place.stat().st_mode & 0o777 for place in (tmp_path / "cache").iterdir()} == {0o755}


def test_a_second_opening_makes_nothing(cohort, tmp_path):
    said = []
    for expected in (3, 0):
        said.clear()
        cache_cohort(cohort, tmp_path / "cache", SPACING, said.append)
        assert len(said) == expected


def test_a_full_disk_is_told_and_leaves_nothing_half_written(cohort, tmp_path, monkeypatch):
    def full(*_):
        raise OSError("38400 requested and 10176 written")

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(SctrtError, match=r"cache.* cannot be written \(38400 .*is the disk full"):
        cache_cohort(cohort, tmp_path / "cache", SPACING)
    assert not list((tmp_path / "cache").iterdir())


def test_a_damaged_case_is_made_again_and_the_others_stay(cohort, tmp_path):
    folder = tmp_path / "cache"
    before = [case.ct.copy() for case in cache_cohort(cohort, folder, SPACING)]
    victim = sorted(folder.iterdir())[0]
    content = bytearray((victim / "ct.npy").read_bytes())
    content[-1] ^= 255
    (victim / "ct.npy").write_bytes(content)
    said = []
    after = cache_cohort(cohort, folder, SPACING, said.append)
    assert len(said) == 1
    for one, other in zip(before, after, strict=True):
        np.testing.assert_array_equal(one, other.ct)


@pytest.mark.parametrize("last_words", ["ct.npy", "case.json"])
def test_an_interruption_leaves_no_half_case(cohort, tmp_path, monkeypatch, last_words):
    folder = tmp_path / "cache"

    def interrupted(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(*((cache, "write_json") if last_words == "case.json" else (cache.np, "save")), interrupted)
        cache_cohort(cohort, folder, SPACING)
    assert list(folder.iterdir()) == []
    assert len(cache_cohort(cohort, folder, SPACING)) == 3


def test_a_case_depends_on_no_other_case(cohort, nac_body, tmp_path):
    """Nothing of one fold can reach another through the cache: the others may change, this one stays."""
    alone = table(cohort, "a.csv", [row("a")])
    (one,) = cache_cohort(alone, tmp_path / "alone", SPACING)
    shutil.rmtree(cohort / "b")
    nac_body.save_case(cohort / "b", nac_body.pet((30, 44, 44)))
    other = next(c for c in cache_cohort(cohort, tmp_path / "all", SPACING) if c.patient == "a")
    np.testing.assert_array_equal(one.pet, other.pet)
    np.testing.assert_array_equal(one.ct, other.ct)


def test_another_voxel_size_is_another_case(cohort, tmp_path):
    fine, coarse = (cache_cohort(cohort, tmp_path / "cache", spacing)[0] for spacing in (4.0, 5.0))
    assert fine.pet.shape != coarse.pet.shape and len(list((tmp_path / "cache").iterdir())) == 6
