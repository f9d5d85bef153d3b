"""torchvision, timm and transformers, imported only where they are needed, and never online.

Each function imports its library late, so that a run which does not use it does not pay for it, and says what to install
where it is missing. Hub access is switched off before the libraries that could use it are imported.
"""

import ast
import importlib
import importlib.metadata
import importlib.util
import os
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

from imu_cli.errors import ImuError

OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HUB_DISABLE_TELEMETRY")
EXTRAS = {"timm": "timm", "transformers": "hf"}


def _imported(name: str, why: str) -> ModuleType:
    for variable in OFFLINE:
        os.environ[variable] = "1"  # read when huggingface_hub is imported: nothing may be downloaded
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        raise ImuError(f"{why}: needs {name}, which is not installed; pip install 'imu-cli[{EXTRAS[name]}]'") from error
    except (ImportError, RuntimeError) as error:
        raise ImuError(f"{name}: cannot be imported ({error}); install builds that match this torch") from error


def timm(why: str) -> Any:
    """The timm package; ``why`` is where the user asked for it."""
    return _imported("timm", why)


def transformers(why: str) -> Any:
    """The transformers package, quiet."""
    found: Any = _imported("transformers", why)
    found.utils.logging.set_verbosity_error()
    found.utils.logging.disable_progress_bar()
    return found


def torchvision_models() -> Any:
    """torchvision.models.

    Raises:
        ImuError: it was built for another torch.
    """
    return _of_torchvision("models")


def torchvision_transforms() -> Any:
    """torchvision.transforms, with ``v2.functional`` imported.

    Raises:
        ImuError: it was built for another torch.
    """
    _of_torchvision("transforms.v2.functional")
    return _of_torchvision("transforms")


def torchvision_version() -> str:
    """What ``torchvision.__version__`` is, build included (``0.19.0+cpu``), without the seconds that importing it takes.

    The installed metadata may lack the build, so the file that the package has its own version from is read first.
    """
    found = importlib.util.find_spec("torchvision")
    if found is not None and found.origin:
        with suppress(OSError, SyntaxError, ValueError):
            for line in ast.parse(Path(found.origin).with_name("version.py").read_text(encoding="utf-8")).body:
                if isinstance(line, ast.Assign) and ast.unparse(line.targets[0]) == "__version__":
                    return str(ast.literal_eval(line.value))
    return importlib.metadata.version("torchvision")


def _of_torchvision(module: str) -> Any:
    try:
        return importlib.import_module(f"torchvision.{module}")
    except (ImportError, RuntimeError) as error:
        raise ImuError(
            f"torchvision: cannot be imported beside this torch ({error}); install matching builds of both"
        ) from error
