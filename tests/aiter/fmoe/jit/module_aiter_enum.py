from module_aiter_core import *  # noqa: F403
