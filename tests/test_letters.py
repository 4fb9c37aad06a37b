"""The letters that the benchmarks make: the same from the same seed, balanced, apart, and kept whole or not at all."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.benchmarks

FOLDER = Path(__file__).parent.parent / "benchmarks"
SIZE = (520, 260, 260)


@pytest.fixture(scope="module")
def module():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(FOLDER)
        yield importlib.import_module("letters")


@pytest.fixture(scope="module")
def kept(module, tmp_path_factory):
    """A small data set and the folder that keeps it."""
    folder = tmp_path_factory.mktemp("cache")
    return module.letters(SIZE, cache=folder), folder


def parts(data):
    return data.train, data.validation, data.test


def same(one, other):
    pairs = zip(parts(one), parts(other), strict=True)
    return all(torch.equal(mine, yours) for a, b in pairs for mine, yours in zip(a, b, strict=True))


def test_the_same_seed_makes_the_same_letters(module, kept, tmp_path):
    """Image by image and label by label, made a second time and not read from where the first are kept."""
    again = module.letters(SIZE, cache=tmp_path)
    assert same(again, kept[0])
    assert again.digest == kept[0].digest


def test_another_seed_makes_other_letters(module, kept):
    """Also where those of the first seed are kept already."""
    data, folder = kept
    other = module.letters(SIZE, seed=1, cache=folder)
    assert other.digest != data.digest
    assert not any(torch.equal(one[0], two[0]) for one, two in zip(parts(other), parts(data), strict=True))


def test_a_part_does_not_depend_on_the_size_of_another(module, kept, tmp_path):
    """More validation images leave those of the training and of the test what they are."""
    data, larger = kept[0], module.letters((SIZE[0], 2 * SIZE[1], SIZE[2]), cache=tmp_path)
    assert torch.equal(larger.train[0], data.train[0])
    assert torch.equal(larger.test[0], data.test[0])
    assert larger.digest != data.digest


def test_each_part_has_as_many_of_each_letter(module, kept):
    """The sizes here are multiples of the 26 classes; and they are in no order."""
    for count, (images, labels) in zip(SIZE, parts(kept[0]), strict=True):
        assert images.shape == (count, 1, 16, 16)
        assert labels.bincount().tolist() == [count // 26] * 26
        assert labels[:26].unique().numel() < 26


def test_each_font_and_case_is_used_alike(module, monkeypatch):
    """Where there are as many images as letters of fonts, each is used once; where fewer, all fonts and both cases."""
    numbered = torch.arange(4 * 2 * 26).view(4, 2, 26, 1, 1).numpy()
    monkeypatch.setattr(module, "warp", lambda rng, pictures: pictures)
    monkeypatch.setattr(module, "photograph", lambda rng, pictures: pictures)

    def used(count):
        images, labels = module.make_part(numbered, count, module.np.random.default_rng(0))
        font_and_case, letters = torch.tensor(images.ravel()).div(26, rounding_mode="floor"), images.ravel() % 26
        assert (letters == labels).all()
        return font_and_case.bincount().tolist(), len({*images.ravel()})

    assert used(4 * 2 * 26) == ([26] * 8, 4 * 2 * 26)
    assert {*used(2 * 26)[0]} == {6, 7}


def test_no_image_is_in_two_parts(kept):
    """Nor twice in one of them."""
    images = [image.numpy().tobytes() for part in parts(kept[0]) for image in part[0]]
    assert len({*images}) == len(images) == sum(SIZE)


def test_images_are_normalised_by_the_training_images(kept):
    """With mean 0 and deviation 1 over all training pixels; the labels are what cross_entropy takes."""
    data, _ = kept
    deviation, mean = torch.std_mean(data.train[0], correction=0)
    assert mean.item() == pytest.approx(0, abs=1e-6)
    assert deviation.item() == pytest.approx(1, abs=1e-6)
    assert all((images.dtype, labels.dtype) == (torch.float32, torch.int64) for images, labels in parts(data))


def test_kept_letters_are_not_made_again(module, kept, monkeypatch):
    """And are what was made, to the bit."""
    data, folder = kept
    monkeypatch.delattr(module, "make")
    again = module.letters(SIZE, cache=folder)
    assert same(again, data)
    assert again.digest == data.digest


def half(content):
    return content[: len(content) // 2]


def nothing(content):
    return b""


def another_file(content):
    return b"letters"


@pytest.mark.parametrize("broken", [half, nothing, another_file])
def test_a_broken_cache_is_made_anew(module, kept, tmp_path, broken):
    """The file that a crash or a full disk left is replaced by a whole one; no other is left beside it."""
    module.letters(SIZE, cache=tmp_path)
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    path.write_bytes(broken(whole))
    assert same(module.letters(SIZE, cache=tmp_path), kept[0])
    assert [*tmp_path.iterdir()] == [path]
    assert path.read_bytes() == whole


def test_a_cache_that_holds_something_else_is_made_anew(module, kept, tmp_path):
    """A file that reads well, with a pixel that is not what it was when the file was written."""
    module.letters(SIZE, cache=tmp_path)
    (path,) = tmp_path.iterdir()
    with module.np.load(path) as file:
        contents = dict(file)
    contents["arr_0"][0, 0, 0] ^= 1
    module.np.savez(path, **contents)
    assert same(module.letters(SIZE, cache=tmp_path), kept[0])


def test_fonts_are_those_with_all_the_letters(module):
    """Each font named has a glyph for each letter; matplotlib's last resort has one for all, STIX's symbols none."""
    files = module.font_files()
    assert tuple(file.stem for file in files) == module.FONTS
    assert all(module.has_letters(file) for file in files)
    others = ("LastResortHE-Regular", "STIXNonUni")
    assert not any(module.has_letters(files[0].with_name(f"{name}.ttf")) for name in others)


def test_a_folder_adds_its_fonts_that_are_not_there_yet(module, kept, tmp_path):
    """Also from its sub-folders; not what has the name of one of matplotlib's, no symbols; and the data is another."""
    source = module.font_files()[0].parent
    fonts = tmp_path / "fonts"
    (fonts / "within").mkdir(parents=True)
    for name, original in {"B": "cmr10", "cmr10": "cmr10", "Symbols": "STIXNonUni", "within/A": "cmss10"}.items():
        (fonts / f"{name}.ttf").write_bytes((source / f"{original}.ttf").read_bytes())
    (fonts / "C.txt").touch()
    data = module.letters(SIZE, cache=kept[1], fonts=fonts)
    assert data.fonts == (*module.FONTS, "A", "B")
    assert data.digest != kept[0].digest


def test_empty_parts_are_refused(module, tmp_path):
    """Nothing can be normalised or measured by no images; the message names the sizes, and nothing is kept."""
    with pytest.raises(ValueError, match=r"need at least one image in each part, got size=\(10, 0, 10\)"):
        module.letters((10, 0, 10), cache=tmp_path)
    assert [*tmp_path.iterdir()] == []


def test_the_command_writes_a_sheet_and_a_record(tmp_path):
    """The fonts, the digest and the difficulty are recorded; the sheet is a small PNG."""
    command = [sys.executable, FOLDER / "letters.py", "--quick", "--out", tmp_path, "--cache", tmp_path / "cache"]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "letters.json").read_text())
    assert record["digest"] in done.stdout
    assert len(record["fonts"]) == 22
    assert record["environment"].keys() >= {"numpy", "pillow", "freetype"}
    for found in record["difficulty"].values():
        assert all(0 <= found[f"{part}_accuracy"] <= 100 for part in record["size"])
    png = (tmp_path / "letters.png").read_bytes()
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    assert len(png) < 150_000
