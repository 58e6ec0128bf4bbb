"""The folder of built engines: what fits is found, what does not is refused by name with the command that mends it."""

import dataclasses
import hashlib
import json
import shlex
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sctrt import bundle as bundles
from sctrt import engines, gpus
from sctrt.engines import cache
from sctrt.errors import EngineError
from sctrt.gpus import Card

HERE = Card("Stand-in RTX 3060", "8.6", 12_000_000_000)
PLAN = b"a plan"


@pytest.fixture
def wanted(tiny_bundle):
    return cache.Wanted(tiny_bundle, "encoder", "tensorrt-rtx", "1.7.1", "fp16", ("quantiser",), 64, 96, HERE)


def fitting(wanted, **changes):
    """A fingerprint that is exactly what is wanted, but for some fields."""
    fields = {
        "bundle": wanted.bundle.fingerprint,
        "model": wanted.bundle.manifest.name,
        **{name: getattr(wanted, name) for name in ("part", "runtime", "version", "precision", "keep_fp32")},
        **{"height": wanted.height, "width": wanted.width, "max_batch": 8, "targets": ("8.6", "12.0"), "gpu": None},
        **{"workspace_bytes": 1000, "plan_sha256": hashlib.sha256(PLAN).hexdigest(), "build_seconds": 0.5},
    }
    return cache.Fingerprint.model_validate({**fields, **changes})


def test_what_is_stored_is_found(wanted, tmp_path):
    stored = cache.store(tmp_path / "deep" / "folder", fitting(wanted), PLAN)
    found = cache.find(tmp_path / "deep" / "folder", wanted)
    assert found == stored and found.read_plan() == PLAN
    content = json.loads(found.path.read_text())
    assert content["verified"] is None and content["plan_sha256"] == hashlib.sha256(PLAN).hexdigest()
    assert sorted(p.suffix for p in found.path.parent.glob("[!.]*")) == [".json", ".plan"]


# Each field that does not fit -> how the fingerprint differs, and what the error says.
MISMATCHES = {
    "bundle": ({"bundle": "0" * 64, "model": "other"}, r"is of the bundle 'other' 00000000, and '\S+' \w{8} is wanted"),
    "runtime": ({"runtime": "tensorrt"}, "is for the runtime tensorrt, and tensorrt-rtx is wanted"),
    "version": ({"version": "1.6.0"}, r"was built by tensorrt-rtx 1\.6\.0, and 1\.7\.1 is installed"),
    "precision": ({"precision": "bf16"}, "has precision bf16 with quantiser in fp32, and fp16 with quantiser in fp32"),
    "layers": ({"keep_fp32": ()}, "has precision fp16, and fp16 with quantiser in fp32 is wanted"),
    "shape": ({"width": 64}, "holds slices of at most 64 x 64 pixels, and 64 x 96 are wanted"),
    "capability": ({"targets": ("8.9", "12.0")}, r"for compute capability 8\.9, 12\.0, and this GPU is .* \(8\.6\)"),
    "GPU": ({"gpu": "Other GPU"}, r"was built for Other GPU, and this GPU is Stand-in RTX 3060 \(8\.6\)"),
    "part": ({"part": "decoder"}, "there is none of this part"),
}


@pytest.mark.parametrize("field", MISMATCHES)
def test_each_mismatch_has_its_own_message_and_the_command(wanted, tmp_path, field):
    changes, message = MISMATCHES[field]
    cache.store(tmp_path, fitting(wanted, **changes), PLAN)
    with pytest.raises(EngineError, match=message) as refused:
        cache.find(tmp_path, wanted)
    text = str(refused.value)
    assert text.startswith(f"no encoder engine in {tmp_path} fits: ")
    command = ["sctrt", "build-engine", str(wanted.bundle.path), "--runtime", "tensorrt-rtx", "--precision", "fp16"]
    command += ["--shape", "64,64,96", "--engine-dir", str(tmp_path)]
    assert shlex.split(text.split("Build one with: ")[1]) == command
    others = [other for name, (_, other) in MISMATCHES.items() if name not in (field, "layers", "precision")]
    assert len(set(others)) == len(others)


def test_all_mismatches_of_the_nearest_are_named(wanted, tmp_path):
    cache.store(tmp_path, fitting(wanted, bundle="0" * 64, precision="fp32", runtime="tensorrt"), PLAN)
    cache.store(tmp_path, fitting(wanted, version="1.6", height=32), PLAN)
    with pytest.raises(EngineError, match=r"was built by .* 1\.6, .* is installed; it holds slices of at most 32 x 96"):
        cache.find(tmp_path, wanted)


def test_an_empty_or_absent_folder_says_what_to_run(wanted, tmp_path):
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(EngineError, match=r"there is none of this part\. Build one with: sctrt build-engine "):
            cache.find(folder, wanted)


def test_the_command_names_the_volumes_shape_and_leaves_out_defaults(wanted, tmp_path, monkeypatch):
    monkeypatch.setenv("SCTRT_ENGINE_DIR", str(tmp_path))
    own = dataclasses.replace(wanted, bundle=bundles.load(), shape=(300, 90, 130))
    assert cache.command(tmp_path, own) == (
        "sctrt build-engine --runtime tensorrt-rtx --precision fp16 --shape 300,90,130"
    )


def test_the_command_names_the_memory_and_the_gpu_that_engines_are_for(wanted, tmp_path, monkeypatch):
    monkeypatch.setenv("SCTRT_ENGINE_DIR", str(tmp_path))
    other = Card("Another", "8.9", 24_000_000_000)
    own = dataclasses.replace(wanted, bundle=bundles.load(), shape=(300, 90, 130), budget=3_999_999_999)
    monkeypatch.setattr(gpus, "present", lambda: (HERE, other))
    assert cache.command(tmp_path, own).endswith("--shape 300,90,130 --vram-gb 3.999")
    second = dataclasses.replace(own, card=other)
    assert cache.command(tmp_path, second).endswith("--compute-capability 8.9")
    by_times = dataclasses.replace(second, runtime="tensorrt")
    assert cache.command(tmp_path, by_times).startswith("CUDA_VISIBLE_DEVICES=1 sctrt build-engine ")


sizes = st.tuples(st.sampled_from([32, 64, 96, 128, 160]), st.sampled_from([32, 64, 96, 128, 160]))


@given(built=st.lists(sizes, max_size=6), size=sizes)
def test_the_smallest_that_holds_the_slices_is_taken(tiny_bundle, tmp_path_factory, built, size):
    folder = tmp_path_factory.mktemp("engines")
    asked = cache.Wanted(tiny_bundle, "encoder", "tensorrt-rtx", "1.7.1", "fp16", (), *size, None)
    for height, width in built:
        cache.store(folder, fitting(asked, height=height, width=width), PLAN)
    holding = [
        (h * w, (h, w))
        for h, w in built
        if 0 <= h - size[0] < cache.MAX_PADDING and 0 <= w - size[1] < cache.MAX_PADDING
    ]
    if not holding:
        with pytest.raises(EngineError, match="no encoder engine"):
            cache.find(folder, asked)
        assert cache.sizes(folder, [asked]) == []
        return
    found = cache.find(folder, asked).fingerprint
    assert (found.height * found.width) == min(holding)[0]
    assert cache.sizes(folder, [asked]) == [size for _, size in sorted(set(holding))]


def test_an_engine_that_would_pad_too_far_is_refused(wanted, tmp_path):
    cache.store(tmp_path, fitting(wanted, height=wanted.height + cache.MAX_PADDING), PLAN)
    with pytest.raises(EngineError, match=r"is for slices of 96 x 96 pixels, too much padding for the 64 x 96 wanted"):
        cache.find(tmp_path, wanted)


def test_sizes_have_both_halves(wanted, tmp_path):
    wanted = dataclasses.replace(wanted, height=70)
    decoder = dataclasses.replace(wanted, part="decoder")
    for height in (64, 80, 96):
        cache.store(tmp_path, fitting(wanted, height=height), PLAN)
    for height in (96, 160):
        cache.store(tmp_path, fitting(decoder, height=height), PLAN)
    assert cache.sizes(tmp_path, [wanted, decoder]) == [(96, 96)]


def test_of_equal_sizes_the_one_for_most_slices_is_taken(wanted, tmp_path):
    for batch in (2, 8, 4):
        cache.store(tmp_path, fitting(wanted, max_batch=batch), PLAN)
    assert cache.find(tmp_path, wanted).fingerprint.max_batch == 8


def test_without_a_gpu_the_targets_do_not_matter(wanted, tmp_path):
    cache.store(tmp_path, fitting(wanted, targets=("12.1",)), PLAN)
    assert cache.find(tmp_path, dataclasses.replace(wanted, card=None))


# What is damaged


@pytest.mark.parametrize("position", [0, 3, -1])
def test_a_changed_byte_of_the_plan_is_refused(wanted, tmp_path, position):
    entry = cache.store(tmp_path, fitting(wanted), PLAN)
    plan = bytearray(PLAN)
    plan[position] ^= 1
    entry.plan.write_bytes(plan)
    with pytest.raises(EngineError, match=r"\.plan has changed since it was built: its SHA-256"):
        entry.read_plan()


def test_a_missing_plan_is_refused(wanted, tmp_path):
    entry = cache.store(tmp_path, fitting(wanted), PLAN)
    entry.plan.unlink()
    with pytest.raises(EngineError, match=r"\.plan cannot be read"):
        entry.read_plan()


def hostile(good):
    fields = json.loads(good)
    return {
        "empty": b"",
        "truncated": good[: len(good) // 2],
        "not UTF-8": b"\xff\xfe" + good,
        "a list": b"[1, 2]",
        "null": b"null",
        "deep": b"[" * 60_000,
        "large": b" " * 70_000 + good,
        "a field too many": json.dumps({**fields, "more": 1}).encode(),
        "a field too few": json.dumps({k: v for k, v in fields.items() if k != "targets"}).encode(),
        "another format": json.dumps({**fields, "format_version": 2}).encode(),
        "another runtime": json.dumps({**fields, "runtime": "shell"}).encode(),
        "no size": json.dumps({**fields, "height": 0}).encode(),
        "infinite": good.replace(b'"build_seconds": 0.5', b'"build_seconds": NaN'),
        "no hash": json.dumps({**fields, "plan_sha256": "../../../etc/passwd"}).encode(),
    }


@pytest.mark.parametrize("damage", hostile(b"{}"))
def test_damaged_fingerprints_are_ignored_by_name(wanted, tmp_path, damage):
    entry = cache.store(tmp_path, fitting(wanted), PLAN)
    good = entry.path.read_bytes()
    entry.path.write_bytes(hostile(good)[damage])
    with pytest.raises(EngineError, match=rf"; ignored: {entry.path.name} \(.+\). Build one with: ") as refused:
        cache.find(tmp_path, wanted)
    assert len(str(refused.value)) < 1000
    other = cache.store(tmp_path, fitting(wanted, max_batch=4), PLAN)  # and they are in nobody's way
    assert cache.find(tmp_path, wanted) == other


def test_what_is_no_file_is_ignored(wanted, tmp_path):
    (tmp_path / "folder.json").mkdir()
    (tmp_path / "link.json").symlink_to(tmp_path / "nowhere")
    found, ignored = cache.entries(tmp_path)
    assert found == [] and [line.split()[0] for line in ignored] == ["folder.json", "link.json"]


@given(text=st.binary(max_size=300))
def test_any_bytes_are_a_reason_not_a_crash(tiny_bundle, tmp_path_factory, text):
    folder = tmp_path_factory.mktemp("engines")
    (folder / "x.json").write_bytes(text)
    found, ignored = cache.entries(folder)
    assert found == [] and len(ignored) == 1


@given(name=st.text(min_size=1, max_size=300))
def test_a_models_name_leads_nowhere_else(tiny_bundle, tmp_path_factory, name):
    folder = tmp_path_factory.mktemp("engines")
    asked = cache.Wanted(tiny_bundle, "encoder", "tensorrt-rtx", "1.7.1", "fp16", (), 32, 32, None)
    entry = cache.store(folder, fitting(asked, model=name), PLAN)
    assert entry.path.parent == folder and entry.path.is_file() and cache.find(folder, asked) == entry


# Writing


def test_building_again_replaces_plan_and_kernels(wanted, tmp_path):
    first = cache.store(tmp_path, fitting(wanted), PLAN)
    first.kernels.write_bytes(b"of the first plan")
    again = fitting(wanted, plan_sha256=hashlib.sha256(b"new").hexdigest(), build_seconds=9.0, workspace_bytes=5)
    second = cache.store(tmp_path, again, b"new")
    assert second.path == first.path and second.read_plan() == b"new" and not first.kernels.exists()
    assert len(cache.entries(tmp_path)[0]) == 1


def test_builders_of_one_engine_leave_a_plan_and_its_own_fingerprint(wanted, tmp_path):
    def build(plan):
        for _ in range(20):
            cache.store(tmp_path, fitting(wanted, plan_sha256=hashlib.sha256(plan).hexdigest()), plan)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(build, [b"one" * 50_000, b"other" * 50_000, b"third", b"fourth"]))
    (entry,), _ = cache.entries(tmp_path)
    assert entry.read_plan()


def test_an_interrupted_write_leaves_no_entry(wanted, tmp_path, monkeypatch):
    cache.store(tmp_path, fitting(wanted), PLAN)

    def full(entry):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache, "write_fingerprint", full)
    with pytest.raises(OSError, match="No space"):
        cache.store(tmp_path, fitting(wanted), b"new")
    assert cache.entries(tmp_path) == ([], [])


def test_a_verification_is_kept(wanted, tmp_path):
    entry = cache.store(tmp_path, fitting(wanted), PLAN)
    found = cache.Verification(oracle="o", device=HERE.name, hu_mean=0.5, hu_p99_9=3.0, flipped_share=0.001)
    verified = entry.fingerprint.model_copy(update={"verified": found})
    cache.write_fingerprint(cache.Entry(entry.path, verified))
    assert cache.find(tmp_path, wanted).fingerprint.verified == found


def test_where_engines_lie(monkeypatch, tmp_path):
    monkeypatch.delenv("SCTRT_ENGINE_DIR", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", "/home/x")
    assert cache.engine_directory() == Path("/home/x/.cache/sctrt/engines")
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert cache.engine_directory() == Path("/cache/sctrt/engines")
    monkeypatch.setenv("SCTRT_ENGINE_DIR", "/engines")
    assert cache.engine_directory() == Path("/engines")
    assert cache.engine_directory(tmp_path) == tmp_path


def test_the_parts_and_runtimes_are_those_of_the_package():
    fields = cache.Fingerprint.model_fields
    assert fields["part"].annotation is engines.Part and fields["runtime"].annotation is engines.BuiltRuntime
