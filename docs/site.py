"""What `make docs` adds to these pages: pages of the repository's other files, and readable docstrings."""

from __future__ import annotations

import ast
import re
import shutil
from pathlib import Path
from typing import Any

from griffe import Class, Docstring, Extension, Function
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
}
CODE = {"SECURITY.md": "text", "langgraph.json": "json", "Makefile": "make"}
_LINK = re.compile(r"(!?\[[^\]]*\]\()([^)#\s]+)(#[^)\s]*)?\)")


def on_startup(command: str, dirty: bool) -> None:
    """Put the package together as it is installed, for the reader of docstrings."""
    package = ROOT / "build" / "docs" / "anytime_graph"
    shutil.rmtree(package, ignore_errors=True)
    shutil.copytree(ROOT / "anytime_graph", package)
    for part in ("nodes", "checkpoints"):
        shutil.copytree(ROOT / part, package / part)


def on_files(files: Files, config: Any) -> Files:
    for name, page in PAGES.items():
        text = (ROOT / name).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=text))
    listed = ["# Examples", "", "All of them run as they are.", ""]
    for path in EXAMPLES:
        about, code = _told(path)
        content = f"# {path.name}\n\n{about}\n\n```python\n{code}\n```\n"
        files.append(File.generated(config, f"examples/{path.stem}.md", content=content))
        listed.append(f"- [{path.name}]({path.stem}.md): {about.split('. ')[0].rstrip('.')}.")
    files.append(File.generated(config, "examples/index.md", content="\n".join(listed)))
    for name, language in CODE.items():
        content = f"# {name}\n\n```{language}\n{(ROOT / name).read_text(encoding='utf-8')}\n```\n"
        files.append(File.generated(config, f"examples/{Path(name).stem}.md", content=content))
    return files


def _told(path: Path) -> tuple[str, str]:
    """What an example says of itself, and its code without that."""
    text = path.read_text(encoding="utf-8")
    about = ast.get_docstring(ast.parse(text)) or ""
    return about.replace("\n", " "), text.partition('"""')[2].partition('"""')[2].strip()


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Links to files of the repository lead to their pages; the drawn graph is a picture."""
    source = page.file.src_uri
    if source.startswith(("results/", "examples/")):
        page.meta["search"] = {"exclude": True}
    markdown = re.sub(
        r"^```mermaid\n.*?^```", "![The graph](graph.svg)", markdown, flags=re.M | re.S
    )
    if source == "reference.md" or source.startswith("results/"):
        return markdown
    top = "../" if source.startswith("examples/") else ""

    def moved(match: re.Match[str]) -> str:
        head, target, anchor = match[1], match[2], match[3] or ""
        if target.startswith("http"):
            return match[0]
        name = target.removeprefix("../").removeprefix("./")
        if name in PAGES:
            target = top + PAGES[name]
        elif name.startswith("examples/") and name.endswith(".py"):
            target = top + name.removesuffix(".py") + ".md"
        elif name in CODE:
            target = f"{top}examples/{Path(name).stem}.md"
        elif source in PAGES.values() and name.startswith("docs/"):
            target = name.removeprefix("docs/")
        return f"{head}{target}{anchor})"

    return _LINK.sub(moved, markdown)


class Fields(Extension):
    """Docstrings say `name: what it is` of arguments and fields, one after the other. Here each is an
    item of a list, with its type if it is a field."""

    def on_class_members(self, *, cls: Class, **kwargs: Any) -> None:
        fields = {n: m.annotation for n, m in cls.members.items() if m.is_attribute and n[0] != "_"}
        _itemize(cls, {name: str(kind) if kind else "" for name, kind in fields.items()})
        if any("TypedDict" in str(base) for base in cls.bases):
            cls.docstring = cls.docstring or Docstring("", parent=cls)
            rest = [n for n in fields if f"**{n}**" not in cls.docstring.value]
            cls.docstring.value += "\n\n" + "\n".join(f"- **{n}** (`{fields[n]}`)" for n in rest)

    def on_function_instance(self, *, func: Function, **kwargs: Any) -> None:
        _itemize(func, {p.name: "" for p in func.parameters})


def _itemize(of: Class | Function, names: dict[str, str]) -> None:
    if of.docstring is None or not names or "\n- **" in of.docstring.value:
        return
    name = "|".join(map(re.escape, names))
    entry = re.compile(rf"(?:^|(?<=[.;])\s+|\n)[ ]*((?:{name})(?:, (?:{name}))*):\s+", re.M)

    def item(match: re.Match[str]) -> str:
        said = ", ".join(
            f"**{n}**" + (f" (`{names[n]}`)" if names[n] else "") for n in match[1].split(", ")
        )
        return f"\n- {said}: "

    text, told = entry.subn(item, re.sub(r"<(/?\w+)>", r"`<\1>`", of.docstring.value))
    if told:
        text = re.sub(r"(?m)^(?!- |\s|$)(.*)\n(- \*\*)", r"\1\n\n\2", text)
        of.docstring.value = re.sub(r"(?<=\.)\s+(?=Raises )", "\n\n", text)
