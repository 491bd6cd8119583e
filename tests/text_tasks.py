"""Text tasks that tests register: sizes that differ, labels that are not balanced."""

import contextlib
from collections.abc import Iterator

from user_sets import restored_registries

import icl_bench
from icl_bench.data.text import text_setting, text_task

# TextMini's tasks are all of one size.
SIZES = {"small": 60, "middle": 180, "large": 540}
LABELS = ("blue", "green", "red")


def of_size(count: int, first: int = 0) -> list[icl_bench.TextExample]:
    """Examples ``text 0``, ``text 1``, …; every second is blue, every sixth red."""
    pattern = ("blue", "green", "blue", "green", "blue", "red")
    return [
        icl_bench.TextExample(f"text {i}", pattern[i % 6], LABELS)
        for i in range(first, first + count)
    ]


def number(example: icl_bench.TextExample) -> int:
    """Which of ``of_size`` it is."""
    return int(example.input.split()[1])


def register_setting(name: str, train: tuple[str, ...], test: tuple[str, ...]) -> tuple[str, ...]:
    """A setting of these tasks; ids of its environments."""
    setting = icl_bench.TextSetting(name, name.lower(), "Of tests", train, test)
    return icl_bench.register_text_setting(setting)


@contextlib.contextmanager
def registered_settings() -> Iterator[None]:
    """Sized: three tasks of one rule; Lone: the small one; MiniClasses: TextMini's with labels."""
    with restored_registries():
        for name, count in SIZES.items():
            icl_bench.register_text_task(
                name, train=of_size(count), test=of_size(5, count), kind="classification"
            )
        mini = text_setting("TextMini")
        classes = tuple(task for task in mini.train if text_task(task).kind == "classification")
        register_setting("Sized", tuple(SIZES), mini.test[:1])
        register_setting("Lone", ("small",), mini.test[:1])
        register_setting("MiniClasses", classes, mini.test)
        yield


def example(text: str, output: str, *options: str) -> icl_bench.TextExample:
    """An example in one line."""
    return icl_bench.TextExample(text, output, options)


@contextlib.contextmanager
def hand_setting() -> Iterator[None]:
    """Hand: two test tasks that are small enough for pencil and paper."""
    colours = [example(f"item {i}", "red" if i % 3 else "blue", "blue", "red") for i in range(30)]
    asked = [example(f"query {i}", o, "blue", "red") for i, o in enumerate(("red", "blue", "red"))]
    choices = [example(f"choose {i}", "b", "a", "b") for i in range(30)]
    chosen = [example("q 0", "cc", "cc", "c"), example("q 1", "d", "d", "dd", "ddd")]
    with restored_registries():
        icl_bench.register_text_task(
            "hand:colours", train=colours, test=asked, kind="classification"
        )
        icl_bench.register_text_task(
            "hand:choices", train=choices, test=chosen, kind="multi-choice"
        )
        register_setting("Hand", ("mini-keys-1",), ("hand:colours", "hand:choices"))
        yield
