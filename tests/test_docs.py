"""The documents are true: their commands run, their options exist, their links lead somewhere, the tree is the tree."""

import functools
import os
import re
import shutil
import subprocess
import sys

import nibabel
import numpy as np
import pytest
import typer

import documents
from conftest import as_nibabel
from documents import DOCUMENTS, GUIDES, ROOT, RUN_LANGUAGES
from sctrt import Volume, cli
from sctrt import bundle as bundles
from sctrt.phantom.labels import Tissue
from test_bundle import change
from test_cli import a_ct, all_zero, four_dimensional, not_nifti, one_slice, singular, tiny_body, truncated, with_nan
from test_timeline import STAGES

SLOW = os.environ.get("SCTRT_SLOW_DOCS") == "1"
LIMIT_S = 3600 if SLOW else 300
OPTION = re.compile(r"(?<![\w-])--[a-z][\w-]*")


def name(document):
    return document.relative_to(ROOT).as_posix()


@pytest.fixture(scope="session")
def files(nac_body, tmp_path_factory):
    """What documents call nac.nii.gz, ct.nii.gz, mine.sctrt, ...: of a body that is small and soon done."""
    pet = nac_body.pet()
    ct, affine = nac_body.ct(pet), pet.affine
    adult = Volume(ct.array, affine @ np.diag([1.25, 1.25, 1.25, 1.0]), "HU")  # of the litre that simulate asks for
    sct = Volume(ct.array + np.where(ct.array > -900, 20, 0).astype(np.float32), affine, "HU")
    tissues = np.select([ct.array > 200, ct.array > 0, ct.array > -900], [Tissue.BONE, Tissue.SOFT, Tissue.LUNG], 0)
    spread = Volume(np.abs(np.sin(np.arange(ct.array.size, dtype=np.float32))).reshape(ct.shape), affine, "HU")
    volumes = {
        **dict.fromkeys(("nac", "activity", "pet_of_sct", "pet_of_ct", "cases/a/nac"), pet),
        **dict.fromkeys(("ct", "true_ct", "cts/a", "cts/b", "cases/a/ct"), ct),
        **dict.fromkeys(("sct", "scts/a", "scts/b"), sct),
        "real_ct": adult,
        "u": spread,
        "labels": Volume(tissues.astype(np.uint8), affine, "label"),
    }
    folder = tmp_path_factory.mktemp("documents")
    for path, volume in volumes.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        volume.save(folder / f"{path}.nii.gz")
    (folder / "pairs.csv").write_text("name,sct,ct,uncertainty\nsomeone,sct.nii.gz,ct.nii.gz,u.nii.gz\n")
    for bundle in ("mine.sctrt", "fold0.sctrt", "fold1.sctrt"):
        shutil.copytree(bundles.default_bundle(), folder / bundle)
    change(folder / "fold1.sctrt", name="another")
    return folder


@pytest.fixture(scope="session")
def environment(tmp_path_factory):
    """`sctrt` is this checkout's; nothing is fetched or kept."""
    folder = tmp_path_factory.mktemp("bin")
    script = folder / "sctrt"
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m sctrt.cli "$@"\n')
    script.chmod(0o755)
    path = os.pathsep.join([str(folder), os.path.dirname(sys.executable), os.environ["PATH"]])
    nowhere = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    return {**os.environ, **nowhere, "PATH": path, "PYTHONPATH": str(ROOT), "SCTRT_ENGINE_DIR": str(folder / "engines")}


def to_run(document):
    kinds = ("run", "slow") if SLOW else ("run",)
    return [block for block in documents.blocks(document) if block.language in RUN_LANGUAGES and block.kind in kinds]


@pytest.mark.parametrize("document", [document for document in GUIDES if to_run(document)], ids=name)
def test_the_commands_run(document, files, environment, tmp_path):
    """One after another, in one folder with the files that documents name."""
    pytest.importorskip("lightning")
    folder = shutil.copytree(files, tmp_path / "work")
    for block in to_run(document):
        program = ["bash", "-euc"] if block.language == "bash" else [sys.executable, "-c"]
        done = subprocess.run(
            [*program, block.text], cwd=folder, env=environment, capture_output=True, text=True, timeout=LIMIT_S
        )
        assert done.returncode == 0, f"{name(document)}:{block.line}\n{block.text}\n{done.stdout}\n{done.stderr}"


def test_every_block_is_run_or_says_why_not():
    found = {document: documents.blocks(document) for document in GUIDES}
    assert {block.language for of in found.values() for block in of} <= {*RUN_LANGUAGES, ""}
    marks = {name(document): document.read_text().count("<!-- test:") for document in GUIDES}
    kept = {name(document): sum(block.kind != "run" for block in of) for document, of in found.items()}
    assert marks == kept, "a mark is <!-- test: skip, REASON --> or slow, on the line before its block"
    assert sum(block.kind == "run" and block.language != "" for of in found.values() for block in of) > 10


# Options


@functools.cache
def command_line():
    return typer.main.get_command(cli.app)


@functools.cache
def options_of(command=None):
    """Of one command, or of all."""
    known = command_line().commands
    chosen = [known[command]] if command else [*known.values(), command_line()]
    return {option for one in chosen for parameter in one.params for option in parameter.opts} | {"--help"}


def parse(words):
    """Parses the words after `sctrt` as the command line does, and does not run it."""
    command, *rest = words[1:] if words[0] == "--debug" else words
    return command_line().commands[command].make_context(command, rest)


def complaint(words):
    """Of the parser, or nothing."""
    try:
        parse(words)
    except Exception as error:
        return f"sctrt {' '.join(words)}: {getattr(error, 'message', '') or error!r}"
    return ""


@pytest.mark.parametrize("document", DOCUMENTS, ids=name)
def test_commands_in_blocks_are_what_the_parser_takes(document):
    scripts = [block.text for block in documents.blocks(document) if block.language == "bash"]
    for words in (words for script in scripts for words in documents.commands(script)):
        ours = words[0].split("/")[-1] == "sctrt"
        problem = complaint(words[1:]) if ours else complaint_about_script(words)
        assert not problem, f"{name(document)}: {problem}"


def complaint_about_script(words):
    """Where a script of the checkout is run: it is there, and knows the options."""
    scripts = [word for word in words if re.match(r"(benchmarks|export|\.ci)/", word)]
    if not scripts:
        return ""
    path = ROOT / scripts[0]
    if not path.is_file():
        return f"there is no {scripts[0]}"
    unknown = [word for word in words if OPTION.fullmatch(word) and not knows(path, word)]
    return f"{scripts[0]} has no {', '.join(unknown)}" if unknown else ""


def knows(script, option):
    """By its text: the option itself, or the parameter that typer makes it of."""
    text = script.read_text()
    parameter = option.removeprefix("--").replace("-", "_")
    return option in text or re.search(rf"^    {parameter}: ", text, re.MULTILINE) is not None


@pytest.mark.parametrize("document", DOCUMENTS, ids=name)
def test_options_in_sentences_exist(document):
    scripts = [*ROOT.glob("benchmarks/*.py"), *ROOT.glob("export/*.py")]
    for span in documents.code_spans(document):
        words = span.split()
        if words[0] == "sctrt" and len(words) > 1 and not words[1].startswith("-"):
            assert words[1] in command_line().commands, f"{name(document)}: `{span}`"
            for option in OPTION.findall(span):
                assert option in options_of(words[1]), f"{name(document)}: `{span}`"
        elif words[0] in ("python", "export/phantom_small.py") and "/" in span:
            assert not complaint_about_script(words), f"{name(document)}: {complaint_about_script(words)}"
        elif span.startswith("--"):
            known = words[0] in options_of() or any(knows(script, words[0]) for script in scripts)
            assert known, f"{name(document)}: nothing has `{words[0]}`"


def test_the_parser_is_asked():
    assert complaint(["synthesize", "nac.nii.gz", "-o", "ct.nii.gz", "--profile"]) == ""
    assert "--profil" in complaint(["synthesize", "nac.nii.gz", "--profil-e"])
    assert complaint(["mu-map", "ct.nii", "-o", "mu.nii", "--fwhm-mm", "five"])
    assert complaint(["mu-map", "ct.nii"]) and complaint(["no-such-command"])
    script = "for s in 1 2; do sctrt simulate -o b_$s --seed $s; done  # comment\na && .venv/bin/sctrt info | cat\n"
    assert list(documents.commands(script)) == [
        *(["for", "s", "in", "1", "2"], ["sctrt", "simulate", "-o", "b_1", "--seed", "1"], ["done"], ["a"]),
        *([".venv/bin/sctrt", "info"], ["cat"]),
    ]
    assert complaint_about_script(["python", "benchmarks/readme.py", "--check"]) == ""
    assert "no --chekc" in complaint_about_script(["python", "benchmarks/readme.py", "--chekc"])
    assert "there is no" in complaint_about_script(["benchmarks/absent.sh"])


# Links and files


@pytest.mark.parametrize("document", DOCUMENTS, ids=name)
def test_links_lead_to_files_and_headings(document):
    for target in documents.links(document):
        path, _, anchor = target.partition("#")
        there = (document.parent / path).resolve() if path else document
        assert there.exists(), f"{name(document)}: there is no {target}"
        assert not anchor or anchor in documents.anchors(there), f"{name(document)}: no heading {target}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=name)
def test_files_in_sentences_exist(document):
    for span in documents.code_spans(document):
        for path in re.findall(r"(?<![\w./-])(?:benchmarks|csrc|docs|export|sctrt|tests|\.ci)/[\w./*-]+", span):
            if path.endswith((".json", "/")) or re.fullmatch(r"\.ci/\w+|.*\.(py|sh|md|h|cpp|cu)", path) is None:
                continue
            assert list(ROOT.glob(path)), f"{name(document)}: there is no `{path}`"


def test_the_readme_leads_to_every_document():
    linked = {(ROOT / target.partition("#")[0]).resolve() for target in documents.links(ROOT / "README.md")}
    assert set(GUIDES) - {ROOT / "README.md"} <= linked


def test_the_readme_names_every_command():
    spans = documents.code_spans(ROOT / "README.md")
    assert {span.split()[1] for span in spans if span.startswith("sctrt ")} >= command_line().commands.keys()


def test_the_tree_is_the_tree():
    found = documents.tree_of(ROOT / "README.md")
    absent = [f"{folder}/{pattern}" for folder, pattern in found if not list((ROOT / folder).glob(pattern))]
    assert absent == []
    named = {path for folder, pattern in found for path in (ROOT / folder).glob(pattern)}
    modules = {path for path in (ROOT / "sctrt").rglob("*.py") if not path.name.startswith("__")}
    assert sorted(name(path) for path in modules - named) == [], "say in README's tree what they are"


def test_every_stage_is_explained():
    rows = re.findall(r"^\| (`.+`) \| ", (ROOT / "docs/speed.md").read_text(), re.MULTILINE)
    assert sorted(re.findall(r"`(\w+)`", " ".join(rows))) == sorted([*STAGES, "open"])


def test_the_limits_are_the_shipped_models():
    manifest = bundles.load().manifest
    low, high = manifest.hu_range
    text = (ROOT / "docs/limits.md").read_text()
    assert f"{low:.0f} to {high:.0f} in the model that ships" in text
    assert f"({manifest.spacing_mm:.0f} mm in the model that ships)" in text


# Refusals


def no_orientation(path, pet):
    image = nibabel.Nifti1Image(pet, None)
    image.set_sform(None, code=0)
    image.set_qform(None, code=0)
    nibabel.save(image, path)


def dicom(path, pet):
    path.write_bytes(bytes(128) + b"DICM" + bytes(400))


REFUSALS = {
    "a dynamic series": four_dimensional,
    "one slice": one_slice,
    "NaN or infinity": with_nan,
    "nothing but zeros": all_zero,
    "a CT": a_ct,
    "voxels in the wrong unit": tiny_body,
    "no orientation": no_orientation,
    "axes that do not span space": singular,
    "DICOM": dicom,
    "another file": not_nifti,
    "a file that breaks off": truncated,
}


def test_refusals_are_quoted_word_by_word(run, nac_body, tmp_path):
    rows = re.findall(r"^\| ([^|]+) \| `(.+)` \|$", (ROOT / "docs/your_data.md").read_text(), re.MULTILINE)
    assert {given for given, _ in rows} == REFUSALS.keys()
    pet = np.ascontiguousarray(as_nibabel(nac_body.pet()).get_fdata(dtype=np.float32))
    for given, quoted in rows:
        path = tmp_path / "bad.nii.gz"
        REFUSALS[given](path, pet.copy())
        code, _, said = run("synthesize", path, "--plan")  # refuses as a synthesis does, and loads no network
        assert code == 3 and quoted in said, given
