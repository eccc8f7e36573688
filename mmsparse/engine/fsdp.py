"""FSDP that resumes the state of the optimizer."""

from typing import Any

from mmengine._strategy import FSDPStrategy as _FSDPStrategy
from torch.distributed.fsdp import FullyShardedDataParallel

from mmsparse.registry import STRATEGIES


@STRATEGIES.register_module()
class FSDPStrategy(_FSDPStrategy):
    """MMEngine's FSDPStrategy, of which ``--resume`` loads the optimizer's state.

    MMEngine passes arguments in the order that they had before torch 2.1.
    """

    def load_optim_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the state of the optimizer that a checkpoint has."""
        shards = FullyShardedDataParallel.optim_state_dict_to_load(
            model=self.model,
            optim=self.optim_wrapper.optimizer,
            optim_state_dict=state_dict,
        )
        self.optim_wrapper.load_state_dict(shards)
