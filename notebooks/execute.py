"""Execute chapters in place so that a second run changes no byte.

    python notebooks/execute.py [NOTEBOOK …]      # every chapter by default

What would differ from run to run or from machine to machine is made the
same: cell ids and widget ids count up, and neither times nor the
interpreter's version are kept.  A chapter that fails stays as it was.
"""

import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from vlscore import write_whole

WIDGETS = "application/vnd.jupyter.widget-state+json"


def execute(path: Path) -> None:
    """Run one notebook, its own folder being the working directory."""
    notebook = nbformat.read(path, as_version=4)
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number:02d}"
    notebook.metadata.pop("widgets", None)
    client = NotebookClient(
        notebook,
        timeout=1800,
        kernel_name="python3",
        record_timing=False,
        coalesce_streams=True,
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
    for number, widget in enumerate(
        notebook.metadata.widgets.get(WIDGETS, {}).get("state", {})
    ):
        text = text.replace(
            widget, f"{number:032x}"
        )  # in the order of creation
    write_whole(
        path,
        (
            nbformat.writes(nbformat.reads(text, as_version=4)) + "\n"
        ).encode(),
    )


def main(arguments: list[str]) -> int:
    chapters = [Path(each) for each in arguments] or sorted(
        Path(__file__).parent.glob("*.ipynb")
    )
    for path in chapters:
        print(path, flush=True)
        try:
            execute(path)
        except CellExecutionError as error:
            reason = str(error).strip().splitlines()[-1]
            print(f"{path} stays as it was: {reason}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
