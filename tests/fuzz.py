"""Change files at random, and see that each is read, or refused in one line.

    python tests/fuzz.py [--count 2000] [--seed 0] [--keep FOLDER]

The same seed gives the same files.  One that ends in a traceback, takes longer than `SECONDS` or adds
more than `GIGABYTES` to the memory is named, and kept in FOLDER; the exit code is then 1.
"""

import argparse
import io
import json
import re
import signal
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, PngImagePlugin
from safetensors.torch import save

import vlscore

SECONDS, GIGABYTES = 30, 1
SIZE = (96, 64)
WNID = "n01440764"
VOC = (
    '<?xml version="1.0" encoding="utf-8"?><annotation><folder>val</folder><filename>p</filename>'
    f"<size><width>96</width><height>64</height><depth>3</depth></size><object><name>{WNID}</name><bndbox><xmin>5</xmin>"
    "<ymin>6</ymin><xmax>50</xmax><ymax>40</ymax></bndbox></object></annotation>"
)
NUMBERS = (
    b"-1",
    b"0",
    b"1e999",
    b"nan",
    b"99999999999999999999",
    b"\0",
    b"\xff\xfe",
    b"<",
    b'"',
    b",",
    b"\n",
)


class Kind(NamedTuple):
    """A kind of file: what is changed, and what reads it, a function of its content and a folder."""

    content: bytes
    read: Callable[[bytes, Path], object]


def mutate(content: bytes, rng) -> bytes:
    """Change one to four places: bits, bytes, pieces cut out, doubled, moved or replaced by odd numbers."""
    data = bytearray(content)
    for _ in range(rng.choice([1, 1, 2, 4])):
        at = int(rng.integers(len(data) + 1))
        length = int(2 ** rng.uniform(0, np.log2(2 + len(data) // 4)))  # short ones as often as long ones
        piece = bytes(data[at : at + length])
        match rng.integers(7):
            case 0 if at < len(data):
                data[at] ^= 1 << int(rng.integers(8))
            case 1:
                data[at : at + 4] = rng.bytes(4)
            case 2:
                del data[at:]
            case 3:
                del data[at : at + length]
            case 4:
                data[at:at] = piece
            case 5:
                data[at : at + 8] = (2 ** int(rng.integers(64))).to_bytes(8, "little")
            case 6:
                data[at : at + 1] = NUMBERS[rng.integers(len(NUMBERS))]
    return bytes(data)


def encode_picture(form: str, **options) -> bytes:
    """A small picture in a format, with an orientation."""
    noise = np.random.default_rng(0).integers(0, 256, (SIZE[1] // 8, SIZE[0] // 8, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    content = io.BytesIO()
    Image.fromarray(noise).resize(SIZE).save(content, form, exif=exif, **options)
    return content.getvalue()


def encode_clip() -> bytes:
    """The weights of a tiny CLIP; of its vocabulary, which is 49,408 words, each needs two numbers."""
    torch.manual_seed(0)
    net = vlscore.import_clip().model.CLIP(8, 32, 1, 64, 16, 8, 49408, 64, 1, 1)
    return save({name: value.half() for name, value in net.state_dict().items()})


def read_picture(content: bytes, folder: Path):
    """Read a file as a photo, as the command does."""
    (folder / "photo").write_bytes(content)
    return vlscore.load_image(folder / "photo")


def read_voc(content: bytes, folder: Path):
    """Read a data set of one photo with this annotation."""
    (folder / "val").mkdir(exist_ok=True)
    Image.new("RGB", SIZE).save(folder / "val" / "p.jpg")
    (folder / "val" / "p.xml").write_bytes(content)
    return vlscore.read_dataset(folder)


def read_list(file: str):
    """A function that reads a data set of one listed photo, this file of it changed."""

    def read(content: bytes, folder: Path):
        name = "ILSVRC2012_val_00000001.JPEG"
        Image.new("RGB", SIZE).save(folder / name)
        (folder / "class_labels.txt").write_text(f"{name},0\n")
        (folder / "localization.txt").write_text(f"{name},5,6,50,40\n")
        (folder / "image_sizes.txt").write_text(f"{name},96,64\n")
        (folder / file).write_bytes(content)
        return vlscore.read_dataset(folder)

    return read


def read_solution(content: bytes, folder: Path):
    """Read a data set whose boxes are in Kaggle's list."""
    (folder / "val").mkdir(exist_ok=True)
    Image.new("RGB", SIZE).save(folder / "val" / "ILSVRC2012_val_00000001.JPEG")
    (folder / "LOC_val_solution.csv").write_bytes(content)
    return vlscore.read_dataset(folder)


def read_clip(content: bytes, folder: Path):
    """Load a checkpoint."""
    (folder / "clip.safetensors").write_bytes(content)
    return vlscore.load_model(str(folder / "clip.safetensors:quick_gelu"), "cpu")


def read_encoding(content: bytes, folder: Path):
    """Load an encoding."""
    (folder / "photo.safetensors").write_bytes(content)
    return vlscore.Encoding.load(folder / "photo.safetensors")


def make_kinds() -> dict[str, Kind]:
    """Every kind of file, by name."""
    info = PngImagePlugin.PngInfo()
    info.add_text("comment", "x" * 500, zip=True)
    row = b"ILSVRC2012_val_00000001.JPEG,"
    kept = Path(__file__).parent / "encodings" / "scenes-rn.safetensors"
    solution = f"ImageId,PredictionString\nILSVRC2012_val_00000001,{WNID} 5 6 50 40 \n"
    return {
        "JPEG": Kind(encode_picture("JPEG"), read_picture),
        "PNG": Kind(encode_picture("PNG", pnginfo=info), read_picture),
        "WebP": Kind(encode_picture("WEBP"), read_picture),
        "TIFF": Kind(encode_picture("TIFF", compression="tiff_deflate"), read_picture),
        "plain TIFF": Kind(encode_picture("TIFF"), read_picture),
        "VOC XML": Kind(VOC.encode(), read_voc),
        "boxes": Kind(row + b"5,6,50,40\n", read_list("localization.txt")),
        "classes": Kind(row + b"0\n", read_list("class_labels.txt")),
        "sizes": Kind(row + b"96,64\n", read_list("image_sizes.txt")),
        "Kaggle's list": Kind(solution.encode(), read_solution),
        "checkpoint": Kind(encode_clip(), read_clip),
        "encoding": Kind(kept.read_bytes(), read_encoding),
    }


def mutate_safetensors(content: bytes, rng) -> bytes:
    """Change mostly the header of a safetensors file, where sizes and types stand."""
    length = int.from_bytes(content[:8], "little")
    if rng.random() < 0.2:
        return mutate(content, rng)
    header = mutate(content[8 : 8 + length], rng)
    if rng.random() < 0.5:  # a header that is whole, of other sizes
        facts = json.loads(content[8 : 8 + length])
        names = [name for name in facts if name != "__metadata__"]
        one, other = (facts[names[rng.integers(len(names))]] for _ in "ab")
        one["shape"] = list(rng.permutation([*one["shape"], 1]).tolist())
        one["dtype"], other["shape"] = other["dtype"], other["shape"][::-1]
        header = json.dumps(facts).encode()
    return len(header).to_bytes(8, "little") + header + content[8 + length :]


def stop(*_):
    """What an input that hangs ends in."""
    raise TimeoutError(f"it took longer than {SECONDS} s")


def read_memory(field: str) -> float:
    """Read the memory of this process in GB: VmRSS, what it holds, or VmHWM, the most that it has held.

    `ru_maxrss` would begin at what the process held that started this one.
    """
    status = Path("/proc/self/status").read_text()
    return int(re.search(rf"{field}:\s+(\d+)", status)[1]) / 2**20


def try_one(kind: Kind, content: bytes) -> str | None:
    """Read a file -> None if it is read or refused in one line, else what is wrong."""
    held, peak = read_memory("VmRSS"), read_memory("VmHWM")
    signal.alarm(SECONDS)
    try:
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            kind.read(content, Path(folder))
    except vlscore.VLScoreError as error:
        return None if "\n" not in str(error) else f"several lines: {error}"
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        return f"{type(error).__name__}: {error}"
    finally:
        signal.alarm(0)
    new_peak = read_memory("VmHWM")
    is_large = new_peak > peak and new_peak - held > GIGABYTES
    return f"it took {new_peak - held:.1f} GB" if is_large else None


def main(argv: list[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser("fuzz.py", description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, default=Path("fuzzed"))
    options = parser.parse_args(argv)
    signal.signal(signal.SIGALRM, stop)
    kinds, failed = make_kinds(), 0
    for number in range(options.count):
        name = list(kinds)[number % len(kinds)]
        rng = np.random.default_rng([options.seed, number])
        is_safetensors = name in ("checkpoint", "encoding")
        content = (mutate_safetensors if is_safetensors else mutate)(kinds[name].content, rng)
        if wrong := try_one(kinds[name], content):
            failed += 1
            options.keep.mkdir(parents=True, exist_ok=True)
            (options.keep / f"{options.seed}-{number}").write_bytes(content)
            print(f"{name}, seed {options.seed}, file {number}: {wrong}", file=sys.stderr)
    print(f"{options.count} files, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
