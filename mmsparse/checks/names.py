"""Find settings at the top of a config that MMEngine ignores by a wrong name."""

from difflib import get_close_matches

from mmengine.config import Config
from mmengine.runner import Runner

from mmsparse.checks.signatures import function_parameters

KNOWN = {*function_parameters(Runner.__init__), 'auto_scale_lr', 'custom_imports'}
KNOWN |= {'find_unused_parameters', 'model_wrapper_cfg', 'runner_type', 'strategy'}
KNOWN |= {'compile', 'tta_model'}
CUTOFF = 0.85  # of the similarity


def misspelled(cfg: Config) -> list[str]:
    """Return a note for each setting that has nearly the name of one of MMEngine's.

    It can be a variable of the config, which may have any name.
    """
    notes = []
    for name in cfg.keys() - KNOWN:
        close = get_close_matches(name, KNOWN, n=1, cutoff=CUTOFF)
        if close and not name.startswith(f'{close[0]}_'):  # a variant in a variable
            notes.append(f'{name} has no effect in MMEngine; did you mean {close[0]}?')
    return sorted(notes)
