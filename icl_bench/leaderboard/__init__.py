"""The leaderboard: from run folders to boards.

Its modules, in the order in which numbers flow:

run folders     runs, learner_files, own_code, evaluate, text_evaluate; tables, text_tables (score)
submissions     entry, schema (entry.toml); submission, text_submission (made from runs)
distrust        checks, columns, sandbox, parquet_worker, predictions, text_predictions, reading,
                plausibility; replays (records of ``baselines.replay``)
scores          suites, scoring, text_columns, text_scoring, score_cache, reported/
what is told    comparison, summaries, marks, formatting, legend
boards          render: vector_render, text_render (Markdown); export, text_export (CSV, JSON);
                latex; page, page_data, assets/ (web page); cards, card_facts

``cli`` has the subcommands. Modules named ``text_…`` do for text what their namesakes do for
vectors.
"""
