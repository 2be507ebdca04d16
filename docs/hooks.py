"""Brings into the site what pages link to outside of docs/: pictures and tables of recorded runs.

In a page the links are those of the repository, ``../experiments/results/...``, so that they hold
there as well. What `make browser-demo` has built for the page of browser/ comes along. `Examples`
is an extension of Griffe, which reads the docstrings.
"""

import pathlib
import posixpath
import re

import griffe
from mkdocs.structure.files import File

ROOT = pathlib.Path(__file__).parents[1]
BROWSER = ROOT / "build" / "browser"
LINK = re.compile(r"\]\((?:\.\./)+(experiments/results/[^)#]+|saved_models/[^)#]+|[A-Z]+\.md)\)")


def on_files(files, config):
    """Adds the files that pages link to."""
    wanted = {
        _file(match)
        for page in files.documentation_pages()
        for match in LINK.findall(page.content_string)
    }
    for path in sorted(wanted):
        if not (ROOT / path).is_file():
            raise FileNotFoundError(f"A page links to {path}, which is no file.")
        if path.endswith(".md"):  # a page of the repository, as it is
            files.append(File.generated(config, path, content=(ROOT / path).read_text()))
        else:
            files.append(File.generated(config, path, abs_src_path=str(ROOT / path)))
    built = (file for file in BROWSER.rglob("*") if file.suffix in (".js", ".tflite", ".wasm"))
    for file in sorted(built):
        path = f"browser/{file.relative_to(BROWSER)}"
        if path not in files.src_uris:
            files.append(File.generated(config, path, abs_src_path=str(file)))
    return files


def on_page_markdown(markdown, page, config, files):
    """Turns links into the repository into links within the site."""
    folder = posixpath.dirname(page.file.src_uri)
    return LINK.sub(
        lambda match: f"]({posixpath.relpath(_file(match[1]), folder or '.')})", markdown
    )


def _file(path: str) -> str:
    return posixpath.join(path, "results.txt") if (ROOT / path).is_dir() else path


class Examples(griffe.Extension):
    """Shows the examples of docstrings as code: Griffe knows their section by the plural alone."""

    def on_object(self, *, obj, **kwargs):
        """Renames the section of an object's docstring."""
        if obj.docstring:
            obj.docstring.value = re.sub(r"(?m)^Example:$", "Examples:", obj.docstring.value)
