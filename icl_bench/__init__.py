"""icl_bench: a benchmark suite for in-context learning and meta-learning.

>>> import icl_bench
>>> env = icl_bench.make("Digits-Proj8-v0")
>>> token, info = env.reset(seed=0)
>>> batch = env.unwrapped.sample(4)
>>> batch.x.shape, batch.y.shape
(torch.Size([4, 100, 64]), torch.Size([4, 100]))
"""

from icl_bench.episodes import EpisodeBatch, Split
from icl_bench.evaluation.learner import (
    Chance,
    Learner,
    LearnerError,
    NearestNeighbour,
    OnlineLogisticRegression,
)
from icl_bench.evaluation.protocol import (
    RecordResult,
    check_env,
    check_learner,
    evaluate,
    evaluate_suite,
    suite,
)
from icl_bench.evaluation.result import Result
from icl_bench.leaderboard.runs import save_run
from icl_bench.registration import (
    EnvSpec,
    cross,
    make,
    make_vec,
    register,
    register_dataset,
    registry,
)

__version__ = "0.1.0"

__all__ = [
    "Chance",
    "EnvSpec",
    "EpisodeBatch",
    "Learner",
    "LearnerError",
    "NearestNeighbour",
    "OnlineLogisticRegression",
    "RecordResult",
    "Result",
    "Split",
    "__version__",
    "check_env",
    "check_learner",
    "cross",
    "evaluate",
    "evaluate_suite",
    "make",
    "make_vec",
    "register",
    "register_dataset",
    "registry",
    "save_run",
    "suite",
]
