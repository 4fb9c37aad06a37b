"""The benchmark on a folder of images, run as a user runs it: on PNGs of digits, and on folders it refuses."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from sklearn.datasets import load_digits

pytestmark = pytest.mark.benchmarks

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "image_folder.py"
PNG = b"\x89PNG\r\n\x1a\n"
# Grey of 8 and 16 bits, alpha channels, palettes: the same digits to the eye.
MODES = ("L", "I;16", "LA", "RGBA", "P", "RGB")
NAMED = {
    "0/broken.png": "truncated",
    "0/empty.png": "not an image",
    "1/notes.txt": "not an image",
    "1/within": "directory",
    "labels.csv": "not in the folder of a class",
}


def run(*arguments):
    """The script as a process of its own, on one thread, as its tensors are tiny."""
    return subprocess.run(
        [sys.executable, SCRIPT, *map(str, arguments)],
        capture_output=True,
        encoding="utf-8",
        env={**os.environ, "PYTHONIOENCODING": "utf-8", "OMP_NUM_THREADS": "1"},
    )


def write_digits(folder, of_each, classes):
    """Real PNGs, one sub-folder per digit."""
    digits = load_digits()
    for digit in range(classes):
        (folder / str(digit)).mkdir(parents=True)
        for number, pixels in enumerate(digits.images[digits.target == digit][:of_each]):
            mode = MODES[number % len(MODES)]
            grey = (pixels / 16 * 65535).astype("uint16") if mode == "I;16" else (pixels / 16 * 255).astype("uint8")
            image = Image.fromarray(grey)
            (image if mode == "I;16" else image.convert(mode)).save(folder / str(digit) / f"{number:03}.png")


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    """A run on a folder with all that may lie about in one; the results go to a folder among the classes."""
    folder = tmp_path_factory.mktemp("digits")
    write_digits(folder, of_each=40, classes=3)
    for hidden in (folder / ".cache", folder / "0" / ".thumbnails"):
        hidden.mkdir()
    whole = (folder / "0" / "000.png").read_bytes()
    (folder / "0" / "broken.png").write_bytes(whole[: len(whole) // 2])
    (folder / "0" / "empty.png").touch()
    (folder / "1" / "notes.txt").write_text("not an image")
    (folder / "1" / "within").mkdir()
    (folder / "labels.csv").write_text("000.png,0")
    out = folder / "results"
    out.mkdir()
    done = run(folder, "--quick", "--size", 8, "--batch-size", 16, "--out", out)
    assert done.returncode == 0, done.stderr
    return folder, out, done


def test_files_that_are_no_images_are_named_and_skipped(experiment):
    """Each on a line of its own on stderr, with the reason, and counted; hidden ones are not worth a word."""
    folder, out, done = experiment
    lines = [line for line in done.stderr.splitlines() if line.startswith("skipped ")]
    assert len(lines) == len(NAMED)
    for name, why in NAMED.items():
        assert any(line.startswith(f"skipped {folder / name}: ") and why in line for line in lines)
    assert "5 other files skipped" in done.stdout
    assert "Traceback" not in done.stderr
    assert len(read(out)["images"]["skipped"]) == len(NAMED)


def test_images_of_every_mode_are_learned_from(experiment):
    """Each class has all its images, and a few epochs at the found rate are enough to tell most of them apart."""
    _, out, _ = experiment
    record = read(out)
    assert record["images"]["classes"] == {"0": 40, "1": 40, "2": 40}
    assert max(run["test_accuracy"][-1] for run in record["runs"]) > 60


def test_results_are_written(experiment):
    """The table that was printed, the picture, and the numbers: a run for every optimizer and seed."""
    _, out, done = experiment
    assert {path.name for path in out.iterdir()} == {f"image_folder.{ending}" for ending in ("md", "json", "png")}
    table = (out / "image_folder.md").read_text(encoding="utf-8")
    assert table in done.stdout
    record = read(out)
    arms = {run["arm"] for run in record["runs"]}
    assert len(arms) == 4
    assert all(f"| {arm} " in table for arm in arms)
    assert {(run["arm"], run["seed"]) for run in record["runs"]} == {(arm, seed) for arm in arms for seed in (0, 1)}
    assert all(len(run["test_loss"]) == len(run["test_accuracy"]) == 1 + 3 for run in record["runs"])
    assert 0 < record["range_test"]["base_lr"] < record["range_test"]["max_lr"]
    assert (out / "image_folder.png").read_bytes().startswith(PNG)


def read(out):
    """The numbers, in JSON that knows no NaN."""

    def refuse(constant):
        raise ValueError(constant)

    return json.loads((out / "image_folder.json").read_text(), parse_constant=refuse)


def missing(folder):
    """No folder at all."""


def empty(folder):
    """A folder with nothing but what is hidden."""
    (folder / ".hidden").mkdir(parents=True)


def one_class(folder):
    """Nothing to tell apart."""
    write_digits(folder, of_each=4, classes=1)


def too_few_to_split(folder):
    """A class with one image, another with none that can be read."""
    write_digits(folder, of_each=2, classes=2)
    (folder / "0" / "001.png").unlink()
    (folder / "2").mkdir()
    (folder / "2" / "notes.txt").touch()


REFUSED = {
    missing: "is not a folder",
    empty: "has 0",
    one_class: "has 1",
    too_few_to_split: "'0' has 1, '2' has 0",
}


@pytest.mark.parametrize("prepare", REFUSED, ids=lambda prepare: prepare.__name__)
def test_folder_without_classes_to_tell_apart_is_refused(prepare, tmp_path):
    """One line says what is needed and what there is; no traceback, no results, exit status 2."""
    prepare(tmp_path / "images")
    done = run(tmp_path / "images", "--out", tmp_path / "out")
    assert done.returncode == 2
    assert not done.stdout
    last = done.stderr.splitlines()[-1]
    assert last.startswith("need ")
    assert last.endswith(REFUSED[prepare])
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_wrong_option_is_refused(tmp_path):
    """As argparse does it: the option, its rule and the value, exit status 2."""
    done = run(tmp_path, "--size", 7)
    assert done.returncode == 2
    assert done.stderr.endswith("error: need --size >= 8, got 7\n")


def test_curve_without_a_range_is_stated(tmp_path):
    """Where nothing is learned at any rate, it says so instead of inventing a range, with exit status 1."""
    for name in ("0", "1"):
        (tmp_path / name).mkdir()
        for number in range(40):
            Image.new("L", (8, 8)).save(tmp_path / name / f"{number}.png")
    done = run(tmp_path, "--quick", "--size", 8, "--out", tmp_path / "out")
    assert done.returncode == 1, done.stdout
    assert done.stderr.splitlines()[-1].startswith("no range found: the loss ")
    assert "Traceback" not in done.stderr
