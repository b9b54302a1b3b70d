"""The picture of README: what `anytime-graph demo` shows in a terminal, as SVG.

`python -m tests.kit.picture [SEED]` runs the demo and writes docs/demo.svg.
"""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text

from tests.kit.places import ROOT

FILE = ROOT / "docs" / "demo.svg"
COLUMNS = 88
_MOVES = re.compile(r"\x1b\[\??[\d;]*[A-Za-ln-z]|\r")
_FACES = re.compile(r"@font-face \{.*?\}\s*", re.DOTALL)


def picture(output: str, title: str) -> str:
    """A terminal that shows this output, which may have colours. The picture asks the network for
    nothing: its letters are those of the reader's machine."""
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True)
    console.print(Text.from_ansi(_MOVES.sub("", output).strip("\n")))
    svg = console.export_svg(title=title, theme=MONOKAI, unique_id="demo")
    return _FACES.sub("", svg).replace("Fira Code,", "")


def shown(seed: str) -> str:
    """What the demo writes, in the order in which it appears."""
    program = os.path.relpath(Path(sys.executable).parent / "anytime-graph")
    command = [program, "demo", "--seed", seed]
    colours = {"FORCE_COLOR": "1", "TTY_INTERACTIVE": "0", "COLUMNS": str(COLUMNS)}
    ran = subprocess.run(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=True,
        env=os.environ | colours,
    )
    return ran.stdout


if __name__ == "__main__":
    chosen = sys.argv[1] if len(sys.argv) > 1 else "8"
    svg = picture(shown(chosen), f"anytime-graph demo --seed {chosen}")
    FILE.write_text(svg + "\n", encoding="utf-8")
