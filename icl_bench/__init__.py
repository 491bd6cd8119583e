"""icl_bench: a benchmark suite for in-context learning and meta-learning.

>>> import icl_bench
>>> env = icl_bench.make("Digits-Proj8-v0")
>>> token, info = env.reset(seed=0)
>>> batch = env.unwrapped.sample(4)
>>> batch.x.shape, batch.y.shape
(torch.Size([4, 100, 64]), torch.Size([4, 100]))
"""

from icl_bench.data.text import TextSetting, from_dataset, register_text_task
from icl_bench.episodes import EpisodeBatch, Split, TextEpisode, TextExample
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
from icl_bench.evaluation.text_learners import MajorityLabel, TextChance, WordNeighbour
from icl_bench.evaluation.text_protocol import TextLearner, evaluate_text, text_suite
from icl_bench.evaluation.text_result import TextResult
from icl_bench.leaderboard.runs import save_run
from icl_bench.registration import (
    EnvSpec,
    TextEnvSpec,
    cross,
    make,
    make_vec,
    register,
    register_dataset,
    register_text_setting,
    registry,
)

__version__ = "0.1.0"

__all__ = [
    "Chance",
    "EnvSpec",
    "EpisodeBatch",
    "Learner",
    "LearnerError",
    "MajorityLabel",
    "NearestNeighbour",
    "OnlineLogisticRegression",
    "RecordResult",
    "Result",
    "Split",
    "TextChance",
    "TextEnvSpec",
    "TextEpisode",
    "TextExample",
    "TextLearner",
    "TextResult",
    "TextSetting",
    "WordNeighbour",
    "__version__",
    "check_env",
    "check_learner",
    "cross",
    "evaluate",
    "evaluate_suite",
    "evaluate_text",
    "from_dataset",
    "make",
    "make_vec",
    "register",
    "register_dataset",
    "register_text_setting",
    "register_text_task",
    "registry",
    "save_run",
    "suite",
    "text_suite",
]
