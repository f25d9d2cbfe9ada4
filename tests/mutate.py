"""Break the modules on purpose, one mistake at a time, and see which test notices.

    python tests/mutate.py [NAME …]      # every mutation by default

Each mutation replaces one piece of source in a copy of the repository; the checkout stays as it is.
The unit tests named beside it run first, then, if they all pass, a chapter of the book as a strict test.
At last the tests that noticed something run on the whole modules, where they must pass.  The exit code is
1 if a mutation survives, 2 if one cannot be made or tested.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
CHAPTER = "notebooks/03_vl_score.ipynb"


class Mutation(NamedTuple):
    """What is replaced by what in which file, and the tests that ought to notice, the quickest first."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


METHOD, SCORES, BOXES, MAPS, METRICS, IMAGES, REFINEMENT = (
    f"tests/{each}.py"
    for each in (
        "test_vlscore",
        "test_scores",
        "test_boxes",
        "models/test_feature_maps",
        "evaluation/test_metrics",
        "test_images",
        "test_refinement",
    )
)
MUTATIONS = (
    Mutation(
        "scores negated",
        "vlscore.py",
        "return every[:-1], every[-1]",
        "return -every[:-1], -every[-1]",
        (METHOD,),
    ),
    Mutation(
        "cap removed",
        "vlscore.py",
        "beats = s > base\n",
        "beats = torch.ones_like(s, dtype=torch.bool)\n",
        (METHOD,),
    ),
    Mutation(
        "absent never said",
        "vlscore.py",
        "beats = s > base\n",
        "beats = (s > base) | (s == s.max())\n",
        (f"{SCORES}::test_an_absent_object_has_no_weights_and_no_saliency", METHOD, BOXES),
    ),
    Mutation(
        "temperature ignored",
        "vlscore.py",
        "(s - s[beats].max()).double() / temperature",
        "(s - s[beats].max()).double()",
        (SCORES, METHOD),
    ),
    Mutation(
        "saliency not rectified",
        "vlscore.py",
        'else torch.einsum("k,khw->hw", w, encoding.maps).relu()',
        'else torch.einsum("k,khw->hw", w, encoding.maps)',
        (SCORES, METHOD),
    ),
    Mutation(
        "masks not scaled to [0, 1]",
        "vlscore_lib/masks.py",
        "return (up - low) / (high - low + 1e-7) * varies(maps)[:, None, None]",
        "return up * varies(maps)[:, None, None]",
        (METHOD,),
    ),
    Mutation(
        "masks' corners not aligned",
        "vlscore_lib/masks.py",
        'mode="bilinear", align_corners=True)[:, 0]',
        'mode="bilinear", align_corners=False)[:, 0]',
        (METHOD,),
    ),
    Mutation(
        "box off by one at its end",
        "vlscore_lib/boxes.py",
        "max(min(round(high), size), low + 1)",
        "max(min(round(high) + 1, size), low + 1)",
        (BOXES,),
    ),
    Mutation(
        "box off by one at its start",
        "vlscore_lib/boxes.py",
        "low = min(max(round(low), 0), size - 1)",
        "low = min(max(round(low) + 1, 0), size - 1)",
        (BOXES,),
    ),
    Mutation(
        "box with x and y exchanged",
        "vlscore_lib/boxes.py",
        "np.stack([left // S, top // S, right // S + 1, bottom // S + 1])",
        "np.stack([top // S, left // S, bottom // S + 1, right // S + 1])",
        (BOXES,),
    ),
    Mutation(
        "IoU of the worst pair of boxes",
        "vlscore_lib/evaluation/metrics.py",
        "pairwise_iou(*pairs).amax(1)",
        "pairwise_iou(*pairs).amin(1)",
        (METRICS, BOXES),
    ),
    Mutation(
        "absent words left out of p",
        "vlscore.py",
        "(of_others > fits + same).sum(1)",
        "(of_others < fits + same).sum(1)",
        (REFINEMENT,),
    ),
    Mutation(
        "discriminant turned around",
        "vlscore_lib/refinement.py",
        "means[0] - means[1])",
        "means[1] - means[0])",
        (REFINEMENT,),
    ),
    Mutation(
        "PCA sign flipped",
        "vlscore_lib/models/base.py",
        "signs = np.sign(",
        "signs = -np.sign(",
        (f"{MAPS}::test_pca_equals_a_singular_value_decomposition", MAPS),
    ),
    Mutation(
        "class token taken for a patch",
        "vlscore_lib/models/vit.py",
        "return tokens[:, prefix:].transpose(1, 2)",
        "return tokens[:, : tokens.shape[1] - prefix].transpose(1, 2)",
        (f"{MAPS}::test_a_cell_belongs_to_the_patch_in_its_place", MAPS),
    ),
    Mutation(
        "squash shows a crop",
        "vlscore_lib/images.py",
        'if fit == "squash":',
        'if fit == "stretch":',
        (IMAGES,),
    ),
)


def mutated(mutation: Mutation) -> str:
    """The file's source with the mutation in it; without its one place, nothing would be tested."""
    source = (ROOT / mutation.file).read_text()
    if (count := source.count(mutation.old)) != 1:
        raise ValueError(f"{mutation.name}: {mutation.file} has {mutation.old!r} {count} times, not once")
    return source.replace(mutation.old, mutation.new)


def copy_repository(to: Path) -> None:
    """Copy what git tracks or would add."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, to / name)


def failures(folder: Path, *arguments: str) -> list[str]:
    """Run pytest in the copy until a test fails -> its id."""
    # Compiled files are told apart by time and size only, and mutations may share both.
    environment = os.environ | {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    options = ["-x", "-q", "--tb=line", "-rfE", "-p", "no:cacheprovider"]
    command = [sys.executable, "-m", "pytest", *options, *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode not in (0, 1):  # not a test that passed or failed
        raise ValueError(f"pytest could not run {' '.join(arguments)}:\n{done.stdout}{done.stderr}")
    return re.findall(r"^(?:FAILED|ERROR) (.+?)(?: - .*)?$", done.stdout, re.MULTILINE)


def caught_by(folder: Path, tests: tuple[str, ...]) -> list[str]:
    runs = (*([each] for each in tests), ["--nbval", CHAPTER])
    return next(filter(None, (failures(folder, *run) for run in runs)), [])


def check_import(folder: Path) -> None:
    """It is the copy that is tested, not what is installed."""
    command = [sys.executable, "-c", "import vlscore, vlscore_lib; print(vlscore_lib.__file__)"]
    environment = os.environ | {"PYTHONPATH": str(folder)}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=True)
    if Path(done.stdout.strip()).parents[1] != folder:
        raise ValueError(f"the tests would import {done.stdout.strip()}")


def check_whole(folder: Path, tests: list[str]) -> None:
    """Tests that noticed a mutation pass without it."""
    chapters = ["--nbval", CHAPTER] if any(CHAPTER in each for each in tests) else []
    units = [each for each in tests if CHAPTER not in each]
    for arguments in filter(None, (units, chapters)):
        if failed := failures(folder, *arguments):
            raise ValueError(f"{failed[0]} fails with nothing broken: fix that first")


def main(argv: list[str] | None = None) -> int:
    """Run the command line."""
    names = sys.argv[1:] if argv is None else argv
    mutations = [each for each in MUTATIONS if not names or each.name in names]
    survived, noticed = [], []
    try:
        if unknown := set(names) - {each.name for each in MUTATIONS}:
            raise ValueError(f"no mutation {unknown.pop()!r}: {', '.join(each.name for each in MUTATIONS)}")
        sources = {each: mutated(each) for each in mutations}
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder).resolve()
            copy_repository(copy)
            check_import(copy)
            print("mutation | file | caught by | seconds", flush=True)
            for mutation, broken in sources.items():
                (copy / mutation.file).write_text(broken)
                begun = time.monotonic()
                found = caught_by(copy, mutation.tests)
                (copy / mutation.file).write_text((ROOT / mutation.file).read_text())
                told = ", ".join(found) or "NOTHING"
                print(
                    f"{mutation.name} | {mutation.file} | {told} | {time.monotonic() - begun:.0f}", flush=True
                )
                noticed += found
                survived += [] if found else [mutation.name]
            check_whole(copy, noticed)
    except (ValueError, OSError, subprocess.CalledProcessError) as error:
        print(f"mutate.py: {error}", file=sys.stderr)
        return 2
    print(f"{len(mutations) - len(survived)} of {len(mutations)} caught")
    return 1 if survived else 0


if __name__ == "__main__":
    sys.exit(main())
