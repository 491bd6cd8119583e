"""The fixed texts of README.md: how to read a board, and how to hand something in."""

from icl_bench.leaderboard.formatting import DASH

INTRODUCTION = """\
# Leaderboards

Made by `icl-bench board`; do not edit. Every score was recomputed from handed-in predictions and
the labels of the frozen episodes. The only exceptions are rows marked *reported*: a paper printed
those numbers, and nobody here can check them. What a method is and costs is what its authors say.

See [how to read a board](#how-to-read-a-board), [how to read a text
board](#how-to-read-a-text-board) and [how to submit](#how-to-submit). The same boards as a
[web page](index.html) that sorts, filters and compares learning curves (open it in a copy of this
folder); [cards](cards/README.md) show how hard each environment is.
"""

LEGEND = f"""\
## How to read a board

- **Cells** such as `73.4 ± 3.1 (1)`: accuracy in % at the last step of an episode (step 99: the
  learner has seen 99 labelled examples and predicts the 100th), on tasks that it has never met.
  The number in brackets is the rank within the column.
- **±** is the 95 % interval for the given checkpoints: what would another draw of tasks give? It
  comes from a bootstrap over tasks, since episodes of one task are not independent. Where the two
  sides differ, the larger one is shown; `board.csv` has both. It does not say what another
  meta-training seed would give: see *Every meta-training seed* below each board. `± 0.0` means that
  all tasks gave the same value, not that another task must.
- **(Rank)** = 1 + the number of entries that are significantly better in this column. Two entries
  are compared on identical episodes, and one is significantly better if the 95 % interval of the
  difference lies above zero (not corrected for the number of comparisons). Several entries may have
  rank 1, and ± intervals that overlap decide nothing by themselves. Neither do two ranks: they
  count who is better than each, so two entries that the data cannot tell apart may have different
  ranks, where only one of them is within reach of a third. *Pairs* says how many comparisons are
  decided.
- **Mean rank** averages a row's ranks; a missing column counts as one place behind all entries of
  that column. **Rows** are in the order of mean rank, and alphabetical where it is equal. The order
  of two rows means no more than that: whether two methods differ, only their paired difference
  says.
- **Pairs** such as `+12 −3 =5`: of all comparisons with another entry in a column that both have,
  the entry is significantly better in 12 and significantly worse in 3; 5 are not decided.
- **Seeds**: meta-training seeds handed in; `1 of 3` is less than the protocol asks for.
- **{DASH}** means not handed in, or not known.

**Marks** beside a method:

- *reference*: a classical learner that shows what a number means; ranked as any other entry.
- *reported*: a number of a paper. Never ranked, for its episodes are others and its interval is
  unknown.
- *replayed*: the handed-in checkpoints were run again here, for every seed and column, and gave the
  handed-in predictions (at most 0.5 % may differ by rounding), and were not worse on fresh tasks.
  *replayed in part* says of how many of its columns that is true.
- *replay differs*: in some column they gave other predictions than those handed in. Without any
  mark of a replay, nobody here has run the learner, or not every seed of it.
- *needs replay*: something about the predictions is odd; the reason stands below the board.
- *worse on fresh tasks*: in some column the replay was so much worse on fresh tasks than on the
  frozen ones that an honest entry is marked about once in two thousand: the learner was tuned to
  the frozen ones.
- *external data*: used data or pretrained weights from elsewhere; *external data not stated*: does
  not say whether it did. Ranked all the same: to disclose costs no rank.
- *other meta-training*: meta-trained on another environment than the protocol's.

Click on a line with a triangle to open it:

- **About the methods**: *taxonomy* is what the learner does with tasks of its meta-training
  environment (learns, identifies, zero-shot, memorises or at chance, as in Table 1 of GPICL), as a
  replay on seen and unseen ones found; that it *learns*, a significant rise of accuracy within
  unseen episodes shows without one; *parameters* are meta-trained numbers; *state size* counts the
  numbers that the learner carries from one step to the next; *GPU-hours* are those of all seeds
  together. The authors state all but the taxonomy.
- **Learning curves**: accuracy after 0, 1, 4, 9, 19, 49 and 99 labelled examples, that is of the
  1st, 2nd, 5th, 10th, 20th, 50th and 100th prediction of an episode, and the mean over all steps
  (*area*), each with its interval over tasks.

Files beside each board: `board.csv` and `board.json` hold all of this and more (both bounds, log
losses, whole learning curves), `curves.csv` the summaries of the learning curves (not of text),
`papers.csv` ours against a paper's (where papers report numbers). Accuracies there are in [0, 1].
`icl-bench latex <suite>` prints a board as a table for a paper.
"""

TEXT_LEGEND = """\
## How to read a text board

Columns are settings: a method is meta-trained on a setting's train tasks and answers the queries of
its test tasks, each after five draws of 16 demonstrations. What differs from the other boards:

- **Cells** such as `43.3 ± 5.1 / 41.7 (1)`: macro-F1 of classification and accuracy of multi-choice
  tasks in %, of each task the mean over the five draws, then the mean over tasks; after the slash
  the worst of the five draws in place of their mean. The number beside a setting is that of its
  tasks. One table has all test tasks, one those whose domain no train task has (*unseen-domain*).
- **±** is the 95 % interval of the first number: what would another draw of tasks and queries give?
  It comes from a bootstrap that draws tasks, then queries within them. `board.csv` has both bounds,
  also those of the worst draw, which lie somewhat too low: in simulations they hold the truth in
  90 to 92 %. A column of a single task has neither interval nor rank.
- **(Rank)** = 1 + the number of entries whose mean is significantly better on identical queries.
  Direct entries (the answer given the input) and channel entries (the input given the answer) stand
  in one table and are ranked together.
- **Win rate**: the share of comparisons with another entry in a column with ranks in which the mean
  is higher, ties counting half. It counts differences that mean nothing: **Pairs** beside it says
  how many of the comparisons the data decide.
- **Partial** hand-ins (fewer tasks or queries than are frozen) are shown below with their coverage
  and never ranked: other tasks make other means.
- *reported* rows average over all tasks of the original, with files that are larger in part;
  *other meta-training* marks entries that were not meta-trained on each column's own train tasks.
"""

SUBMIT = """\
## How to submit

Five commands from the root of the repository, here on a CPU with the small Digits data, in about a
minute:

```
for seed in 0 1 2; do python -m baselines.sgd --preset cpu --suite digits-v0 --seed $seed; done
icl-bench score runs/digits-v0__sgd__*
icl-bench submit runs/digits-v0__sgd__* --suite digits-v0 --out leaderboards/digits-v0/my-sgd \\
    --title "My SGD" --authors "Ada Author" --checkpoints
icl-bench validate leaderboards/digits-v0/my-sgd
icl-bench board
```

1. Meta-train and evaluate, once for each of three seeds; every run makes a folder under `runs/`.
   With a learner of your own: `icl-bench evaluate my_module:my_learner --suite digits-v0 --seed 0`.
2. Look at the numbers.
3. Make the submission. `--checkpoints` hands in the learners, so that others can run them again.
4. Check it; every problem is listed at once. `icl-bench validate --schema` tells what `entry.toml`
   must hold.
5. Build the boards anew, look at `leaderboards/README.md`, and open a pull request with the folder.

For a text suite, meta-train and evaluate once per setting; all these runs together make one entry:
`icl-bench submit runs/*__metaicl__* --suite metaicl-v0`. It is direct or channel, not both.

A submission holds predictions, never scores: `entry.toml` and one Parquet file per seed. The scorer
executes nothing that is handed in. Entries made for another version of an environment (another
fingerprint) or of the scorer are listed, but not ranked.
"""
