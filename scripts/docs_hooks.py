"""Hooks of `mkdocs build`: pages that are made from the sources, and shapes and units in the API pages."""

import sys
from pathlib import Path

from mkdocs.structure.files import File

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts import command_reference


def on_files(files, config):
    """Adds the command reference."""
    for name, text in command_reference.pages().items():
        files.append(File.generated(config, f"reference/commands/{name}", content=text))
    return files
