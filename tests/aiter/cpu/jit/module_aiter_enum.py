"""The same under the name that it had in v0.1.9 and before."""

from module_aiter_core import *  # noqa: F403
