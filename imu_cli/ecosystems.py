"""torchvision, timm and transformers, imported only where they are needed, and never online.

Each function imports its library late, so that a run which does not use it does not pay for it, and says what to install
where it is missing. Hub access is switched off before the libraries that could use it are imported.
"""

import importlib
import os
from types import ModuleType
from typing import Any

from .errors import ImuError

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
    try:
        return importlib.import_module("torchvision.models")
    except (ImportError, RuntimeError) as error:
        raise ImuError(
            f"torchvision: cannot be imported beside this torch ({error}); install matching builds of both"
        ) from error
