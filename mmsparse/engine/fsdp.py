"""FSDP that resumes the state of the optimizer."""

from typing import Any

from mmengine._strategy import FSDPStrategy as _FSDPStrategy
from torch.distributed.fsdp import FullyShardedDataParallel

from mmsparse.registry import STRATEGIES


@STRATEGIES.register_module()
class FSDPStrategy(_FSDPStrategy):
    """MMEngine's FSDPStrategy, whose ``--resume`` works with torch 2.1 and later.

    torch 2.1 has changed the order of the arguments that MMEngine passes.
    """

    def load_optim_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the state of the optimizer that a checkpoint has."""
        shards = FullyShardedDataParallel.optim_state_dict_to_load(
            model=self.model,
            optim=self.optim_wrapper.optimizer,
            optim_state_dict=state_dict,
        )
        self.optim_wrapper.load_state_dict(shards)
