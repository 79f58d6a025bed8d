"""Ways to compute the embeddings that the tests run in: the precision, the runtime, the instructions of the CPU.

`WHOSTHERE_PRECISION=int8 .venv/bin/python -m pytest` runs the tests in that precision, and
`.venv/bin/python -m tests.variants onnxruntime ARGUMENTS...` runs pytest in one of the VARIANTS.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from indexer.types import Precision

PRECISION_SETTING = "WHOSTHERE_PRECISION"

SETTINGS: Mapping[str, str] = {name: os.environ[name] for name in (PRECISION_SETTING,) if name in os.environ}
"""Settings with which pytest was started that hold for the service, too. All others are removed by `conftest.py`."""

PRECISION = Precision(SETTINGS.get(PRECISION_SETTING, Precision.NATIVE))


@dataclass(frozen=True)
class Variant:
    environment: Mapping[str, str] = field(default_factory=dict)
    hidden: str = ""
    """A Python package that cannot be imported, as if it were not installed."""
    instructions: str = ""
    """A flag of the CPU, as Linux names it, without which the variant would be the same as another one."""

    def problem(self) -> str | None:
        """Returns why the variant cannot run on this machine; None where it can."""
        flags = Path("/proc/cpuinfo")
        if self.instructions and not (flags.exists() and self.instructions in flags.read_text().split()):
            return f"the CPU has no {self.instructions}, or the operating system does not list its flags"
        return None


VARIANTS = {
    "native": Variant({PRECISION_SETTING: "native"}),
    "float32": Variant({PRECISION_SETTING: "float32"}),
    "int8": Variant({PRECISION_SETTING: "int8"}),
    "onnxruntime": Variant(hidden="openvino"),
    # Other kernels, which round differently. Limited further, OpenVINO 2026.4 is not stable.
    "float32-avx512": Variant({PRECISION_SETTING: "float32", "ONEDNN_MAX_CPU_ISA": "AVX512_CORE"}, "", "avx512bw"),
}


def clean_environment(**more: str) -> dict[str, str]:
    """Returns the environment for a process of the service: no settings but those of the variant and those given."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("WHOSTHERE_")}
    return {**inherited, **SETTINGS, **more}


@contextmanager
def environment_of(variant: Variant) -> Iterator[dict[str, str]]:
    """The environment of processes that run in the variant."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "sitecustomize.py").write_text(f"import sys\n\nsys.modules[{variant.hidden!r}] = None\n")
        paths = ([folder] if variant.hidden else []) + list(filter(None, [os.environ.get("PYTHONPATH")]))
        yield clean_environment() | {"PYTHONPATH": os.pathsep.join(paths)} | dict(variant.environment)


if __name__ == "__main__":
    name, *arguments = sys.argv[1:]
    with environment_of(VARIANTS[name]) as environment:
        sys.exit(subprocess.run([sys.executable, "-m", "pytest", *arguments], env=environment, check=False).returncode)
