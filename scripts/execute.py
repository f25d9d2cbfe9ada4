"""Execute chapters in place so that a second run changes no byte.

    python scripts/execute.py [--model NAME] [NOTEBOOK …]

Every chapter by default, each with the model that its cell of parameters
names; `--model` writes another one there first.

What would differ from run to run or from machine to machine is made the
same: cell ids and widget ids count up, and neither times nor the
interpreter's version are kept.  A chapter that fails stays as it was.
"""

import argparse
import json
import re
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

import vlscore

WIDGETS = "application/vnd.jupyter.widget-state+json"


def look_up(name: str) -> tuple[str, bool]:
    """The name that a chapter can load, and whether that is a ViT.

    Raises:
        VLScoreError: there is no such model, or its weights are not here.
    """
    model = vlscore.load_model(name, "cpu")
    return vlscore.absolute_name(model.name), model.is_vit  # chapters run in their own folder


def set_model(notebook, name: str, is_vit: bool) -> None:
    """Write a model into the cell of parameters, and nothing else.

    It takes the place of `MODEL`, or, where a chapter sets a CNN beside a
    ViT, of the one of its kind; a chapter without either stays.
    """
    kind = "VIT" if is_vit else "CNN"
    line = re.compile(rf"^((?:MODEL|{kind}) *= *)[^#\n]*?( *#.*)?$", re.M)
    value = json.dumps(name, ensure_ascii=False)
    for cell in notebook.cells:
        if "parameters" in cell.metadata.get("tags", []):
            cell.source = line.sub(lambda old: f"{old[1]}{value}{old[2] or ''}", cell.source)


def execute(path: Path, model: tuple[str, bool] | None = None) -> None:
    """Run one notebook, its own folder being the working directory."""
    notebook = nbformat.read(path, as_version=4)
    if model:
        set_model(notebook, *model)
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number:02d}"
    notebook.metadata.pop("widgets", None)
    client = NotebookClient(
        notebook,
        timeout=1800,
        kernel_name="python3",
        record_timing=False,
        coalesce_streams=True,
        extra_arguments=["--IPKernelApp.log_level=ERROR"],
        resources={"metadata": {"path": str(path.parent)}},
    )
    client.execute()
    notebook.metadata = {
        "kernelspec": {
            "display_name": "Python 3",
            "language": "python",
            "name": "python3",
        },
        "language_info": {"name": "python"},
        "widgets": notebook.metadata.get("widgets", {}),
    }
    text = nbformat.writes(notebook)
    for number, widget in enumerate(notebook.metadata.widgets.get(WIDGETS, {}).get("state", {})):
        text = text.replace(widget, f"{number:032x}")  # in the order of creation
    vlscore.write_whole(
        path,
        (nbformat.writes(nbformat.reads(text, as_version=4)) + "\n").encode(),
    )


def main(argv: list[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser("execute.py", description=__doc__.splitlines()[0])
    parser.add_argument("notebooks", nargs="*", type=Path)
    parser.add_argument("--model", help="use this model in all these chapters from now on")
    options = parser.parse_args(argv)
    chapters = options.notebooks or sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
    for path in chapters:
        if not path.is_file():
            parser.error(f"{path}: there is no such file")
    try:
        model = None if options.model is None else look_up(options.model)
        for path in chapters:
            print(path, flush=True)
            execute(path, model)
    except vlscore.VLScoreError as error:
        print(f"execute.py: {error}", file=sys.stderr)
        return 2
    except CellExecutionError as error:
        reason = str(error).strip().splitlines()[-1]
        print(f"{path} stays as it was: {reason}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
