"""Files of ComfyUI's model folders, as loader nodes name them."""

from __future__ import annotations

import os


def names_in(folder: str) -> list[str]:
    """For a COMBO: what lies there now."""
    import folder_paths

    return folder_paths.get_filename_list(folder)


def path_of(folder: str, name: str | None) -> str | None:
    """The file's path, or None where there is none of that name; ComfyUI keeps it inside of the folder."""
    import folder_paths

    return None if name is None else folder_paths.get_full_path(folder, str(name))


def fingerprint(folder: str, name: str | None) -> tuple[str, int, int] | str | None:
    """Changes when the file does."""
    path = path_of(folder, name)
    if path is None:
        return name
    status = os.stat(path)
    return path, status.st_mtime_ns, status.st_size


def missing(folder: str, name: str, what: str, remedy: str) -> str:
    """The sentence for a name that is not there."""
    import folder_paths

    places = " or ".join(folder_paths.get_folder_paths(folder))
    return f'There is no {what} "{name}": {remedy} {places}, press R to refresh the page and choose it.'
