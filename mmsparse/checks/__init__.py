"""Check a config before anything is built or trained.

Each check refuses only what is certainly wrong: it raises UsageError, in one line, with
the setting, what it must be and the value given. A check that cannot know is silent.
"""

from mmsparse.checks.run import check_config, check_data

__all__ = ['check_config', 'check_data']
