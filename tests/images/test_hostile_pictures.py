"""Files made to exhaust whoever opens them: refused by what they claim, or read within bounds."""

from __future__ import annotations

import pytest
from hostile_pictures import ZOO, measure

# Of the whole zoo, those that are quickly made; the rest by `python tests/hostile_pictures.py`.
REFUSED = {
    "ico-png": "30000 x 30000 pixels",
    "ico-many": "30000 x 30000 pixels",
    "ico-bmp": "30000 x 30000 pixels",
    "ico-nothing": "no known image format",
    "png-rgba": "takes 605,520,000 bytes to read; the limit is 600,000,000",
    "png-itxt": "damaged",
    "png-ztxt-after": "damaged",
    "gif-screen": "damaged",
    "webp": "takes 655,360,000 bytes",
    "jpeg-scans": "more than 100 scans",
    "bmp-huge": "the limit is 100,000,000",
    "bmp-negative": "200 x 2147483648",
    "bmp-rle": "not enough image data",
    "ppm-huge": "a text file",
    "ppm-16": "takes 798,400,800 bytes",
    "tiff-tile": "60000 x 60000",
    "tiff-directory": "damaged",
}
READ = "png-1 png-exif png-frames gif-frames jpeg-exif tiff-pages tiff-strips".split()


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return measure([*REFUSED, *READ], tmp_path_factory.mktemp("zoo"))


@pytest.mark.parametrize("name", [*REFUSED, *READ])
def test_no_file_exhausts_its_reader(found, name):
    _, seconds, megabytes, outcome = found[name]
    assert megabytes < 620 and seconds < 10, found[name]
    if name in REFUSED:
        assert outcome.startswith("ImageError") and REFUSED[name] in outcome, outcome
        assert megabytes < 60 and seconds < 3, found[name]
    else:
        assert outcome.startswith("Image("), outcome


def test_the_zoo_is_all_known():
    assert not {*REFUSED, *READ} - set(ZOO)
