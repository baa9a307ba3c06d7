"""A folder of images: what is found in it, how an image becomes a sample, and what is refused."""

from __future__ import annotations

import errno
import io
import os
import re
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ppll.data import Dataset, load_dataset
from ppll.errors import DataError, RecipeError
from ppll.sections import DataConfig

from .conftest import Pixels, encoded, png, random_images

pytest.importorskip("PIL")

IMAGES = random_images(6, size=8)


def load(root: Path | None, **options: Any) -> Dataset:
    return load_dataset(DataConfig(name="image-folder", root=root, **{"size": 8, **options}))


def put(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Cats and dogs, made in no order."""
    root = tmp_path / "pets"
    names = ["train/dog/b.png", "train/cat/z.PNG", "train/dog/a.png", "train/cat/b.c.png"]
    for name, image in zip([*names, "test/dog/x.png", "test/cat/x.png"], IMAGES, strict=True):
        put(root / name, encoded(image))
    return root


def test_classes_and_images_are_ordered_by_name(root: Path) -> None:
    dataset = load(root)
    assert torch.equal(dataset.train.inputs, torch.from_numpy(IMAGES[[3, 1, 2, 0]]))
    assert dataset.train.targets.tolist() == [0, 0, 1, 1]
    assert torch.equal(dataset.test.inputs, torch.from_numpy(IMAGES[[5, 4]]))
    assert dataset.test.targets.tolist() == [0, 1]
    assert dataset.num_classes == 2


def test_mean_and_deviation_are_those_of_the_training_part(root: Path) -> None:
    dataset = load(root)
    assert dataset.mean == pytest.approx((IMAGES[:4] / 255).mean((0, 2, 3)))
    assert dataset.std == pytest.approx((IMAGES[:4] / 255).std((0, 2, 3)))


def test_what_is_hidden_or_no_image_does_not_matter(root: Path) -> None:
    before = load(root)
    for name in (".DS_Store", ".git/x.png", "train/.x.png", "train/cat/.x.png", "train/notes.txt"):
        put(root / name, b"no image")
    put(root / "train" / "cat" / "Thumbs.db", b"no image")
    put(root / "other" / "x.png", b"no image")
    assert load(root).equals(before)


def test_val_is_tested_with_where_there_is_no_test(root: Path) -> None:
    before = load(root)
    (root / "test").rename(root / "val")
    assert load(root).equals(before)
    put(root / "test" / "cat" / "a.png", encoded(IMAGES[0]))
    put(root / "test" / "dog" / "a.png", encoded(IMAGES[0]))
    assert torch.equal(load(root).test.inputs[0], torch.from_numpy(IMAGES[0]))


def test_classes_and_images_may_be_links(root: Path, tmp_path: Path) -> None:
    before = load(root)
    for split in ("train", "test"):
        (tmp_path / "linked" / split).mkdir(parents=True)
        (tmp_path / "linked" / split / "cat").symlink_to(root / split / "cat")
        for file in (root / split / "dog").iterdir():
            (tmp_path / "linked" / split / "dog").mkdir(exist_ok=True)
            (tmp_path / "linked" / split / "dog" / file.name).symlink_to(file)
    assert load(tmp_path / "linked").equals(before)


# An image becomes a sample


def one(root: Path, content: bytes, name: str = "a.png", **options: Any) -> Pixels:
    """The sample that a file becomes."""
    for split in ("train", "test"):
        put(root / split / "only" / name, content)
    return load(root, **options).train.inputs[0].numpy()


def saved(image: Any, form: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def picture(height: int, width: int) -> Any:
    """Red grows from top to bottom, green from left to right."""
    from PIL import Image

    image = np.zeros((height, width, 3), np.uint8)
    image[..., 0] = np.linspace(0, 255, height)[:, None]
    image[..., 1] = np.linspace(0, 255, width)[None]
    return Image.fromarray(image)


@pytest.mark.parametrize("size", [(16, 16), (8, 24), [32, 4], 5, 40])
@pytest.mark.parametrize(("height", "width"), [(16, 16), (16, 40), (64, 16), (7, 9)])
def test_the_middle_is_cut_out_and_scaled(
    tmp_path: Path, height: int, width: int, size: Any
) -> None:
    """Colours say which part of a picture is seen."""
    found = one(tmp_path, saved(picture(height, width), "PNG"), size=size)
    tall, wide = (size, size) if isinstance(size, int) else size
    assert found.shape == (3, tall, wide)
    scale = max(tall / height, wide / width)
    for colour, side, wanted in ((0, height, tall), (1, width, wide)):
        along = found[colour].astype(float).mean(1 if colour == 0 else 0)
        middles = (np.arange(wanted) + 0.5 - wanted / 2) / scale + side / 2 - 0.5
        expected = (255 * middles / (side - 1)).clip(0, 255)
        assert np.abs(along - expected).max() < 0.6 * 255 / (side - 1) + 2


def test_an_image_that_fits_is_left_as_it_is(tmp_path: Path) -> None:
    assert np.array_equal(one(tmp_path, encoded(IMAGES[0])), IMAGES[0])


def test_one_channel_is_grey(tmp_path: Path) -> None:
    found = one(tmp_path, encoded(IMAGES[0]), channels=1)
    grey = (IMAGES[0] * np.array([299, 587, 114]).reshape(3, 1, 1) / 1000).sum(0)
    assert found.shape == (1, 8, 8)
    assert np.abs(found[0] - grey).max() <= 1


@pytest.mark.parametrize(
    ("mode", "form", "options"),
    [
        ("1", "PNG", {}),
        ("L", "PNG", {"transparency": 3}),
        ("LA", "PNG", {}),
        ("P", "PNG", {"transparency": bytes(range(256))}),
        ("RGBA", "PNG", {}),
        ("RGB", "JPEG", {"quality": 100}),
        ("L", "JPEG", {"quality": 100}),
        ("CMYK", "JPEG", {"quality": 100}),
        ("RGB", "WEBP", {"lossless": True}),
        ("RGB", "BMP", {}),
        ("RGB", "PPM", {}),
    ],
)
def test_every_mode_becomes_rgb(tmp_path: Path, mode: str, form: str, options: Any) -> None:
    image = picture(8, 8).convert(mode)
    plain = image.convert("RGB") if mode != "P" else image.convert("RGBA").convert("RGB")
    found = one(tmp_path, saved(image, form, **options), f"a.{form.lower()}")
    expected = np.asarray(plain).transpose(2, 0, 1).astype(int)
    assert np.abs(found - expected).max() <= (40 if form == "JPEG" else 0)


def test_an_image_is_turned_as_its_exif_says(tmp_path: Path) -> None:
    image = picture(8, 8)
    exif = image.getexif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    found = one(tmp_path, saved(image, "PNG", exif=exif))
    assert np.array_equal(found, np.rot90(np.asarray(image), -1).transpose(2, 0, 1))


# The cache


def test_images_are_decoded_once(root: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load(root)
    monkeypatch.setitem(sys.modules, "ppll.data.images", None)  # an import would fail
    assert load(root).equals(first)
    assert len(list(cache.iterdir())) == 1


@pytest.mark.parametrize(
    "change", ["content", "time", "name", "class", "more", "size", "channels", "pillow"]
)
def test_any_change_is_seen(
    root: Path, cache: Path, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    load(root)
    file, options = root / "train" / "cat" / "z.PNG", {}
    if change == "content":
        file.write_bytes(encoded(IMAGES[0]) + b"more")
    elif change == "time":
        os.utime(file, ns=(1, 1))
    elif change == "name":
        file.rename(file.with_name("y.png"))
    elif change == "class":
        for split in ("train", "test"):
            (root / split / "cat").rename(root / split / "lion")
    elif change == "more":
        put(root / "test" / "dog" / "y.png", encoded(IMAGES[0]))
    elif change == "pillow":
        monkeypatch.setattr(metadata, "version", lambda name: "0")
    else:
        options = {change: 3 if change == "size" else 1}
    load(root, **options)
    assert len(list(cache.iterdir())) == 2


# What is refused


def test_a_root_is_needed() -> None:
    with pytest.raises(DataError, match=r"needs data\.root: the folder that holds train/<class>/"):
        load(None)


def test_a_root_that_is_not_there_is_named(root: Path) -> None:
    with pytest.raises(DataError, match=r"data\.root = .*nowhere is not there: name the folder"):
        load(root / "nowhere")


def test_a_size_is_needed(root: Path) -> None:
    with pytest.raises(RecipeError, match=r"data\.size must be given .*: Height and width of"):
        load_dataset(DataConfig(name="image-folder", root=root))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"size": 0}, r"data\.size must be 1 or more, found 0"),
        ({"size": [8, -1]}, r"data\.size must be 1 or more, found \(8, -1\)"),
        ({"size": 2**40}, r"4 images of \d+ x \d+ pixels do not fit into memory"),
    ],
)
def test_sizes_that_cannot_be_are_refused(root: Path, options: Any, words: str) -> None:
    with pytest.raises(DataError, match=words):
        load(root, **options)


@pytest.mark.parametrize("options", [{"channels": 2}, {"size": [1, 2, 3]}, {"size": "large"}])
def test_other_options_are_refused(root: Path, options: Any) -> None:
    with pytest.raises(RecipeError, match=rf"data\.{next(iter(options))}"):
        load(root, **options)


def _no_train(root: Path) -> None:
    (root / "train").rename(root / "training")


def _no_test(root: Path) -> None:
    (root / "test").rename(root / "tests")


def _other_class(root: Path) -> None:
    put(root / "train" / "bird" / "a.png", encoded(IMAGES[0]))
    put(root / "test" / "fish" / "a.png", encoded(IMAGES[0]))


def _no_class(root: Path) -> None:
    for name in ("cat", "dog"):
        (root / "train" / name).rename(root / name)


def _empty_class(root: Path) -> None:
    (root / "train" / "bird").mkdir()


def _only_text(root: Path) -> None:
    put(root / "test" / "bird" / "a.txt", b"a bird")


def _outside(root: Path) -> None:
    put(root / "train" / "a.png", encoded(IMAGES[0]))


def _deeper(root: Path) -> None:
    put(root / "train" / "cat" / "more" / "a.png", encoded(IMAGES[0]))


def _circle(root: Path) -> None:
    (root / "train" / "cat" / "all").symlink_to(root)


def _dead_link(root: Path) -> None:
    (root / "train" / "cat" / "c.png").symlink_to("nowhere")


def _dead_class(root: Path) -> None:
    for part in ("train", "test"):
        (root / part / "bird").symlink_to("/nowhere/bird")


def _dead_test(root: Path) -> None:
    (root / "test").rename(root / "val")
    (root / "test").symlink_to("/nowhere/test")


def _link_to_itself(root: Path) -> None:
    (root / "train" / "cat" / "c.png").symlink_to("c.png")


def _pipe(root: Path) -> None:
    os.mkfifo(root / "train" / "cat" / "c.png")


@pytest.mark.timeout(10)
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_no_train, "pets has no folder train: images lie in train/<class>/"),
        (_no_test, "pets has no folder test or val"),
        (_other_class, "same classes, but only .*train has 'bird'; only .*test has 'fish'"),
        (_no_class, "train holds no classes"),
        (_empty_class, r"train/bird holds no image \(\.png, .*\): add some"),
        (_only_text, "test/bird holds no image"),
        (_outside, r"train/a\.png lies in no class"),
        (_deeper, "train/cat/more is a folder in a class"),
        (_circle, "train/cat/all is a folder in a class"),
        (_dead_link, r"train/cat/c\.png is no file: a link that leads nowhere"),
        (_dead_class, "train/bird is a link that leads nowhere: mend it, or take it away"),
        (_dead_test, "pets/test is a link that leads nowhere"),
        (_link_to_itself, r"train/cat/c\.png cannot be read: Too many levels of symbolic links"),
        (_pipe, r"train/cat/c\.png is no file"),
    ],
)
def test_another_order_of_folders_is_named(root: Path, change: Any, words: str) -> None:
    change(root)
    with pytest.raises(DataError, match=words):
        load(root)


GOOD = encoded(IMAGES[0])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "cannot be decoded: it is no whole PNG or JPEG"),
        (b"GIF89a", "cannot be decoded"),
        (GOOD[:-20], "cannot be decoded"),
        (GOOD.replace(b"IDAT", b"IDAT\0", 1), "cannot be decoded"),
    ],
)
def test_a_damaged_image_is_named(root: Path, content: bytes, words: str) -> None:
    put(root / "test" / "dog" / "x.png", content)
    with pytest.raises(DataError, match=rf"the image .*pets/test/dog/x\.png {words}"):
        load(root)


def test_a_truncated_jpeg_is_named(tmp_path: Path) -> None:
    content = saved(picture(64, 64), "JPEG")
    with pytest.raises(DataError, match=r"a\.jpg cannot be decoded .*truncated"):
        one(tmp_path, content[:-200], "a.jpg")


@pytest.mark.parametrize(
    ("name", "content", "mode"),
    [
        ("a.png", png(16, "grey"), "I;16"),
        ("a.png", png(16, "RGB"), "RGB"),
        ("a.png", png(16, "RGBA"), "RGBA"),
        ("a.ppm", b"P6 8 8 65535\n" + b"\x12\x34" * 192, "RGB"),
        ("a.ppm", b"P6 8 8 256\n" + b"\0\x34" * 192, "RGB"),
        ("a.ppm", b"P3 8 8 65535\n" + b"4660 " * 192, "RGB"),
        ("a.pgm", b"P5 8 8 65535\n" + b"\x12\x34" * 64, "I"),
    ],
)
def test_more_than_8_bits_a_channel_are_refused(
    tmp_path: Path, name: str, content: bytes, mode: str
) -> None:
    """Pillow would keep the high ones of RGB in silence."""
    words = f"{re.escape(name)} has more than 8 bits a channel \\({re.escape(mode)}\\)"
    with pytest.raises(DataError, match=words):
        one(tmp_path, content, name)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.png", png(8, "RGB")),
        ("a.ppm", b"P6 8 8 255\n" + b"\x12" * 192),
        ("a.ppm", b"P6 8 8 15\n" + b"\x02" * 192),
        ("a.pgm", b"P2 8 8 100\n" + b"20 " * 64),
    ],
)
def test_up_to_8_bits_a_channel_are_read(tmp_path: Path, name: str, content: bytes) -> None:
    assert one(tmp_path, content, name).size == 3 * 8 * 8


def test_a_folder_that_cannot_be_read_is_named(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match="pets/train cannot be read: Permission denied"):
        load(root)


def test_missing_pillow_is_named(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ppll.data.images", None)
    with pytest.raises(DataError, match=r"needs Pillow.* pip install 'pillow>=10'"):
        load(root)
