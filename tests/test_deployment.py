"""The files for deployment name existing settings and routes, and pass their linters."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from indexer.settings import PREFIX, Settings
from tests.search_service.api.endpoints import application

ROOT = Path(__file__).parent.parent
DOCKER = ROOT / "docker"
FILES = [
    DOCKER / name for name in ("Dockerfile", "compose.yaml", "kubernetes.yaml", "prometheus.yml", "whosthere.service")
]


@pytest.mark.parametrize("file", FILES, ids=[file.name for file in FILES])
def test_every_named_setting_exists(file: Path) -> None:
    named = set(re.findall(rf"\b{PREFIX}([A-Z_]+)\b", file.read_text()))
    assert named <= {name.upper() for name in Settings.model_fields}


@pytest.mark.parametrize("name", ["compose.yaml", "kubernetes.yaml", "prometheus.yml"])
def test_every_requested_path_is_a_route(name: str) -> None:
    requested = {path for document in documents(name) for path in paths_in(document)}
    assert requested <= application().openapi()["paths"].keys()
    if name == "kubernetes.yaml":
        assert {"/healthz", "/readyz"} <= requested


def test_pods_have_no_privileges() -> None:
    deployment = next(one for one in documents("kubernetes.yaml") if one["kind"] == "Deployment")
    pod = deployment["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert deployment["spec"]["selector"]["matchLabels"] == deployment["spec"]["template"]["metadata"]["labels"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pod["volumes"]}
    service = next(one for one in documents("kubernetes.yaml") if one["kind"] == "Service")
    assert service["spec"]["selector"] == deployment["spec"]["selector"]["matchLabels"]
    assert service["spec"]["ports"][0]["targetPort"] in {port["name"] for port in container["ports"]}


def test_systemd_unit_is_valid(tmp_path: Path) -> None:
    tool = shutil.which("systemd-analyze")
    if tool is None:
        pytest.skip("systemd-analyze is not installed; expected it on Linux with systemd")
    unit = tmp_path / "whosthere.service"
    installed = f'"{Path(sys.executable).with_name("whosthere")}"'
    unit.write_text((DOCKER / "whosthere.service").read_text().replace("/opt/whosthere/bin/whosthere", installed))
    done = subprocess.run([tool, "verify", str(unit)], capture_output=True, text=True, check=False)
    warnings = [line for line in done.stderr.splitlines() if "whosthere.service" in line]
    assert (done.returncode, warnings) == (0, []), done.stderr


@pytest.mark.parametrize("command", [("hadolint", "Dockerfile"), ("compose-lint", "compose.yaml")])
@pytest.mark.parametrize("folder", ["plain", "a path with spaces", "home"])
def test_docker_files_pass_their_linters_wherever_the_checkout_is(
    command: tuple[str, str], folder: str, tmp_path: Path
) -> None:
    tool, file = command
    with checkout_below(Path.home() if folder == "home" else tmp_path, folder) as checkout:
        done = subprocess.run(
            [Path(sys.executable).with_name(tool), f"docker/{file}"],
            cwd=checkout,
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0, done.stdout + done.stderr


@contextmanager
def checkout_below(parent: Path, name: str) -> Iterator[Path]:
    """Copies `docker/` into a temporary folder below `parent`."""
    if not os.access(parent, os.W_OK):
        pytest.skip(f"{parent} is not writable")
    with tempfile.TemporaryDirectory(prefix=f"{name}-", dir=parent) as folder:
        shutil.copytree(DOCKER, Path(folder) / "docker")
        yield Path(folder)


def documents(name: str) -> list[dict[str, Any]]:
    return [one for one in yaml.safe_load_all((DOCKER / name).read_text()) if one]


def paths_in(value: Any) -> Iterator[str]:
    """Yields the paths requested from the service: values of `path`, `metrics_path` and similar annotations."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if key.endswith(("path", "metrics_path")) and isinstance(inner, str):
                yield inner
            yield from paths_in(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from paths_in(inner)
