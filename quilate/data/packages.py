"""Data sets that ship inside an installed Python package, read without importing the package.

Importing is avoided on purpose: `cie`, for one, unpacks and writes files into site-packages when it is first used.
"""

from __future__ import annotations

import csv
import importlib.metadata
import importlib.util
import io
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quilate.errors import DataError, MachineError, explained_os_errors

PREFIX = "package:"
_MAX_MEMBER_BYTES = 64 * 2**20  # guess: 40 times the CIE-10 table; stops a zip bomb


@dataclass(frozen=True)
class PackagedTable:
    """Where a package keeps its table and how to read it."""

    file: str
    read: Callable[[Path], list[dict[str, Any]]]


def locate_packaged(name: str) -> Path:
    """The file that holds the table of package `name`.

    Raises:
        DataError: no table is known for that package.
        MachineError: the package is not installed, or lacks the file.
    """
    if name not in KNOWN:
        raise DataError(
            f"'{PREFIX}{name}': no table is known in a package of that name",
            hint=f"known: {', '.join(PREFIX + known for known in sorted(KNOWN))}; for a file, give its path",
        )
    spec = importlib.util.find_spec(name)
    folders = list(spec.submodule_search_locations or ()) if spec else []
    if not folders:
        raise MachineError(f"the Python package '{name}' is not installed here", hint=f"pip install {name}")
    for folder in folders:
        path = Path(folder) / KNOWN[name].file
        if path.is_file():
            return path
    raise MachineError(
        f"the installed package '{name}' has no {KNOWN[name].file}", hint=f"pip install --force-reinstall {name}"
    )


def packaged_version(name: str) -> str:
    """The installed version of a package."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:  # put on the path without an installer
        return "unknown"


def _read_cie(path: Path) -> list[dict[str, Any]]:
    """ICD-10 in Spanish (package `cie`): one row a code.

    Columns: code, description, level (0 chapter, 1 block, 2.. below), category (the three-character code above or at
    this one; a range such as C00-C75 is its own), block (code at level 1), chapter (description at level 0),
    chapter_code (for example A00-B99).
    """
    with explained_os_errors(path, "read the table"):
        try:
            with zipfile.ZipFile(path) as archive:
                if archive.getinfo("cie-10.csv").file_size > _MAX_MEMBER_BYTES:
                    raise DataError(f"{path} holds more than {_MAX_MEMBER_BYTES:,} bytes", hint="reinstall the package")
                text = archive.read("cie-10.csv").decode("utf-8-sig")
        except (zipfile.BadZipFile, KeyError, UnicodeDecodeError, EOFError) as error:
            raise DataError(f"{path} is damaged: {error}", hint="pip install --force-reinstall cie") from error
    # The source mixes en dashes and hyphens in ranges, and pads some cells.
    cells = [
        {key: value.strip().replace("–", "-") for key, value in row.items()}
        for row in csv.DictReader(io.StringIO(text))
    ]
    descriptions = {row["code"]: row["description"] for row in cells}
    rows = []
    for row in cells:
        code, level = row["code"], int(row["level"])
        chapter_code = row["code_0"] or code
        rows.append(
            {
                "code": code,
                "description": row["description"],
                "level": level,
                "category": code if "-" in code else code[:3],
                "block": code if level == 1 else row["code_1"],
                "chapter": descriptions[chapter_code],
                "chapter_code": chapter_code,
            }
        )
    return rows


KNOWN: dict[str, PackagedTable] = {"cie": PackagedTable("data/cie-10.zip", _read_cie)}
