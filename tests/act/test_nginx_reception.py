"""What nginx needs of the daemon is put in place piece by piece, and what failed is tried again until it is there."""

from __future__ import annotations

from pathlib import Path

from hasupervisor.act.nginx.reception import Reception
from hasupervisor.act.nginx.settings import NginxSettings


async def test_a_sign_of_life_that_could_not_be_put_is_trouble_and_is_put_by_the_next_try(tmp_path: Path) -> None:
    folder = tmp_path / "nginx"
    folder.mkdir(mode=0o755)
    in_the_way = folder / ".alive"  # where the link is made before it gets its name
    in_the_way.mkdir()
    reception = Reception(NginxSettings(dir=folder, listen="127.0.0.1:0"), lambda: 0, lambda: None, None, None)
    await reception.start()
    try:
        assert reception.open
        assert str(in_the_way) in reception.trouble
        assert not (folder / "alive").exists()
        in_the_way.rmdir()
        await reception.start()
        assert reception.trouble == ""
        assert (folder / "alive").exists()
    finally:
        await reception.close()
    assert not (folder / "alive").is_symlink()
