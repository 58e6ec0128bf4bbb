"""Model bundles: what is whole is opened; what is changed, missing, newer or hostile is refused in one paragraph."""

import contextlib
import io
import json
import pickle

import numpy as np
import pytest

from sctrt import bundle as bundles
from sctrt.bundle import Architecture, Manifest, Normaliser
from sctrt.errors import BundleError

FILES = ["encoder.onnx", "decoder.onnx", "codebook.npy", "weights.safetensors"]


def manifest_of(folder):
    return json.loads((folder / "manifest.json").read_bytes())


def change(folder, **fields):
    """Sets fields of the manifest; nested ones are named with two underscores, None takes one out."""
    content = manifest_of(folder)
    for path, value in fields.items():
        *parents, name = path.split("__")
        target = content
        for parent in parents:
            target = target[parent]
        if value is None:
            del target[name]
        else:
            target[name] = value
    write_signed(folder, content)


def write_signed(folder, content):
    """Writes a manifest whose digest fits, where it is valid at all."""
    with contextlib.suppress(ValueError):
        content["digest"] = bundles.Manifest.model_validate(content).own_digest()
    (folder / "manifest.json").write_text(json.dumps(content))


def put(folder, name, content):
    """Replaces a file and its hash."""
    (folder / name).write_bytes(content)
    manifest = manifest_of(folder)
    manifest["files"][name] = bundles.sha256(folder / name)
    write_signed(folder, manifest)


def npy(array, **options):
    file = io.BytesIO()
    np.save(file, array, **options)
    return file.getvalue()


def test_a_whole_bundle_is_opened(tiny_bundle):
    bundle = bundles.load(str(tiny_bundle.path))
    assert bundle == tiny_bundle
    assert bundle.manifest.name == "tiny" and bundle.manifest.spacing_mm == 4.0
    assert bundle.manifest.hu_range == (-1024.0, 2976.0) and bundle.manifest.padding == -1.0
    assert sorted(bundle.manifest.files) == sorted(FILES)
    assert "not for clinical use" in bundle.manifest.intended_use
    assert bundle.codebook().shape == (64, 3) and bundle.codebook().dtype == np.float32
    assert bundle.encoder_onnx.is_file() and bundle.decoder_onnx.is_file() and bundle.weights.is_file()
    assert len(bundle.fingerprint) == 64


def test_the_fingerprint_is_that_of_the_content(tiny_bundle, bundle_copy):
    assert bundles.load(bundle_copy).fingerprint == tiny_bundle.fingerprint
    change(bundle_copy, training__steps=1)
    assert bundles.load(bundle_copy).fingerprint != tiny_bundle.fingerprint


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("place", [0.0, 0.5, 1.0])
def test_one_changed_byte_is_refused(bundle_copy, name, place):
    content = bytearray((bundle_copy / name).read_bytes())
    content[int(place * (len(content) - 1))] ^= 1
    (bundle_copy / name).write_bytes(content)
    with pytest.raises(BundleError, match=rf"{name} has changed since the bundle was made.*export"):
        bundles.load(bundle_copy)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_or_truncated_file_is_refused(bundle_copy, name):
    content = (bundle_copy / name).read_bytes()
    (bundle_copy / name).write_bytes(content[:-1])
    with pytest.raises(BundleError, match=f"{name} has changed"):
        bundles.load(bundle_copy)
    (bundle_copy / name).unlink()
    with pytest.raises(BundleError, match=f"lacks its file '{name}'"):
        bundles.load(bundle_copy)
    (bundle_copy / name).mkdir()
    with pytest.raises(BundleError, match=f"lacks its file '{name}'"):
        bundles.load(bundle_copy)


@pytest.mark.parametrize("name", FILES)
def test_an_unlisted_file_is_refused(bundle_copy, name):
    content = manifest_of(bundle_copy)
    del content["files"][name]
    change(bundle_copy, files=content["files"])
    with pytest.raises(BundleError, match=f"does not list {name}"):
        bundles.load(bundle_copy)


def test_no_bundle_is_said_to_be_none(tmp_path, tiny_bundle):
    for path in (tmp_path, tmp_path / "none.sctrt", tiny_bundle.encoder_onnx, tiny_bundle.path / "manifest.json"):
        with pytest.raises(BundleError, match=r"expected a model bundle \(a folder NAME\.sctrt"):
            bundles.load(path)


@pytest.mark.parametrize(
    "content",
    [b"", b"\x00\xff", b"{", b"[]", b"1", b"null", b'"text"', b"{}", b'{"format_version": }', b"[" * 100_000],
)
def test_what_is_no_manifest_is_refused(bundle_copy, content):
    (bundle_copy / "manifest.json").write_bytes(content)
    with pytest.raises(BundleError, match=r"manifest\.json is not the manifest of a model bundle"):
        bundles.load(bundle_copy)


@pytest.mark.parametrize("version", [2, 99, 0, -1, "1", 1.5, True, [1]])
def test_another_format_is_refused(bundle_copy, version):
    change(bundle_copy, format_version=version, fields_of_the_future=1)
    with pytest.raises(BundleError, match=r"bundle format .* reads formats up to 1; upgrade sctrt"):
        bundles.load(bundle_copy)


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"surprise": 1}, "surprise"),
        ({"architecture__surprise": 1}, "architecture.surprise"),
        ({"normaliser__surprise": 1}, "normaliser.surprise"),
        ({"spacing_mm": None}, "spacing_mm"),
        ({"files": None}, "files"),
        ({"licence": 3}, "licence"),
        ({"architecture__channels": 0}, "channels"),
        ({"architecture__channels": "many"}, "channels"),
        ({"architecture__multipliers": []}, "multipliers"),
        ({"architecture__multipliers": [1, 0]}, "multipliers"),
        ({"architecture__groups": 3}, "groups"),
        ({"architecture__output_channels": 3}, "output_channels"),
        ({"normaliser__kind": "percentile"}, "kind"),
        ({"normaliser__exponent": 0}, "exponent"),
        ({"normaliser__scales": []}, "scales"),
        ({"normaliser__scales": [-1]}, "scales"),
        ({"normaliser__scales": [0, 1]}, "scales"),
        ({"spacing_mm": 0}, "spacing_mm"),
        ({"spacing_mm": float("inf")}, "spacing_mm"),
        ({"spacing_mm": float("nan")}, "spacing_mm"),
        ({"padding": float("nan")}, "padding"),
        ({"hu_range": [1.0]}, "hu_range"),
        ({"hu_range": [2976, -1024]}, "hu_range"),
        ({"hu_range": [-1e308, 1e308]}, "hu_range"),
        ({"spacing_mm": 0.01}, "spacing_mm"),
        ({"architecture__channels": 320_000_000}, "channels"),
        ({"architecture__multipliers": [1, 2, 10**9]}, "multipliers"),
        ({"architecture__blocks": 10**8}, "blocks"),
    ],
)
def test_an_invalid_manifest_is_refused(bundle_copy, fields, problem):
    change(bundle_copy, **fields)
    with pytest.raises(BundleError, match=rf"not a valid manifest: .*{problem}"):
        bundles.load(bundle_copy)


@pytest.mark.parametrize(
    "name", ["../secret", "/etc/hostname", "sub/file", "..", ".", "", "encoder.onnx/", "a\x00b", "..\\secret"]
)
def test_a_file_outside_the_bundle_is_never_opened(bundle_copy, name, monkeypatch):
    (bundle_copy.parent / "secret").write_text("secret")
    (bundle_copy / "sub").mkdir()
    (bundle_copy / "sub" / "file").write_text("file")
    files = {name: "0" * 64, **manifest_of(bundle_copy)["files"]}
    change(bundle_copy, files=files)
    opened = []
    monkeypatch.setattr(bundles, "sha256", lambda path: opened.append(path))
    with pytest.raises(BundleError, match="lacks its file"):
        bundles.load(bundle_copy)
    assert opened == []


def test_weights_in_a_file_that_no_hash_covers_are_refused(bundle_copy):
    """ONNX may keep tensors elsewhere: that file could change, and the fingerprint would not."""
    onnx = pytest.importorskip("onnx")
    model = onnx.load(bundle_copy / bundles.DECODER)
    path = bundle_copy / "beside.onnx"
    onnx.save(model, path, save_as_external_data=True, location="decoder.data", size_threshold=0)
    put(bundle_copy, bundles.DECODER, path.read_bytes())
    with pytest.raises(BundleError, match=r"decoder\.onnx takes weights from another file"):
        bundles.load(bundle_copy)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (npy(np.zeros((64, 4), np.float32)), r"expected a codebook float32 \(64, 3\) .*got float32 \(64, 4\)"),
        (npy(np.zeros((64, 3), np.float64)), "got float64"),
        (npy(np.zeros(192, np.float32)), r"got float32 \(192,\)"),
        (npy(np.full((64, 3), np.nan, np.float32)), "finite"),
        (npy(np.array([[{"a": 1}]], dtype=object), allow_pickle=True), "cannot be read"),
        (pickle.dumps([1, 2]), "cannot be read"),
        (npy(np.zeros((64, 3), np.float32))[:-4], "cannot be read"),
        (b"", "cannot be read"),
        (b"\x93NUMPY", "cannot be read"),
        (b"PK\x03\x04" + b"\x00" * 100, "cannot be read"),
    ],
)
def test_an_unfit_codebook_is_refused(bundle_copy, content, problem):
    put(bundle_copy, "codebook.npy", content)
    with pytest.raises(BundleError, match=problem):
        bundles.load(bundle_copy).codebook()


def test_an_archive_is_no_codebook(bundle_copy):
    file = io.BytesIO()
    np.savez(file, codes=np.zeros((64, 3), np.float32))
    put(bundle_copy, "codebook.npy", file.getvalue())
    with pytest.raises(BundleError, match="cannot be read"):
        bundles.load(bundle_copy).codebook()


def test_a_huge_codebook_header_allocates_nothing(bundle_copy):
    content = npy(np.zeros((64, 3), np.float32)).replace(b"(64, 3), }" + b" " * 10, b"(10000000000000, 3), }", 1)
    put(bundle_copy, "codebook.npy", content)
    with pytest.raises(BundleError, match=r"cannot be read|expected a codebook"):
        bundles.load(bundle_copy).codebook()


def test_the_manifest_is_written_and_read_back(bundle_copy):
    manifest = Manifest.model_validate(manifest_of(bundle_copy))
    (bundle_copy / "codebook.npy").write_bytes(npy(np.ones((64, 3), np.float32)))
    bundles.write_manifest(bundle_copy, manifest)
    bundle = bundles.load(bundle_copy)
    assert bundle.manifest.files["codebook.npy"] != manifest.files["codebook.npy"]
    assert bundle.manifest.digest != manifest.digest
    assert bundle.manifest.model_copy(update={"files": manifest.files, "digest": manifest.digest}) == manifest
    np.testing.assert_array_equal(bundle.codebook(), np.ones((64, 3)))


def test_a_manifest_does_not_change():
    with pytest.raises(ValueError, match="frozen"):
        Architecture().channels = 3
    assert Architecture().factor == 4 and Architecture(multipliers=(1,)).factor == 1
    assert Normaliser().scales == (0,)
