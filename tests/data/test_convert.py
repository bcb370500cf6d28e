from pathlib import Path

import numpy as np

from cascaded_diffusion.data.convert import Converted, convert_all
from cascaded_diffusion.data.folder import FolderReader
from cascaded_diffusion.data.pixels import area_resize, bicubic_enlarge, centre_square
from cascaded_diffusion.data.sources import ArrayReader, Bad, Facts


def test_every_resolution_comes_from_the_same_crop(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 12, 17, 3), dtype=np.uint8)
    np.save(tmp_path / "a.npy", images)
    converted = convert_all(ArrayReader(tmp_path / "a.npy", "a"), 3, (4, 8, 12), [2, 0])
    for result, index in zip(converted, [2, 0], strict=True):
        assert isinstance(result, Converted)
        assert not result.upscaled
        crop = centre_square(images[index][None])
        for size in (4, 8, 12):
            np.testing.assert_array_equal(result.images[size], area_resize(crop, size)[0])


def test_small_crops_are_enlarged_only_where_needed(tmp_path: Path) -> None:
    images = np.random.default_rng(1).integers(0, 256, (1, 6, 6, 1), dtype=np.uint8)
    np.save(tmp_path / "b.npy", images)
    (result,) = convert_all(ArrayReader(tmp_path / "b.npy", "b"), 1, (3, 9), [0])
    assert isinstance(result, Converted)
    assert result.upscaled
    np.testing.assert_array_equal(result.images[3], area_resize(images, 3)[0])
    np.testing.assert_array_equal(result.images[9], bicubic_enlarge(images, 9)[0])


def test_bad_images_keep_their_place(class_folder: Path) -> None:
    (class_folder / "ant/1.png").write_text("no image")
    reader = FolderReader(class_folder)
    keys = ["ant/0.png", "ant/1.png", "ant/2.png"]
    assert [type(result) for result in convert_all(reader, 3, (8,), keys)] == [Converted, Bad, Converted]
    assert [type(result) for result in reader.look(keys, with_digest=True)] == [Facts, Bad, Facts]
