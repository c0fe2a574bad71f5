"""Stored images: the fast JPEG decoder agrees with Pillow, and all other formats still decode."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from hf_mmbalance.model.inputs_mmbalance import _Jpeg, as_frames
from hf_mmbalance.model.media_mmbalance import MediaError


def picture(seed: int = 0) -> Image.Image:
    rng = np.random.default_rng(seed)
    light = rng.integers(0, 200, (6, 8, 1))  # strong in light, gentle in colour, as photographs are
    small = (light + rng.integers(0, 50, (6, 8, 3))).astype(np.uint8)
    return Image.fromarray(small).resize((64, 48), Image.Resampling.BICUBIC)


def stored(image: Image.Image, kind: str, **options) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
def test_jpeg_agrees_with_pillow(subsampling):
    content = stored(picture(), "JPEG", quality=90, subsampling=subsampling)
    assert _Jpeg().decode(content) is not None
    difference = np.abs(as_frames([content])[0].astype(int) - np.asarray(Image.open(io.BytesIO(content))))
    assert difference.mean() < 2.5 and difference.max() < 40


def test_other_formats_are_decoded_by_pillow():
    for content in (
        stored(picture(), "PNG"),
        stored(picture().convert("L"), "JPEG"),
        stored(picture().convert("CMYK"), "JPEG"),
        stored(picture(), "WEBP"),
    ):
        assert _Jpeg().decode(content) is None
        assert as_frames([content])[0].shape == (48, 64, 3)
    np.testing.assert_array_equal(as_frames([stored(picture(), "PNG")])[0], np.asarray(picture()))


def test_rotated_photographs_are_set_upright():
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees clockwise to set it upright
    content = stored(picture(), "JPEG", exif=exif, quality=95)
    upright = as_frames([content])[0]
    assert upright.shape == (64, 48, 3)
    assert np.abs(upright.astype(int) - np.rot90(np.asarray(picture()), -1)).mean() < 6


def test_crop_and_size():
    half = as_frames([stored(picture(), "PNG")], crop=(0.5, 0.0, 1.0, 1.0))[0]
    np.testing.assert_array_equal(half, np.asarray(picture())[:, 32:])
    assert as_frames([stored(picture(), "PNG")], size=(10, 12))[0].shape == (10, 12, 3)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_damaged_images_are_refused(kind):
    content = stored(picture(), kind)
    for bad, reason in (
        (content[: len(content) // 2], "undecodable"),  # FFmpeg would make up the rest of a JPEG
        (b"", "undecodable"),
        ("no/such.jpg", "missing"),
        (None, "missing"),
    ):
        with pytest.raises(MediaError) as caught:
            as_frames([bad])
        assert caught.value.reason == reason


def test_an_image_bomb_is_refused_before_it_is_decoded():
    with pytest.raises(MediaError, match="13000 x 13000 pixels are over max_pixels") as caught:
        as_frames([stored(Image.new("1", (13000, 13000)), "PNG")])
    assert caught.value.reason == "too_large"
