"""Hooks of mkdocs: the API reference, notebooks, and the files outside of docs/ that the pages link to."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from links import relocate
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from nbconvert import MarkdownExporter

ROOT = Path(__file__).parents[2]
API: dict[str, tuple[str, ...]] = {
    "Training and policy": ("vrft",),
    "Tasks": ("vrft.tasks",),
    "Rewards": ("vrft.rewards",),
    "Data sources": ("vrft.data", "vrft.data.record.Record", "vrft.data.bad_records.BadRecords"),
    "Evaluators": ("vrft.evaluators",),
    "Callbacks": (
        "vrft.callbacks.checkpoint.RunCheckpoint",
        "vrft.callbacks.transcripts.Transcripts",
        "vrft.callbacks.guards.Guards",
        "vrft.callbacks.skipped_steps.SkippedSteps",
    ),
    "Rollout engines": ("vrft.rollout",),
    "Losses": ("vrft.training.grpo", "vrft.training.importance"),
    "Types and errors": ("vrft.types", "vrft.errors"),
}
"""Titles of the pages of the reference, and what each documents: exports of packages, classes, or whole modules."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the reference and the linked files of the repository."""
    for title, documented in API.items():
        text = "\n\n".join([f"# {title}", *(line for name in documented for line in reference(name))])
        files.append(File.generated(config, f"api/{slug(title)}.md", content=text))
    links = "\n".join(f"- [{title}]({slug(title)}.md)" for title in API)
    files.append(File.generated(config, "api/index.md", content=f"# API reference\n\n{links}\n"))
    for name in sorted(linked(ROOT / "docs")):
        path = ROOT / name
        if path.suffix == ".ipynb":
            add_notebook(files, config, path)
        else:
            files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def slug(title: str) -> str:
    """Return the file name of a page."""
    return title.lower().replace(" ", "_")


def reference(name: str) -> Iterator[str]:
    """Yield mkdocstrings' directives for a class, for a module, or for each export of a package."""
    package = ROOT / name.replace(".", "/")
    source = next((package / file for file in ("__init__.pyi", "__init__.py") if (package / file).exists()), None)
    if source is None:
        yield f"::: {name}"
        return
    imports = [node for node in ast.walk(ast.parse(source.read_text())) if isinstance(node, ast.ImportFrom)]
    homes = {alias.name: node.module for node in imports for alias in node.names if str(node.module).startswith(name)}
    for exported in sorted(exported for exported in homes if exported != "exports"):
        yield f"::: {homes[exported]}.{exported}\n    options: {{heading: {name}.{exported}, toc_label: {exported}}}"


def linked(folder: Path) -> set[str]:
    """Return the files outside of docs/ that its pages and the pages among these files link to, from the root."""
    found: set[str] = set()
    waiting = [*folder.glob("*.md")]
    while waiting:
        page = waiting.pop()
        for target in re.findall(r"\]\(([^)#\s:]+)(?:#[^)]*)?\)", page.read_text()):
            path = (page.parent / target).resolve()
            name = path.relative_to(ROOT).as_posix()
            if path.is_file() and not name.startswith("docs/") and name not in found:
                found.add(name)
                waiting += [path] if path.suffix == ".md" else []
    return found


def add_notebook(files: Files, config: MkDocsConfig, path: Path) -> None:
    """Add a notebook as a page with its outputs."""
    name = path.relative_to(ROOT).with_suffix("").as_posix()
    text, resources = MarkdownExporter().from_filename(str(path))
    for picture, content in resources["outputs"].items():
        files.append(File.generated(config, f"{name}_{picture}", content=content))
        text = text.replace(f"({picture})", f"({path.stem}_{picture})")
    files.append(File.generated(config, f"{name}.md", content=f"{text}\n"))


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point links at the added files: in the site, docs/ is the root."""
    markdown = relocate(markdown, inside=page.file.generated_by is None)
    markdown = re.sub(r"^```(\w+) (\S+)$", r'```{.\1 title="\2"}', markdown, flags=re.M)
    return re.sub(r"\]\(([^)\s]+)\.ipynb\)", r"](\1.md)", markdown)
