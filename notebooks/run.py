"""Run notebooks where they lie and keep what they show: python notebooks/run.py [name ...]

From the root of a checkout that has `runs/smollm2` (make smollm2), or the packaged pair alone. All, without a name.
"""

import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

HERE = Path(__file__).resolve().parent
NOISE = ("Kernel is running over TCP", "IProgress not found", "autonotebook")


def main(names: list[str]) -> None:
    for path in sorted(HERE.glob("*.ipynb")):
        if names and path.stem not in names:
            continue
        notebook = nbformat.read(path, as_version=4)
        NotebookClient(notebook, timeout=1800, resources={"metadata": {"path": str(HERE.parent)}}).execute()
        for cell in notebook.cells:
            cell.metadata.pop("execution", None)  # when it ran, to the microsecond
            if cell.cell_type == "code":
                cell.outputs = [output for output in cell.outputs if not noise(output)]
        nbformat.write(notebook, path)
        print(path.name)


def noise(output: nbformat.NotebookNode) -> bool:
    """Remarks of libraries, which say nothing about the matter."""
    return output.get("name") == "stderr" and any(part in output.text for part in NOISE)


if __name__ == "__main__":
    main(sys.argv[1:])
