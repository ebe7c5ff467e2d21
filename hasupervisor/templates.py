"""Where the nginx templates lie: the folder `nginx/` of a checkout, which a wheel carries inside the package."""

from __future__ import annotations

from pathlib import Path


def template_dir() -> Path:
    """The folder with `*.conf.j2`, as an absolute path.

    In a checkout (and an editable install) `hasupervisor/nginx` is a symbolic link to `../nginx`; a wheel holds the
    files themselves there, so one path serves both. Raises FileNotFoundError when the package is incomplete.
    """
    folder = Path(__file__).resolve().parent / "nginx"
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{folder}: the nginx templates are missing, this installation is incomplete; install chatglm-ha again"
        )
    return folder
