"""The command starts without what it does not need, and hands every flag on."""

import dataclasses
import inspect
import os
import subprocess
import sys

import pytest

import vlscore
import vlscore_cli
from vlscore_lib import errors

HEAVY = (
    *("torch", "torchvision", "numpy", "pandas", "pyarrow", "matplotlib", "scipy", "sklearn", "skimage"),
    *("openvino", "clip", "dask", "distributed", "tqdm", "vlscore"),
)
LOADED = """
import os, sys, vlscore_cli
try:
    code = vlscore_cli.main(sys.argv[1:])
except SystemExit as end:  # help and version
    code = end.code
print("loaded", *sorted(set(%r) & set(sys.modules)))
print("policy", os.environ["OMP_WAIT_POLICY"])
sys.exit(code)
"""


def start(*arguments, **environment):
    """Run the command in a process of its own -> its output's lines."""
    surroundings = {key: value for key, value in os.environ.items() if key != "OMP_WAIT_POLICY"}
    done = subprocess.run(
        [sys.executable, "-c", LOADED % (HEAVY,), *arguments],
        env=surroundings | environment,
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stdout.splitlines(), done.stderr


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["--version"], ["localize", "--help"], ["evaluate", "--help"], ["models"], ["localize"]],
    ids=" ".join,
)
def test_what_runs_no_model_loads_no_heavy_package(arguments):
    code, lines, error = start(*arguments)
    assert code == (2 if arguments == ["localize"] else 0), error
    assert "loaded" in lines


def test_a_missing_photo_is_reported_before_pytorch_is_loaded():
    code, lines, error = start("localize", "missing.jpg", "a cat")
    assert code == 2 and "missing.jpg does not exist" in error
    assert not {"torch", "vlscore"} & set(next(line for line in lines if line.startswith("loaded")).split())


def test_a_model_does_load_them(chelsea):
    code, lines, error = start("localize", str(chelsea), "a cat", "--model", "scenes-rn", "--keep", "4")
    assert code == 0, error
    assert any(line.startswith("loaded ") and "torch" in line for line in lines)


@pytest.mark.parametrize("chosen, expected", [({}, "passive"), ({"OMP_WAIT_POLICY": "active"}, "active")])
def test_idle_threads_wait_passively_unless_the_user_chose(chosen, expected):
    assert f"policy {expected}" in start("models", **chosen)[1]


def test_a_program_ends_with_the_code_of_main_and_one_line():
    command = [
        sys.executable,
        "-m",
        "vlscore_cli",
        "localize",
        "no-such.jpg",
        "a cat",
        "--model",
        "scenes-rn",
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("vlscore: no-such.jpg does not exist")


# ── Flags ────────────────────────────────────────────────────────────────────────────────────────

FLAGS = {
    "--layer": ("layer3", "layer", "layer3"),
    "--maps": ("key", "maps", "key"),
    "--pca": ("3", "pca", 3),
    "--keep": ("7", "keep", 7),
    "--precision": ("float32", "precision", "float32"),
    "--fit": ("pad", "fit", "pad"),
    "--refined": (None, "refined", True),
    "--temperature": ("0.2", "temperature", 0.2),
    "--threshold": ("0.3", "threshold", 0.3),
    "--plain-threshold": ("0.7", "plain_threshold", 0.7),
    "--temperatures": ("0.1,1", "temperatures", (0.1, 1.0)),
    "--thresholds": ("0.4", "thresholds", (0.4,)),
    "--names": ("clip", "names", "clip"),
    "--templates": ("clip", "templates", "clip"),
    "--slow-baselines": ("2", "slow_baselines", 2),
    "--seed": ("5", "seed", 5),
    "--average-precision": (None, "average_precision", True),
}


@pytest.mark.parametrize("flag", FLAGS)
def test_a_flag_reaches_the_protocol(flag):
    text, field, value = FLAGS[flag]
    words = ["evaluate", "root", "--out", "run", flag, *([] if text is None else [text])]
    options = vlscore_cli.protocol_options(vlscore_cli.build_parser().parse_args(words))
    assert getattr(vlscore.Protocol(**options), field) == value
    others = {key: each for key, each in options.items() if key != field}
    assert vlscore.Protocol(**others) == vlscore.Protocol()


PICKS = {
    "--layout": ("kaggle", "layout", "kaggle"),
    "--boxes": ("xml", "boxes", "xml"),
    "--names": ("clip", "names", "clip"),
    "--limit": ("3", "limit", 3),
    "--first": ("4", "first", 4),
    "--ids": ("list", "ids", "list"),
    "--sample": ("5", "sample", 5),
    "--seed": ("6", "seed", 6),
    "--blacklist": ("bad", "blacklist", "bad"),
    "--skip-bad": (None, "skip_bad", True),
    "--classes": ("names", "classes", "names"),
}


@pytest.mark.parametrize("flag", PICKS)
def test_a_flag_reaches_the_data_set(flag):
    text, field, value = PICKS[flag]
    words = ["evaluate", "root", "--out", "run"]
    before, after = (
        vlscore_cli.dataset_options(vlscore_cli.build_parser().parse_args(each))
        for each in (words, [*words, flag, *([] if text is None else [text])])
    )
    assert after == before | {field: value}
    assert before[field] != value


OTHERS = ["root", "--out", "--resume", "--model", "--workers", "--scheduler"]  # which `run_evaluate` reads


def test_every_flag_and_every_field_is_in_these_tables():
    flags = []
    vlscore_cli.add_evaluate_options(lambda flag, **_: flags.append(flag))
    assert sorted(flags) == sorted({*FLAGS, *PICKS, *OTHERS})
    fields = {each.name for each in dataclasses.fields(vlscore.Protocol)} - {"batch_size"}
    assert {field for _, field, _ in FLAGS.values()} == fields
    parameters = set(inspect.signature(vlscore.read_dataset).parameters) - {"root", "progress"}
    assert {field for _, field, _ in PICKS.values()} == parameters


def test_evaluate_hands_protocol_data_set_and_folder_on(run, rn, drawn, monkeypatch, tmp_path):
    read, seen = vlscore.read_dataset, {}

    def read_and_note(root, progress, **options):
        seen["data"] = (root, options)
        return read(root, progress=progress, **options)

    def stop(model, dataset, out, resume, client, progress, **options):
        seen["run"] = (model, len(dataset.photos), out, resume, client, options)
        raise vlscore.VLScoreError("seen enough")

    monkeypatch.setattr(vlscore, "read_dataset", read_and_note)
    monkeypatch.setattr(vlscore, "load_model", lambda name: {"some": rn}[name])
    monkeypatch.setattr(vlscore, "evaluate", stop)
    words = ["--model", "some", "--resume", "--layer", "layer3", "--sample", "3", "--slow-baselines", "2"]
    words = ["evaluate", str(drawn), "--out", str(tmp_path / "run"), *words]
    assert run(*words)[0] == 2
    options = vlscore_cli.build_parser().parse_args(words)
    assert seen["data"] == (str(drawn), vlscore_cli.dataset_options(options))
    protocol = vlscore_cli.protocol_options(options)
    assert seen["run"] == (rn, 3, str(tmp_path / "run"), True, None, protocol)
    assert (protocol["layer"], protocol["slow_baselines"]) == ("layer3", 2)


# ── Extras that are missing ──────────────────────────────────────────────────────────────────────


@pytest.fixture
def without(monkeypatch):
    """Make as if a package were not installed."""
    load = errors.import_module

    def without(package):
        def load_others(name):
            if name.split(".")[0] == package:
                raise ModuleNotFoundError(f"No module named {package!r}", name=package)
            return load(name)

        monkeypatch.setattr(errors, "import_module", load_others)

    return without


def need(package):
    return f"vlscore: this needs the package {package}: install it with pip install 'vlscore[evaluation]'"


@pytest.mark.parametrize("package", ["pandas", "pyarrow", "pytorch_grad_cam", "defusedxml"])
def test_evaluate_says_in_a_line_which_extra_is_missing(run, drawn, tmp_path, without, package):
    without(package)
    options = ["--model", "scenes-rn", "--limit", "8", "--keep", "2"]
    code, _, err = run("evaluate", drawn, *options, "--out", tmp_path / "run")
    assert (code, err) == (2, f"{need(package)}\n")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("options", [["--workers", "1"], ["--scheduler", "tcp://127.0.0.1:1"]])
@pytest.mark.parametrize("package", ["dask", "distributed"])
def test_workers_say_in_a_line_which_extra_is_missing(run, drawn, tmp_path, without, package, options):
    without(package)
    model = ["--model", "scenes-rn", "--limit", "8", "--keep", "2"]
    code, _, err = run("evaluate", drawn, *model, *options, "--out", tmp_path / "run")
    assert (code, err) == (2, f"{need(package)}\n")
    assert not (tmp_path / "run").exists()


def test_compare_says_in_a_line_which_extra_is_missing(run, tmp_path, without):
    without("pandas")
    assert run("compare", tmp_path, tmp_path) == (2, "", f"{need('pandas')}\n")
