from pathlib import Path

import numpy as np
import pytest

from cascaded_diffusion.data.arrays import RowWriter, save_array

ROWS = np.random.default_rng(0).integers(0, 256, (5, 2, 3), dtype=np.uint8)


@pytest.mark.parametrize("order", [[0, 1, 2, 3, 4], [3, 0, 4, 2, 1]])
def test_rows_may_come_in_any_order(tmp_path: Path, order: list[int]) -> None:
    writer = RowWriter(tmp_path / "a.npy", ROWS.shape)
    for row in order:
        writer.write(row, ROWS[row])
    writer.close()
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), ROWS)


@pytest.mark.parametrize("missing", [[0], [4], [3, 1], [0, 1, 2, 3, 4]])
def test_missing_rows_are_left_out(tmp_path: Path, missing: list[int]) -> None:
    writer = RowWriter(tmp_path / "a.npy", ROWS.shape)
    for row in range(5):
        if row not in missing:
            writer.write(row, ROWS[row])
    writer.close(missing)
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), np.delete(ROWS, missing, axis=0))
    assert [path.name for path in tmp_path.iterdir()] == ["a.npy"]


def test_the_file_is_what_numpy_writes(tmp_path: Path) -> None:
    writer = RowWriter(tmp_path / "a.npy", ROWS.shape)
    for row in range(5):
        writer.write(row, ROWS[row])
    writer.close()
    save_array(tmp_path / "b.npy", ROWS)
    assert (tmp_path / "a.npy").read_bytes() == (tmp_path / "b.npy").read_bytes()
