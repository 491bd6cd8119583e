"""Bad submissions, each a good one changed in one way, and the only reason why it is refused."""

import os
import shutil

import pyarrow as pa
from hostile_changes import (
    SEED_0,
    SEED_1,
    Change,
    argument,
    big_text,
    bound_socket,
    column,
    copied_seed,
    everywhere,
    folder,
    hard_link,
    linked,
    linked_folder,
    linked_toml,
    log_probs,
    many,
    no_fingerprints,
    no_utf8,
    replaced,
    rows,
    sparse,
    table_change,
    toml,
    toml_without,
    typed,
    url,
    write,
)
from hostile_parquet import BOMBS
from synthetic_runs import DIGITS
from synthetic_text import MINI, MINI_CHANNEL, PARA

from icl_bench.data.text import text_setting
from icl_bench.evaluation.text_protocol import text_options

Case = tuple[Change, str]
WEIGHTS = "checkpoints/seed-0.safetensors"
FIRST = text_setting("TextMini").test[0]

LAYOUT: dict[str, Case] = {
    "no entry.toml": (lambda path: (path / "entry.toml").unlink(), r"^entry\.toml is missing$"),
    "no predictions": (
        lambda path: shutil.rmtree(path / "predictions"),
        r"seed-<n>\.parquet is missing",
    ),
    "linked file": (linked, r"'predictions/seed-1\.parquet': a symbolic link has no place"),
    "linked folder": (linked_folder, "'checkpoints': a symbolic link has no place"),
    "linked toml": (linked_toml, r"'entry\.toml': a symbolic link has no place"),
    "hard link": (hard_link, r"seed-1\.parquet: a file with 2 hard links has no place"),
    "program": (write("learner.py", b"print()"), r"'learner\.py': unexpected file"),
    "hidden file": (write("predictions/.x", b""), r"'predictions/\.x': unexpected file"),
    "odd name": (write("a\n\x1b[31m\udcff", b""), r"'a\\n\\x1b\[31m\\udcff': unexpected file"),
    "no folder": (write("checkpoints.json", b"{}"), r"'checkpoints\.json': unexpected file"),
    "folder": (folder("more/and/more"), "'more': a folder has no place here"),
    "folder inside": (folder("predictions/x"), "'predictions/x': a folder has no place here"),
    "pipe": (lambda path: os.mkfifo(path / "pipe"), "'pipe': a pipe has no place here"),
    "pipe as predictions": (
        many(lambda path: (path / SEED_1).unlink(), lambda path: os.mkfifo(path / SEED_1)),
        r"'predictions/seed-1\.parquet': a pipe has no place here",
    ),
    "socket": (bound_socket, "'socket': a socket has no place here"),
    "pickle": (write("checkpoints/seed-0.pkl", b"\x80"), r"seed-0\.pkl': unexpected file"),
    "seed with a zero": (write("predictions/seed-01.parquet", b""), r"seed-01.*unexpected"),
    "many files": (
        many(*(write(f"predictions/{i}", b"") for i in range(201))),
        "more than 200 files, a submission has fewer",
    ),
    "many seeds": (
        many(*(sparse(f"predictions/seed-{i}.parquet", 9) for i in range(33))),
        "33 seeds, at most 32 are allowed",
    ),
    "too large": (sparse(SEED_0, 3_000_001), r"seed-0\.parquet: 3000001 bytes, at most 3000"),
    "vast": (sparse(SEED_0, 2**40), r"seed-0\.parquet: 1099511627776 bytes, at most 3000"),
    "large altogether": (
        many(
            sparse("checkpoints/seed-0.safetensors", 50_000_000),
            sparse("checkpoints/seed-1.safetensors", 50_000_000),
        ),
        r"10\d{7} bytes in all, at most 100000000 are allowed",
    ),
    "long toml": (write("entry.toml", b"#" * 32_001), r"entry\.toml: 32001 bytes, at most 32000"),
    "checkpoint alone": (
        write("checkpoints/seed-7.json", b"{}"),
        r"checkpoints of seed 7 have no predictions",
    ),
    "empty checkpoint": (write(WEIGHTS, b""), "cannot be read as safetensors: .* file of 0$"),
    "vast header": (
        write(WEIGHTS, b"\xff" * 8 + b"{}"),
        "safetensors: a header of 18446744073709551615 bytes in a file of 10",
    ),
    "header of garbage": (write(WEIGHTS, b"\2" + b"\0" * 7 + b"{]"), "as safetensors: Expecting"),
    "header of a list": (write(WEIGHTS, b"\2" + b"\0" * 7 + b"[]"), "safetensors: it holds no obj"),
    "checkpoint of a list": (
        write("checkpoints/seed-0.json", b"[1]"),
        "as JSON: it holds no objec",
    ),
    "deep checkpoint": (
        write("checkpoints/seed-0.json", b'{"a":' * 12_000),
        "as JSON: maximum recursion depth",
    ),
    "long checkpoint": (
        sparse("checkpoints/seed-0.json", 64_001),
        r"seed-0\.json: 64001 bytes, at most 64000",
    ),
}

TOML: dict[str, Case] = {
    "no toml": (toml("suite =", "suite = ="), r"as TOML: Invalid value \(at line 1"),
    "key twice": (toml("suite =", 'suite = "x"\nsuite ='), "as TOML: Cannot overwrite a value"),
    "deep toml": (write("entry.toml", b"a=" + b"[" * 30_000), "as TOML: maximum recursion"),
    "dotted key": (toml("title =", "title" + ".a" * 150 + " ="), "nested more than 3 deep"),
    "long dotted key": (toml("title =", "title" + ".a" * 15_000 + " ="), r"150\d\d dots, at most"),
    "long key": (toml("suite =", "a" * 121 + "=1\nsuite ="), "a key of more than 120 characters"),
    "huge number": (toml("1234", "0x" + "f" * 9000), "toml: a whole number of more than 64 bits"),
    "long number": (toml("1234", "1" * 5000), "as TOML: Exceeds the limit"),
    "no text": (write("entry.toml", b"a='\xff'"), "as TOML: 'utf-8' codec can't decode"),
    "escape": (toml('"GPICL"', '"GP\x1b[2JICL"'), "as TOML: Illegal character"),
    "unknown key": (toml("suite =", "accuracy = 0.99\nsuite ="), "unknown key 'accuracy'"),
    "unknown keys": (
        toml("suite =", "\n".join(f"x{i:03} = 1" for i in range(500)) + "\nsuite ="),
        "500 unknown keys, 'x000' among them",
    ),
    "single seed": (toml("seeds =", "seed = 3\nseeds ="), "unknown key 'seed': the key is seeds"),
    "missing key": (toml_without("authors"), "authors is missing"),
    "missing suite": (toml_without("suite"), "suite is missing"),
    "missing seeds": (toml_without("seeds"), "seeds is missing"),
    "missing version": (toml_without("scorer_version"), "scorer_version is missing"),
    "missing fingerprints": (no_fingerprints, "fingerprints is missing"),
    "text for a number": (toml("1234", '"many"'), "parameters must be a whole .* not 'many'"),
    "negative number": (toml("1234", "-1"), "parameters must be a whole number .* not -1$"),
    "fraction": (toml("state_size = 56", "state_size = 5.5"), "state_size must be a whole"),
    "infinite hours": (toml("gpu_hours = 1.0", "gpu_hours = 1e400"), "gpu_hours .* not inf$"),
    "no hours": (toml("gpu_hours = 1.0", "gpu_hours = nan"), "gpu_hours must be .* not nan$"),
    "date for a text": (toml('"Ada, Bob"', "2026-01-02"), "authors must be a text .* not datetime"),
    "list for a text": (toml('"a CPU"', '["a CPU"]'), r"hardware must be a text .* not \['a CPU'"),
    "number for a flag": (toml("deterministic = false", "deterministic = 0"), "true or false"),
    "empty text": (
        toml('"GPICL"', '"  "'),
        "title must be a text of 1 to 120 characters, not '  '",
    ),
    "long text": (toml('"GPICL"', f'"{"x" * 121}"'), "title must be a text of 1 to 120 .*xxx"),
    "no letter": (
        toml('"GPICL"', '"++"'),
        "title must have a letter or a digit, not '++'".replace("+", r"\+"),
    ),
    "mirrored text": (toml('"GPICL"', '"GP\\u202EICL"'), r"title must be one line .*U\+202E"),
    "control": (toml('"a CPU"', '"a\\u0007 CPU"'), r"hardware must be one line .*U\+0007"),
    "two lines": (toml('"Ada, Bob"', '"Ada\\nBob"'), r"authors must be one line .*U\+000A"),
    "zero width": (toml('"In-context', '"In\\u200B-context'), r"inductive_bias .*U\+200B"),
    "blank letter": (toml('"GPICL"', '"GPICL\\u3164"'), r"title must be one line .*U\+3164"),
    "other kind": (toml('kind = "method"', 'kind = "winner"'), "kind must be method or reference"),
    "argument NaN": (argument("nan"), r"finite JSON scalars or lists of them \(bias does not\)"),
    "argument table": (argument("{a = 1}"), "must hold finite JSON scalars .*'a': 1"),
    "argument seed": (argument("1\nseed = 3"), "meta_train_kwargs must not hold seed"),
    "no argument": (argument('1\n"a b" = 3'), "must have names of arguments as keys"),
    "many arguments": (
        argument("1\n" + "\n".join(f"x{i} = 1" for i in range(31))),
        "must be a table of at most 32 arguments",
    ),
    "other name": (toml('name = "gpicl"', 'name = "vsml"'), "name must be that of the folder"),
    "unknown suite": (toml('"digits-v0"', '"digits-v9"'), "unknown suite 'digits-v9'; there are"),
    "scorer version": (toml("scorer_version = 1", "scorer_version = 99"), "scorer version 99, thi"),
    "scorer text": (toml("scorer_version = 1", 'scorer_version = "1"'), "scorer_version must be"),
    "package version": (toml('package_version = "', 'package_version = "<b>'), "must be a version"),
    "other seeds": (toml("[0, 1]", "[0, 2]"), r"seeds are \[0, 2\], but there are files of \[0, 1"),
    "seed twice": (toml("[0, 1]", "[0, 0]"), r"list of distinct whole .* not \[0, 0\]"),
    "seeds backwards": (toml("[0, 1]", "[1, 0]"), r"list of distinct whole .* not \[1, 0\]"),
    "negative seed": (toml("[0, 1]", "[-1, 1]"), r"list of distinct whole .* not \[-1, 1\]"),
    "deterministic": (
        toml("deterministic = false", "deterministic = true"),
        "a deterministic entry has exactly one file of predictions, not 2",
    ),
    "fingerprint": (
        toml(f'{DIGITS} = "', f'{DIGITS} = "{"0" * 64}"\n# "'),
        f"{DIGITS} was evaluated as 000000000000…, this version's",
    ),
    "no checksum": (toml(f'{DIGITS} = "', f'{DIGITS} = "x"\n# "'), "must be a table of environ"),
    "no fingerprint": (toml(f'{DIGITS} = "', "# "), r"fingerprints are of .*Random.*predictions"),
    "http": (url("http://a.org"), "url must be an https .*'http://a.org'"),
    "script": (url("javascript:alert(1)"), "url must be an https .*'javascript:"),
    "user": (url("https://me:pw@a.org/"), "url must be an https .*'https://me:pw@"),
    "look-alike host": (url("https://а.org"), r"url must be an https .*'https://\\u0430"),
    "disguised host": (url("https://xn--80ak6aa92e.com"), "url must be an https .*xn--80"),
    "number as host": (url("https://127.0.0.1/"), r"url must be an https .*127\.0"),
    "no host": (url("https:///a"), "url must be an https .*https:///a"),
    "blank in url": (url("https://a.org/ b"), "url must be an https .*a.org/ b"),
    "quote in url": (url('https://a.org/"x'), r"url must be an https .*a\.org/\"x"),
    "line feed in url": (url("https://a.org\n"), r"url must be an https .*a\.org\\n"),
    "long url": (url("https://a.org/" + "x" * 287), r"url must be an https .*xxxxx"),
}

PREDICTIONS: dict[str, Case] = {
    "same predictions": (copied_seed, "seeds 0 and 1 hold the same predictions"),
    "unlike seeds": (
        table_change(lambda t: t.slice(0, 25_600), SEED_1),
        "seeds 0 and 1 differ in environments or episodes",
    ),
    "garbage": (
        write(SEED_0, b"PAR1 but not really PAR1"),
        "as Parquet: Parquet file size is 24 bytes",
    ),
    "empty file": (write(SEED_0, b""), "as Parquet: Parquet file size is 0 bytes"),
    "half a file": (
        lambda path: os.truncate(path / SEED_0, (path / SEED_0).stat().st_size // 2),
        "as Parquet: Parquet magic bytes not found in footer",
    ),
    "more columns": (
        table_change(lambda t: t.append_column("label", t["prediction"])),
        r"columns are \[.*'label'\], must be",
    ),
    "fewer columns": (
        table_change(lambda t: t.drop_columns(["log_probs"])),
        r"columns are \['env', 'split', 'episode', 'step', 'prediction'\], must",
    ),
    "no rows": (table_change(lambda t: t.slice(0, 0)), "0 rows, must be 1 to"),
    "too many rows": (
        table_change(lambda t: pa.concat_tables([t] * 5)),
        "256000 rows, must be 1 to 204800",
    ),
    "wide episode": (typed("episode", pa.int64()), "column episode has type int64, must be int32"),
    "wide step": (typed("step", pa.uint16()), "column step has type uint16, must be uint8"),
    "signed class": (typed("prediction", pa.int8()), "column prediction has type int8, must be"),
    "wide log_probs": (typed("log_probs", pa.list_(pa.float32())), "column log_probs has type"),
    "nested log_probs": (
        table_change(lambda t: replaced(t, "log_probs", pa.array([[[]]] * len(t)))),
        "column log_probs has type list<element: list<element: ",
    ),
    "binary env": (typed("env", pa.binary()), "column env has type binary, must be string"),
    "null": (column("prediction", 7, None), "missing values in column prediction"),
    "null env": (column("env", 7, None), "missing values in column env"),
    "seen": (everywhere("split", "seen"), "split 'seen' is not 'unseen'"),
    "one val": (column("split", 5, "val"), "split 'val' is not 'unseen'"),
    "other env": (everywhere("env", "<script>"), "'<script>' is not in digits-v0"),
    "not UTF-8": (no_utf8("split"), "as Parquet: .*UTF"),
    "missing episode": (
        rows(700, 800),
        f"{DIGITS}: 100 of the steps of episodes 0 to 255 are missing .first at episode 7, step 0",
    ),
    "missing step": (rows(703, 704), r"1 of the steps .* missing \(first at episode 7, step 3\)"),
    "step 100": (column("step", 99, 100), "step 100 is beyond the last one, 99"),
    "episode -1": (column("episode", 0, -1), "episode -1 is not frozen"),
    "episode 1024": (column("episode", 0, 1024), "episode 1024 is not frozen"),
    "episode 256": (column("episode", 0, 256), "of the steps of episodes 0 to 1023 are missing"),
    "class 10": (column("prediction", 7, 10), "prediction 10 is not a class, there are 10"),
    "NaN": (log_probs([float("nan")] * 10), r"not NaN \(first at episode 0, step 99\)"),
    "above 1": (log_probs([2.0] + [0.0] * 9, 199), "log_probs must be at most 0 .*episode 1,"),
    "too little": (log_probs([0.09] * 10), r"sum to 1 \(first at episode 0, step 99\)"),
    "no probability": (log_probs([0.0] * 10, 149), r"sum to 1 \(first at episode 1, step 49\)"),
    "nine classes": (log_probs([1 / 9] * 9), "one number for each of the 10 classes"),
    "null inside": (column("log_probs", 99, [None] * 10), "missing values inside the lists of col"),
    "long list": (column("log_probs", 98, [-1.0] * 2_000_000), "bytes and 2\\d{6} values in 51200"),
    "one too many": (log_probs([0.1] * 10, 98), r"null at all others \(first at .* step 98\)"),
    "one too few": (column("log_probs", 99, None), r"must be given at .* \(first at .*, step 99\)"),
    "text bomb": (big_text("env"), "column env holds a text of 1000000 bytes, more than"),
    "many texts": (
        table_change(lambda t: replaced(t, "env", pa.array([f"{i}" for i in range(len(t))]))),
        "column env has 51200 different texts, more than",
    ),
}
BOMB: dict[str, Case] = {
    name: (write(SEED_0, make()), message) for name, (make, message) in BOMBS.items()
}


def both_views(table: pa.Table) -> pa.Table:
    """One task in the direct view, and the same in the channel view."""
    task = table.slice(0, 500)
    return pa.concat_tables([task, replaced(task, "env", pa.array([MINI_CHANNEL] * 500))])


TEXT: dict[str, Case] = {
    "wide query": (typed("query", pa.int64()), "column query has type int64, must be int32"),
    "null task": (column("task", 7, None), "missing values in column task"),
    "no UTF-8": (no_utf8("task"), "cannot be read as Parquet: .*UTF"),
    "text bomb": (big_text("task"), "column task holds a text of 1000000 bytes"),
    "vector env": (everywhere("env", DIGITS), f"'{DIGITS}' is not in textmini-v0, whose"),
    "both views": (
        table_change(both_views),
        r"views are mixed .* an entry is direct \(ICL\) or channel",
    ),
    "other fingerprints": (toml(f'{MINI} = "', f'{PARA} = "'), "fingerprints are of .*Para.*pred"),
    "unknown task": (everywhere("task", "<b>"), "'<b>' is no test task of TextMini"),
    "other seed": (column("demo_seed", 0, 7), "demonstration seed 7 is none of 100"),
    "query -1": (column("query", 0, -1), f"{FIRST}: query -1 is not frozen: 0 to 99 are"),
    "draw missing": (
        rows(207, 208),
        r"1 predictions are missing: each .*\(first: seed 21, query 7",
    ),
    "no such option": (
        column("prediction", 3, int(text_options(FIRST)[3])),
        f"prediction {text_options(FIRST)[3]} of query 3 is not an option, there are",
    ),
    "option 255": (column("prediction", 3, 255), "prediction 255 of query 3 is not an option"),
}
