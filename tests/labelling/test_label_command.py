"""The commands `label` and `search` on a folder of drawn scenes."""

import contextlib
import json
import os
import shutil
import time

import pytest
from PIL import Image
from programs import start_program

import vlscore
import vlscore_cli
from vlscore_lib.evaluation import workers

MODEL = ["--model", "scenes-rn", "--keep", "16", "--precision", "float32"]
CLASSES = ["blue heart", "red ring", "purple drop", "orange cross", "cyan arrow"]  # in some of the scenes
WORDS = ["--classes", ",".join(CLASSES)]


@pytest.fixture(scope="module")
def folder(drawn, tmp_path_factory):
    """Twelve scenes, some in folders, with names that have spaces and accents."""
    folder = tmp_path_factory.mktemp("photos") / "my photos"
    for n, photo in enumerate(vlscore.read_dataset(drawn).photos[:12]):
        place = folder / ("" if n % 3 else "für dich") / f"scene {n}.jpg"
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(photo.path, place)
    return folder


def label(run, folder, out, *options):
    return run("label", folder, "--out", out, *WORDS, *MODEL, *options)


def test_classes_that_are_assumed_present_have_boxes_in_every_photo(run, folder, tmp_path):
    label(run, folder, tmp_path / "some")
    code, *_ = label(run, folder, tmp_path / "all", "--assume-present")
    assert code == 0
    some, every = (json.loads((tmp_path / out / "coco.json").read_text()) for out in ("some", "all"))
    shown = {(each["image_id"], each["category_id"]) for each in every["annotations"]}
    assert len(shown) > 0.9 * len(every["images"]) * len(CLASSES)  # all that the floor leaves
    assert shown > {(each["image_id"], each["category_id"]) for each in some["annotations"]}
    code, _, err = label(run, folder, tmp_path / "some", "--assume-present")
    assert (code, "other assume_present" in err) == (2, True)


def contents(out):
    files = (file for file in sorted(out.rglob("*")) if file.is_file())
    return {file.relative_to(out).as_posix(): file.read_bytes() for file in files}


@pytest.fixture(scope="module")
def undisturbed(scenes_rn, folder, tmp_path_factory):
    """What is written when nothing happens."""
    out = tmp_path_factory.mktemp("labels") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vlscore, "load_model", lambda *_: scenes_rn)
        assert vlscore_cli.main(command(folder, out)) == 0
    return contents(out)


def command(folder, out):
    return [*map(str, ("label", folder, "--out", out)), *WORDS, *MODEL, "--format", "coco,yolo"]


@pytest.fixture(scope="module")
def cluster():
    """That of ``--workers 2``: two processes of one thread."""
    before = dict(os.environ)
    with workers.open_local_cluster(2) as cluster:
        os.environ.clear()
        os.environ.update(before)  # see `same_environment`
        yield cluster


@pytest.fixture
def started(monkeypatch, cluster):
    """Notes how many workers are started, and takes those of `cluster`, started as these would be."""
    started = []

    def start(n, **_):
        started.append(n)
        return contextlib.nullcontext(cluster.scheduler_address)

    monkeypatch.setattr(workers, "open_local_cluster", start)
    return started


def test_boxes_are_those_of_localize(run, folder, tmp_path):
    """A class is in the labels exactly where a refined localization says so, with the same boxes."""
    assert label(run, folder, tmp_path / "out")[0] == 0
    facts = json.loads((tmp_path / "out" / "coco.json").read_text())
    model, count = vlscore.load_model("scenes-rn"), 0
    for image in facts["images"]:
        options = {"keep": 16, "precision": "float32", "refined": True}
        encoding = vlscore.encode(model, folder / image["file_name"], **options)
        assert (image["width"], image["height"]) == (224, 224)
        for number, name in enumerate(CLASSES, 1):
            found = vlscore.localize(model, encoding, f"an image of a {name}.")
            of_class = [
                each
                for each in facts["annotations"]
                if (each["image_id"], each["category_id"]) == (image["id"], number)
            ]
            boxes = [(x, y, x + w, y + h) for x, y, w, h in (each["bbox"] for each in of_class)]
            assert boxes == found.boxes
            assert all(0 < each["score"] <= 1 for each in of_class)
            count += len(boxes)
    assert count > 3


def test_killed_at_any_moment_and_begun_again_it_writes_the_same(run, folder, undisturbed, tmp_path):
    out, kills = tmp_path / "out", 0
    for wait in (0.0, 0.1, 0.4):
        process = start_program(command(folder, out))
        journal, start = out / "labels.jsonl", time.monotonic()
        done = journal.read_bytes().count(b"\n") if journal.exists() else 0
        while process.is_alive() and time.monotonic() - start < 60:
            if journal.exists() and journal.read_bytes().count(b"\n") > done:
                time.sleep(wait)
                process.kill()
                kills += 1
                break
            time.sleep(0.005)
        process.join()
    assert kills >= 2
    lines = (out / "labels.jsonl").read_bytes().splitlines()
    places = [json.loads(line)["photo"] for line in lines[1:] if line.endswith(b"}")]
    assert len(places) == len(set(places))  # none was done twice
    assert run(*command(folder, out))[0] == 0
    found = {name: content for name, content in contents(out).items() if ".vlscore-" not in name}
    assert found == undisturbed


def test_other_words_from_stored_encodings_take_no_encoder_pass(run, folder, tmp_path, monkeypatch):
    kept = ["--encodings", tmp_path / "encodings"]
    assert label(run, folder, tmp_path / "one", *kept)[0] == 0
    assert len(list((tmp_path / "encodings").iterdir())) == 12
    words = ["--classes", "purple ring,cyan cross", *MODEL]
    # A stored encoding is rounded, so it is compared with one that was stored just now.
    fresh = run("label", folder, "--out", tmp_path / "fresh", *words, "--encodings", tmp_path / "new")

    def refuse(*_, **__):
        raise AssertionError("a photo was encoded")

    monkeypatch.setattr(vlscore, "encode_images", refuse)
    monkeypatch.setattr(vlscore.Model, "encode_image", refuse)
    again = run("label", folder, "--out", tmp_path / "again", *words, *kept)
    assert fresh[0] == again[0] == 0
    boxes = [
        [
            (each["image_id"], each["bbox"])
            for each in json.loads((out / "coco.json").read_text())["annotations"]
        ]
        for out in (tmp_path / "fresh", tmp_path / "again")
    ]
    assert boxes[0] == boxes[1]
    code, out, _ = run("search", folder, "an image of a red circle.", "--json", *MODEL, *kept)
    assert code == 0 and len(json.loads(out)["results"]) == 12


def test_search_puts_the_surest_first(run, folder, tmp_path):
    sheet = tmp_path / "sheet.jpg"
    options = ["--top", "5", "--out", sheet, "--json", *MODEL]
    code, out, _ = run("search", folder, "an image of a red circle.", *options)
    results = json.loads(out)["results"]
    assert (code, len(results)) == (0, 5)
    order = [(each["p_absent"], -each["score"]) for each in results]
    assert order == sorted(order)
    with Image.open(sheet) as picture:
        assert picture.size == (1200, 240)
    lines = run("search", folder, "an image of a red circle.", "--top", "5", *MODEL)[1].splitlines()
    assert [each["image"] in line for each, line in zip(results, lines, strict=True)] == [True] * 5


def test_a_broken_photo_is_named_or_left_out(run, folder, tmp_path):
    broken = shutil.copytree(folder, tmp_path / "photos")
    (broken / "broken.jpg").write_bytes((folder / "scene 1.jpg").read_bytes()[:2000])
    code, out, err = label(run, broken, tmp_path / "out")
    assert code == 2 and "broken.jpg" in err and "--skip-bad" in err
    code, out, err = label(run, broken, tmp_path / "out", "--skip-bad")
    assert code == 0 and "left out" in err and "broken.jpg" in err
    assert "of 12 photos" in out
    facts = json.loads((tmp_path / "out" / "coco.json").read_text())
    assert len(facts["images"]) == 12


@pytest.mark.parametrize(
    "options, words",
    [
        (["--classes", "dog", "--classes-file", "x"], "either --classes or --classes-file"),
        ([], "either --classes or --classes-file"),
        (["--classes", "red circle,red circle"], "named twice"),
        (["--classes", "red circle,"], "without a name"),
        (["--classes-file", "/no/such/file"], "cannot be read"),
        (["--classes", "red circle", "--format", "pascal"], "unknown --format 'pascal'"),
        (["--classes", "red circle", "--min-score", "2"], "--min-score is 2"),
        (["--classes", "red circle", "--refined", "--plain"], "contradict"),
        (
            ["--classes", "red circle", "--encodings-limit", "-1", "--encodings", "e"],
            "--encodings-limit is -1",
        ),
    ],
)
def test_bad_input_is_told_in_a_line(run, folder, tmp_path, monkeypatch, options, words):
    monkeypatch.chdir(tmp_path)
    code, out, err = run("label", folder, "--out", tmp_path / "out", *MODEL, *options)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert words in err
    assert not (tmp_path / "out" / "coco.json").exists()


def test_an_empty_folder_and_an_output_of_something_else(run, folder, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "has no photo" in label(run, tmp_path / "empty", tmp_path / "out")[2]
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").touch()
    assert "holds files other" in label(run, folder, tmp_path / "other")[2]


def test_a_word_that_the_model_does_not_know_is_said(run, folder, tmp_path):
    code, _, err = run("label", folder, "--classes", "red zebra", "--out", tmp_path / "out", *MODEL)
    assert code == 0
    assert "scenes-rn does not know 'zebra'" in err


def test_classes_of_a_file_and_a_least_score(run, folder, tmp_path):
    (tmp_path / "words.txt").write_text("\n".join(CLASSES) + "\n\n", encoding="utf-8-sig")
    options = ["--classes-file", tmp_path / "words.txt", "--out"]
    assert run("label", folder, *options, tmp_path / "all", *MODEL)[0] == 0
    assert run("label", folder, *options, tmp_path / "few", *MODEL, "--min-score", "0.99")[0] == 0
    every, few = (json.loads((tmp_path / each / "coco.json").read_text()) for each in ("all", "few"))
    assert [each["name"] for each in every["categories"]] == CLASSES
    sure = [each["bbox"] for each in every["annotations"] if each["score"] >= 0.99]
    assert [each["bbox"] for each in few["annotations"]] == sure
    assert len(sure) < len(every["annotations"])


def test_python_labels_photo_by_photo(scenes_rn, folder):
    paths = vlscore.find_photos(folder)[:3]
    results = vlscore.label(scenes_rn, paths, CLASSES, keep=8, precision="float32")
    first = next(results)
    assert (first.place, first.size) == (str(paths[0]), (224, 224))
    assert len(list(results)) == 2
    assert os.path.exists(first.place)


def test_workers_write_the_same_labels(run, folder, undisturbed, started, tmp_path):
    """Two processes; their shards may end in any order."""
    code, _, err = run(*command(folder, tmp_path / "out"), "--workers", 2)
    assert (code, started) == (0, [2]), err
    found = contents(tmp_path / "out")
    assert sorted(found.pop("labels.jsonl").splitlines()[1:]) == sorted(
        undisturbed["labels.jsonl"].splitlines()[1:]
    )
    assert found == {name: content for name, content in undisturbed.items() if name != "labels.jsonl"}


def test_a_bad_photo_on_a_worker(run, folder, started, tmp_path):
    broken = tmp_path / "photos"
    shutil.copytree(folder, broken)
    (broken / "broken.jpg").write_bytes(b"no photo")
    arguments = [*command(broken, tmp_path / "out"), "--workers", 1]
    code, _, err = run(*arguments)
    last = err.splitlines()[-1]
    assert code == 2 and "broken.jpg" in last and "--skip-bad" in last
    code, out, err = run(*arguments, "--skip-bad")
    assert code == 0 and "of 12 photos" in out
    assert "broken.jpg" in err
    assert started == [1, 1]
