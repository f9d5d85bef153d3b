"""Which tensors of a file a model's weights stand in: by name, by the library's own loader, and never against the values."""

from collections.abc import Mapping

from torch import Tensor

from imu_cli.models.architecture import Loaded, library_names
from imu_cli.models.checkpoint import Checkpoint, same_bits


def find(checkpoint: Checkpoint, loaded: Loaded, weights: Mapping[str, Tensor]) -> dict[str, list[str]]:
    """The file's names for each of a model's weights, which hold the file's values still.

    Several where the file has a tied weight twice; none where a weight is computed, joined or turned on loading.
    """
    model, naming = loaded.model, loaded.naming
    state = model.state_dict(keep_vars=True)
    own = {naming.own(name): name for name in checkpoint.entries if name not in naming.left_out}
    known = {name: name for name in state if name in own}
    if not all(name in known for name in weights):
        known |= library_names(model, {name: checkpoint.entries[file].shape for name, file in own.items()})
    alike: dict[int, list[str]] = {}
    for name, tensor in state.items():
        alike.setdefault(tensor.data_ptr(), []).append(name)
    return {
        name: sorted(
            {
                own[known[one]]
                for one in {name, *alike.get(weight.data_ptr(), [])}
                if one in known and _holds(checkpoint, own[known[one]], weight)
            }
        )
        for name, weight in weights.items()
    }


def _holds(checkpoint: Checkpoint, file: str, weight: Tensor) -> bool:
    if checkpoint.entries[file].shape != tuple(weight.shape):
        return False
    stored = checkpoint.tensor(file)
    return not stored.is_floating_point() or same_bits(stored.to(weight.dtype), weight.detach().cpu())
