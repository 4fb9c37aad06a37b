"""The entry for SGD of the optimizer database with which torch tests its own optimizers.

Importing it freezes ``torch.backends`` and loads torch's own profile of hypothesis; here neither lasts, as
both would be felt by every other test of the process.
"""

import hypothesis
import pytest
import torch


def _without_side_effects():
    profile = hypothesis.settings.get_current_profile_name()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.backends, "disable_global_flags", lambda: None)
        from torch.testing._internal import common_optimizers
    hypothesis.settings.load_profile(profile)
    (entry,) = [entry for entry in common_optimizers.optim_db if entry.optim_cls is torch.optim.SGD]
    return entry


SGD_ENTRY = _without_side_effects()

#: The keyword arguments of every input, by its description.
INPUTS = {each.desc: each.kwargs for each in SGD_ENTRY.optim_inputs_func(device="cpu")}
#: Every mistake, likewise.
ERRORS = {
    each.optimizer_error_input.desc: each
    for each in SGD_ENTRY.optim_error_inputs_func(device="cpu", dtype=torch.float32)
}
