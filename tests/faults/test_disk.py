"""The disk becomes full while the service writes, and has space again."""

from __future__ import annotations

import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.installation import STAFF, NewInstallation, Photo, SendRequest, calling, check, faces, owners
from tests.search_service.api.serving import image, ok, refused

AMPLE_SPACE = 2 * 2**30
"""Bytes with which `doctor` finds no problem. A file system in memory only uses what is written."""

LITTLE_SPACE = 256 * 2**10
"""Bytes for some of the photos."""


class Disk:
    """A file system that can be resized; skips the test with a reason if none can be mounted."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        self._mount("-t", "tmpfs", "-o", f"size={AMPLE_SPACE}", "tmpfs")

    def leave(self, free: int) -> None:
        self._mount("-o", f"remount,size={shutil.disk_usage(self.folder).used + free}")

    def close(self) -> None:
        subprocess.run(["umount", "--lazy", self.folder], check=True, capture_output=True)

    def _mount(self, *arguments: str) -> None:
        try:
            subprocess.run(["mount", *arguments, self.folder], check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"no disk can be mounted here: {error} {getattr(error, 'stderr', b'').decode()}")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    disk = Disk(tmp_path / "home")
    yield disk
    disk.close()


def test_service_recovers_when_disk_has_space_again(
    disk: Disk, new_installation: NewInstallation, enroll: SendRequest, photo: Photo
) -> None:
    """Changes fail, searches work, acknowledged changes are kept. The process recovers when there is space."""
    installation = new_installation(f"sqlite:///{disk.folder / 'whosthere.db'}")
    with installation.serving() as serve:
        client = serve.client
        disk.leave(LITTLE_SPACE)
        with calling(str(client.base_url), enroll) as callers:
            callers.wait(12, 503)
        assert callers.statuses() == {201, 503}
        error = refused(enroll(client, 1_000_000), 503, "storage_unavailable")
        assert "full" in error["message"]
        refused(client.delete(f"{STAFF}/identities/left-1"), 503, "storage_unavailable")
        archive = {"images": ("a.jpg", photo(2_000_000)[1] * 100)}
        refused(client.post(f"{STAFF}/enrollments", files=archive), 503, "storage_unavailable")
        assert (client.get("/readyz").status_code, client.get("/healthz").status_code) == (200, 200)
        person, data = photo(0)
        (face,) = ok(client.post(f"{STAFF}/search", files=image(data)))["faces"]
        assert face["candidates"][0]["external_id"] == person
        disk.leave(AMPLE_SPACE)
        with calling(str(client.base_url), enroll) as again:
            again.wait(12, 200, 201)
        assert again.statuses() <= {200, 201}
        serve.end()
        assert "Traceback" not in serve.log()
    check(
        installation, owners([*callers.bodies(201).values(), *again.bodies(201).values(), *again.bodies(200).values()])
    )


def test_full_disk_at_kill_and_at_shutdown_loses_nothing(
    disk: Disk, new_installation: NewInstallation, enroll: SendRequest
) -> None:
    """The service also starts on a full disk, with every acknowledged change."""
    installation = new_installation(f"sqlite:///{disk.folder / 'whosthere.db'}")
    with installation.serving() as serve:
        disk.leave(LITTLE_SPACE)
        with calling(str(serve.client.base_url), enroll) as callers:
            callers.wait(4, 503)
        serve.process.kill()
    kept = owners(callers.bodies(201).values())
    with installation.serving() as serve:
        assert kept.items() <= faces(serve.client).items()
        assert serve.end() == -signal.SIGTERM, serve.log()
        assert "Traceback" not in serve.log()
    disk.leave(AMPLE_SPACE)
    check(installation, kept)
