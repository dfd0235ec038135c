from dataclasses import dataclass
from typing import Optional


@dataclass
class MoeRunnerConfig:
    num_experts: Optional[int] = None
    num_local_experts: Optional[int] = None
    inplace: bool = True
