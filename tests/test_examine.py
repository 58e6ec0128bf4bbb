"""Inside a model: codes against a slow count, fusions against NumPy, expected line errors, and `sctrt examine`."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sctrt import Synthesizer, cases, examine, ops, pipeline
from sctrt.attenuation import hu_to_mu, mu_per_hu
from sctrt.evaluation import codebook, fusions, inside
from sctrt.evaluation.case import evaluate
from sctrt.evaluation.expected_lines import expected_from_planes, expected_from_uncertainty
from sctrt.evaluation.inside import Examination
from sctrt.evaluation.lines import MIN_CHORD_MM, SPACING_MM, line_errors, line_set
from sctrt.evaluation.regions import TISSUES
from sctrt.planes import PLANES, slice_axis
from sctrt.volume import Volume
from test_evaluate_command import Page
from test_evaluation import noisy
from test_metrics import CT, volume

# Codebook


def slow_use(codes):
    """Codes used, perplexity and top share of a list of codes, as their definitions read."""
    shares = {code: codes.count(code) / len(codes) for code in set(codes)}
    return len(shares), float(np.prod([share**-share for share in shares.values()])), max(shares.values())


@given(st.lists(st.integers(0, 19), min_size=1, max_size=60))
def test_code_use_is_its_definition(codes):
    found = codebook.code_use(np.bincount(codes, minlength=20))
    assert (found.codes, found.perplexity, found.top_share) == pytest.approx(slow_use(codes))
    assert found.latents == len(codes) and 1 - 1e-9 <= found.perplexity <= found.codes + 1e-9


@given(st.integers(1, 300), st.integers(1, 50))
def test_uniform_use_has_as_much_perplexity_as_codes(codes, times):
    found = codebook.code_use(np.full(codes, times))
    assert found.perplexity == pytest.approx(codes) and found.top_share == pytest.approx(1 / codes)


@given(hnp.arrays(np.int32, (3, 2, 4), elements=st.integers(-1, 9)), st.integers(0, 2**32 - 1))
def test_every_latent_that_was_run_is_counted_in_its_plane_and_place(codes, seed):
    places = np.random.default_rng(seed).integers(0, len(codebook.PLACES), codes.shape)
    found = codebook.codebook_use({"axial": codes, "coronal": codes[:1]}, {"axial": places, "coronal": places[:1]}, 10)
    for plane, used in (("axial", slice(None)), ("coronal", slice(1))):
        for number, place in enumerate(codebook.PLACES):
            here = codes[used][(codes[used] >= 0) & (places[used] == number)].tolist()
            use = found.use[plane][place]
            assert (use is None) == (not here)
            if use:
                assert (use.codes, use.perplexity, use.top_share) == pytest.approx(slow_use(here))
    latents = {region: use.latents if use else 0 for region, use in found.use["all"].items()}
    assert latents["all"] == (codes >= 0).sum() + (codes[:1] >= 0).sum()
    assert latents["all"] == sum(latents[place] for place in codebook.PLACES)
    assert latents["body"] == latents["all"] - latents["outside"]


def use_of(codes, size=1024):
    """All of them in soft tissue."""
    index = np.array(codes)[None, None]
    return codebook.codebook_use({"axial": index}, {"axial": np.full_like(index, 4)}, size)


def test_collapse_is_warned_of():
    rng = np.random.default_rng(0)
    one = codebook.collapse_warnings(use_of([7] * 5000))
    assert len(one) == 2 and "1 codes are used of 1024" in one[0] and "perplexity in the body is 1.0" in one[1]
    assert not codebook.collapse_warnings(use_of(rng.integers(0, 300, 5000)))
    assert len(codebook.collapse_warnings(use_of(rng.integers(0, 40, 5000)))) == 1
    skewed = np.where(rng.uniform(size=5000) < 0.9, rng.integers(0, 4, 5000), rng.integers(0, 300, 5000))
    assert "perplexity" in codebook.collapse_warnings(use_of(skewed))[0]


def test_few_latents_are_no_collapse():
    """No image of four latents can use fifty codes."""
    assert not codebook.collapse_warnings(use_of([1, 2, 3, 4]))
    outside = codebook.codebook_use({"axial": np.zeros((1, 1, 9), int)}, {"axial": np.zeros((1, 1, 9), int)}, 64)
    assert outside.use["all"]["body"] is None and not codebook.collapse_warnings(outside)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("factor", [1, 2, 4])
def test_a_latent_lies_where_the_mean_of_its_pixels_lies(rng, axis, factor):
    ct = rng.choice([-1000.0, -750.0, -90.0, 40.0, 500.0], (5, 7, 9)).repeat(2, axis=axis)
    body = rng.uniform(size=ct.shape) < 0.6
    found = codebook.places_of_latents(ct, body, axis, factor)
    slices, inside_ = np.moveaxis(ct, axis, 0), np.moveaxis(body, axis, 0)
    height, width = slices.shape[1:]
    assert found.shape == (len(slices), -(-height // factor), -(-width // factor))
    for at in np.ndindex(found.shape):
        window = (at[0], *(slice(i * factor, (i + 1) * factor) for i in at[1:]))
        mean = slices[window].mean()
        if inside_[window].mean() < 0.5:
            expected = "outside"
        else:
            limits = (name for name, (low, high) in TISSUES.items() if low <= mean <= high)
            expected = next(limits, "between")
        assert codebook.PLACES[found[at]] == expected


# Planes


@pytest.fixture(scope="module")
def pet(nac_body):
    return nac_body.pet((39, 41, 38))  # sides of the body box that the factor does not divide


@pytest.mark.parametrize("fusion", pipeline.FUSIONS)
def test_planes_fuse_to_the_ct_of_a_synthesis(tiny_bundle, pet, fusion):
    predicted = Synthesizer(tiny_bundle.path).planes(pet)
    result = Synthesizer(tiny_bundle.path, fusion=fusion)(pet)
    hu, spread = predicted.fused(fusion)
    assert np.abs(predicted.on(pet, hu).array - result.ct.array).max() < (
        1e-2 if "mean" in fusion or "inverse" in fusion else 1e-9
    )
    np.testing.assert_allclose(predicted.on(pet, spread, 0.0).array, result.uncertainty.array, atol=1e-2)
    if fusion == "median":
        stack = np.stack(list(predicted.hu.values()))
        np.testing.assert_array_equal(hu, np.median(stack, axis=0).clip(*predicted.hu_range))


def test_decoded_codes_are_the_planes(tiny_model, tiny_bundle, pet):
    """PyTorch decodes the codes of a slice to what the plane holds: none is missing, shifted, or of the padding."""
    torch = pytest.importorskip("torch")
    predicted = Synthesizer(tiny_bundle.path).planes(pet)
    assert max(n % predicted.factor for n in predicted.grid.shape) > 0
    codebook_ = tiny_bundle.codebook()
    low, high = predicted.hu_range
    for axis, plane in enumerate(PLANES):
        index, slices = predicted.codes[plane], np.moveaxis(predicted.hu[plane], axis, 0)
        assert len(index) == len(slices) and np.unique(index).size > 3
        for i in (0, len(index) // 2, len(index) - 1):
            latent = torch.from_numpy(np.moveaxis(codebook_[index[i]], -1, 0)[None].copy())
            with torch.no_grad():
                made = tiny_model.decode(latent).mean(dim=1)[0].numpy() * (high - low) / 2 + (high + low) / 2
            height, width = slices[i].shape
            np.testing.assert_allclose(made[:height, :width], slices[i], atol=0.5)


def test_small_batches_give_the_same_codes(tiny_bundle, pet, monkeypatch):
    whole = Synthesizer(tiny_bundle.path).planes(pet)
    monkeypatch.setattr("sctrt.plan.CPU_BATCH_PIXELS", 3 * 44 * 44)  # the last batch is not full
    small = Synthesizer(tiny_bundle.path).planes(pet)
    for plane in PLANES:
        assert (small.codes[plane] != whole.codes[plane]).mean() < 0.01


def test_slices_without_body_have_no_codes(tiny_bundle):
    array = np.zeros((60, 50, 70), np.float32)
    for x in (14, 56):
        array[5:55, 15:35, x - 8 : x + 8] = 1000.0
    predicted = Synthesizer(tiny_bundle.path).planes(Volume(array, np.diag([4.0, 4.0, 4.0, 1.0]), "Bq/ml"))
    not_run = (predicted.codes["sagittal"] == pipeline.NOT_RUN).all(axis=(1, 2))
    assert not_run.any() and not not_run.all()
    np.testing.assert_allclose(predicted.hu["sagittal"][:, :, not_run], -1000, atol=1e-3)


def test_one_plane_alone_has_no_planes(tiny_bundle, pet):
    with pytest.raises(ValueError, match="expected a Synthesizer of all planes, got fusion='axial'"):
        Synthesizer(tiny_bundle.path, fusion="axial").planes(pet)


# Fusions

PLANES_OF_HU = hnp.arrays(np.float32, (3, 2, 3, 4), elements=st.floats(-1024, 2976, width=32))


def nearest(planes):
    """The kernel's."""
    return ops.fuse_planes(*planes, method="inverse-nearest")[0]


@given(PLANES_OF_HU)
def test_weighted_fusions_are_their_definition(planes):
    for fuse, distance in ((fusions.inverse_spread, sum), (nearest, min)):
        found = fuse(list(planes))
        for at in np.ndindex(found.shape):
            values = [float(plane[at]) for plane in planes]
            apart = [[abs(a - b) for j, b in enumerate(values) if j != i] for i, a in enumerate(values)]
            weights = [1 / (distance(both) + ops.AGREEMENT_HU) for both in apart]
            assert found[at] == pytest.approx(np.average(values, weights=weights), abs=0.02)


@given(PLANES_OF_HU, st.permutations(range(3)))
def test_weighted_fusions_know_no_order_lie_within_and_keep_what_all_agree_on(planes, order):
    for fuse in (fusions.inverse_spread, nearest):
        found = fuse(list(planes))
        np.testing.assert_allclose(fuse([planes[i] for i in order]), found, atol=0.01)
        assert (found >= planes.min(axis=0) - 0.01).all() and (found <= planes.max(axis=0) + 0.01).all()
        np.testing.assert_allclose(fuse([planes[0]] * 3), planes[0], atol=0.01)


def test_what_is_better_is_counted(rng):
    near, far = (fusions.numbers(evaluate(noisy(CT, rng, sigma), CT)) for sigma in (10.0, 80.0))
    won, lost = fusions.compared(near, far)
    assert won > lost and fusions.compared(far, near) == (lost, won)
    assert fusions.compared(near, near) == (0, 0)
    assert fusions.compared({**near, "body.me_hu": -1.0}, {**near, "body.me_hu": 2.0}) == (1, 0)
    assert fusions.compared({**near, "dice.bone_above_200": None}, near) == (0, 0)
    assert fusions.compared({**near, "jaggedness.z.synthetic_hu": 0.0}, near) == (0, 0)


# Expected line errors


@pytest.fixture
def maps(rng):
    """mu of three planes, their median's error and a spread [1/cm], and a body with an edge of air."""
    body = np.zeros((6, 20, 24), bool)
    body[1:, 4:15, 5:20] = True
    planes = [(body * rng.uniform(0.05, 0.15, body.shape)).astype(np.float32) for _ in range(3)]
    error = (body * rng.normal(0, 0.01, body.shape)).astype(np.float32)
    return body, planes, error, np.ptp(planes, axis=0), (5.0, 4.0, 3.0)


def slow_lines(body, spacing, measure):
    """measure(lengths [voxel], slice number) of each line, one by one."""
    made = []
    stride = max(1, round(SPACING_MM / spacing[0]))
    for lines in line_set(body, spacing):
        matrix = lines.matrix.toarray().astype(np.float64)
        slices = range(len(body))[lines.slices]
        assert list(slices)[:2] == [slices[0], slices[0] + stride]
        for lengths in matrix:
            for z in slices:
                if lengths @ body[z].ravel() * 10 >= MIN_CHORD_MM:
                    made.append(measure(lengths, z))
    return np.array(made)


def test_expected_errors_are_those_of_a_loop_over_lines(maps):
    body, planes, error, spread, spacing = maps

    def line(lengths, z):
        logs = [lengths @ plane[z].ravel() for plane in planes]
        correlated = sum(lengths * spread[z].ravel())
        independent = np.sqrt(sum((lengths * spread[z].ravel()) ** 2))
        uniform = spread[body].mean(dtype=float) * (lengths @ body[z].ravel())
        logs = [max(logs) - min(logs), np.std(logs, ddof=1), correlated, independent, uniform]
        return [100 * abs(np.exp(value) - 1) for value in (*logs, lengths @ error[z].ravel())]

    slow = slow_lines(body, spacing, line)
    found = {
        **expected_from_planes(planes, error, body, spacing),
        **expected_from_uncertainty(spread, error, body, spacing),
    }
    assert list(found) == list(inside.WAYS)
    for column, one in enumerate(found.values()):
        assert one.lines == len(slow)
        assert one.expected_percent == pytest.approx(slow[:, column].mean(), rel=1e-4)
        assert one.true_percent == pytest.approx(slow[:, -1].mean(), rel=1e-4)
        assert np.mean([d.true_percent for d in one.deciles]) == pytest.approx(one.true_percent, rel=0.02)
        expected = [d.expected_percent for d in one.deciles]
        assert expected == sorted(expected)
    assert found["range"].true_percent == pytest.approx(line_errors(error, body, spacing).mean_abs_percent)


def test_no_spread_expects_no_error_and_correlated_is_no_less_than_independent(maps):
    body, planes, error, spread, spacing = maps
    none = {
        **expected_from_planes([planes[0]] * 3, error, body, spacing),
        **expected_from_uncertainty(0 * spread, error, body, spacing),
    }
    for one in none.values():
        assert one.expected_percent == pytest.approx(0, abs=1e-4) and one.true_percent > 0
    found = expected_from_uncertainty(spread, error, body, spacing)
    assert found["correlated"].expected_percent > found["independent"].expected_percent > 0
    alone = np.zeros_like(spread)
    alone[3, 10, 10] = 0.1  # one voxel adds up to itself
    by_line = [(lines.integrals(alone), lines.squared().integrals(alone**2)) for lines in line_set(body, spacing)]
    for once, squared in by_line:
        np.testing.assert_allclose(once**2, squared, rtol=1e-5)


def test_a_spread_of_the_planes_bounds_their_range(maps):
    """However voxels go together: a line's range is at most the integral of the voxels' ranges."""
    body, planes, _, spread, spacing = maps
    for lines in line_set(body, spacing):
        logs = np.ptp([lines.integrals(mu) for mu in planes], axis=0)
        assert (logs <= lines.integrals(spread) + 1e-5).all()


def test_an_error_that_the_spread_knows_is_ranked_and_sized(maps):
    body, _, error, _, spacing = maps
    known = expected_from_uncertainty(np.abs(error), np.abs(error), body, spacing)["correlated"]
    assert known.expected_percent == pytest.approx(known.true_percent)
    assert known.rank_correlation == pytest.approx(1) and known.area_sparsification == pytest.approx(known.area_ideal)


@pytest.mark.parametrize("kvp", [80, 120])
def test_the_slope_of_mu_is_its_derivative(kvp):
    hu = np.array([-1015.0, -990.0, 0.0, 29.0, 60.0, 900.0], np.float32)
    slope = hu_to_mu(hu.astype(float) + 0.5, kvp) - hu_to_mu(hu.astype(float) - 0.5, kvp)
    np.testing.assert_allclose(mu_per_hu(hu, kvp), slope, rtol=1e-5)
    assert mu_per_hu(hu).dtype == np.float32


def test_evaluate_expects_line_errors_where_it_has_an_uncertainty(rng):
    sct = noisy(CT, rng)
    assert evaluate(sct, CT).expected_lines is None
    case = evaluate(sct, CT, uncertainty=volume(np.full(CT.shape, 20.0)))
    assert case.expected_lines["correlated"].true_percent == pytest.approx(case.lines.mean_abs_percent)
    nothing = evaluate(sct, CT, uncertainty=volume(np.zeros(CT.shape)))
    assert nothing.expected_lines["correlated"].expected_percent == 0


# The command


@pytest.fixture(scope="module")
def case_folder(nac_body, pet, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cases") / "good"
    nac_body.save_case(folder, pet)
    return folder


def test_names_are_those_of_the_simulation():
    assert (examine.NAC, examine.CT) == (cases.NAC, cases.CT)


def test_one_case_writes_all_outputs_that_agree(run, case_folder, tiny_bundle, tmp_path):
    json_, markdown, page = (tmp_path / name for name in ("r.json", "r.md", "r.html"))
    outputs = ("-o", json_, "--markdown", markdown, "--report", page)
    nac, ct = case_folder / "nac.nii.gz", case_folder / "ct.nii.gz"
    code, printed, said = run("examine", nac, ct, "--model", tiny_bundle.path, *outputs)
    assert code == 0, said
    found = json.loads(json_.read_text())
    case = Examination.model_validate(found["cases"]["nac"])
    assert case.codebook.size == 64 and set(case.codebook.use) == {"all", *PLANES}
    assert list(case.fusions) == ["median", "mean", "inverse-nearest", *PLANES, "inverse-spread"]
    assert list(case.expected_lines) == list(inside.WAYS)
    assert markdown.read_text().strip() == printed.strip() and f"{case.fusions['mean']['body.mae_hu']:.2f}" in printed
    shown = Page(page.read_text())
    assert len(shown.images) == 2 and not shown.links and "Perplexity" in shown.text
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".sctrt")]


def test_the_median_is_what_synthesize_and_evaluate_say(case_folder, tiny_bundle, pet, nac_body):
    synthesizer = Synthesizer(tiny_bundle.path)
    found, codes = examine.examine(synthesizer, pet, nac_body.ct(pet))
    result = synthesizer(pet)
    case = evaluate(result.ct, nac_body.ct(pet), uncertainty=result.uncertainty)
    assert found.fusions["median"] == pytest.approx(fusions.numbers(case))
    assert found.expected_lines["correlated"].expected_percent == pytest.approx(
        case.expected_lines["correlated"].expected_percent, rel=1e-5
    )
    counted = found.codebook.use["all"]["all"]
    assert counted.latents == sum(index.size for index in codes.values())
    assert counted.codes == len(set().union(*(np.unique(index).tolist() for index in codes.values())))
    assert found.codebook.use["axial"]["lung"].latents > 0 and found.codebook.use["axial"]["outside"].latents > 0


def test_a_folder_of_cases_goes_on_past_bad_ones(run, case_folder, tiny_bundle, tmp_path):
    for name in ("good", "alone", "broken"):
        (tmp_path / "cohort" / name).mkdir(parents=True)
        (tmp_path / "cohort" / name / "nac.nii.gz").write_bytes((case_folder / "nac.nii.gz").read_bytes())
    (tmp_path / "cohort" / "good" / "ct.nii.gz").write_bytes((case_folder / "ct.nii.gz").read_bytes())
    (tmp_path / "cohort" / "broken" / "ct.nii.gz").write_bytes(b"no NIfTI")
    outputs = ("-o", tmp_path / "r.json", "--report", tmp_path / "r.html")
    code, printed, said = run("examine", tmp_path / "cohort", "--model", tiny_bundle.path, *outputs)
    assert code == 1 and "2 of 3 cases were left out: alone, broken" in said and "Traceback" not in said
    found = json.loads((tmp_path / "r.json").read_text())
    assert set(found["cases"]) == {"good"}
    assert "no such file" in found["failed"]["alone"] and "not NIfTI" in found["failed"]["broken"]
    assert "alone: left out" in printed and "alone was left out" in Page((tmp_path / "r.html").read_text()).text


def test_tables_of_many_cases_are_means(case_folder, tiny_bundle, pet, nac_body):
    one, _ = examine.examine(Synthesizer(tiny_bundle.path), pet, nac_body.ct(pet))
    other = one.model_copy(deep=True)
    other.fusions["mean"]["body.mae_hu"] += 10
    table = inside.tables({"a": one, "b": other})["Fusions of the same predictions, and each plane alone"]
    assert table.rows[0][2] == f"{one.fusions['mean']['body.mae_hu'] + 5:.2f}"
    assert "Case by case" in inside.tables({"a": one, "b": other}) and "Case by case" not in inside.tables({"a": one})


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("nac.nii.gz",), 2, "expected a NAC PET and its true CT"),
        ((".", "ct.nii.gz"), 2, "expected a NAC PET and its true CT"),
        (("nac.nii.gz", "ct.nii.gz", "-o", "r.txt"), 2, ".json"),
        (("nac.nii.gz", "absent.nii.gz", "-o", "r.json"), 3, "no such file"),
        (("nac.nii.gz", "nac.nii.gz", "-o", "r.json"), 3, "true CT"),
        (("empty",), 3, "expected nac.nii.gz and ct.nii.gz"),
        (("nac.nii.gz", "ct.nii.gz", "--model", "empty"), 3, "manifest"),
    ],
)
def test_wrong_usage_and_unfit_input_write_nothing(run, case_folder, tmp_path, monkeypatch, arguments, code, message):
    for path in case_folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    given, _, said = run("examine", *arguments)
    assert given == code and message in " ".join(said.replace("│", " ").split())
    assert not (tmp_path / "r.json").exists()


def test_slices_of_a_plane_lie_along_its_axis():
    """evaluation knows planes by axis alone."""
    assert [slice_axis(plane) for plane in PLANES] == [0, 1, 2]
