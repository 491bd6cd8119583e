"""The leaderboard: run folders, submissions, the scorer and the rendered boards."""
