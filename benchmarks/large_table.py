"""What reading a benchmark of 3 GB takes: peak memory and processor time.

    python benchmarks/large_table.py            # 3 GB in the system's folder for temporary files
    python benchmarks/large_table.py --gb 0.2

Makes a TSV in the layout of VLMEvalKit, of rows with pictures of 2 MB in base64 (every tenth names
the picture of the row before it), reads its questions, then decodes one picture from its middle;
then reads it as `ablate` does, which reads each picture once for its digest. With `--whole` that is
done by the reader that holds a file in memory, for comparison.
"""

from __future__ import annotations

import argparse
import base64
import io
import resource
import tempfile
import time
from pathlib import Path

ROW = 2_000_000  # characters of a picture


def main() -> None:
    """Print it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--gb", type=float, default=3.0)
    parser.add_argument("--whole", action="store_true")
    given = parser.parse_args()
    size = given.gb * 1e9
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "large.tsv")
        rows = write(path, size)
        from cot_engine.benchmarks.questions import read_questions

        before, began = peak(), time.process_time()
        questions = read_questions(path, troubles := [])
        took = time.process_time() - began
        assert len(questions) == rows and not troubles
        print(f"{path.stat().st_size / 1e9:.2f} GB, {rows:,} rows, pictures of {ROW / 1e6:.0f} MB")
        print(f"questions read in {took:.1f} s of processor time")
        print(f"peak memory {peak():.0f} MB, {before:.0f} MB of it before a row was read")
        began = time.process_time()
        size = questions[rows // 2].problem().images[0].size
        took = time.process_time() - began
        print(f"one picture from the middle, {size[0]} x {size[1]}: {took:.2f} s, {peak():.0f} MB")
        as_ablate(path, rows, given.whole)


def as_ablate(path: Path, rows: int, whole: bool) -> None:
    """What the data of an ablation takes, and one problem from its middle."""
    if whole:
        from cot_engine.questions.data import load_data as read
    else:
        from cot_engine.ablation.data import read_data as read

    before, began = peak(), time.process_time()
    data = read(str(path))
    took = time.process_time() - began
    data.items[rows // 2].problem()
    assert len(data.items) == rows
    how = "whole" if whole else "row by row"
    print(
        f"as ablate reads it, {how}: {took:.1f} s of processor time, peak memory {peak():.0f} MB,"
    )
    print(f"{before:.0f} MB of it before")


def write(path: Path, size: float) -> int:
    """The file, and how many rows it has."""
    cell = picture()
    rows = 0
    with path.open("w") as file:
        file.write("index\tquestion\tA\tB\tanswer\tcategory\timage\n")
        while file.tell() < size:
            image = str(rows - 1) if rows % 10 == 9 else cell
            file.write(f"{rows}\tWhich one?\tred\tblue\tA\tcolour\t{image}\n")
            rows += 1
    return rows


def picture() -> str:
    """A PNG of noise, which does not pack, of about ROW characters in base64."""
    import numpy
    from PIL import Image

    side = int((ROW * 3 / 4 / 3) ** 0.5)
    noise = numpy.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=numpy.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def peak() -> float:
    """The most memory this process has had, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
